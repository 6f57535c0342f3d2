"""How long the comparison page of many runs takes to answer, in headless Chromium; JSON lines.

    python benchmarks/comparison_page.py [--runs 500] [--arms 6]

Made-up runs of 04, every measure filled. `seconds` goes from the key or choice to the painted answer, its median over
`times` (of letters: over the word that is typed one by one, each answered before the next).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright

from rkcnn_lib.pages.compare import LAYOUTS
from rkcnn_lib.pages.site import build_site

NOTEBOOK, SEEDS = "04_sae_compare", 3
# The address is written once the table says what was asked for; two frames later it is on the screen.
PAINTED = """([name, wanted]) => new Promise(resolve => {
  const check = () => (new URLSearchParams(location.hash.slice(1)).get(name) || "") === wanted
    ? requestAnimationFrame(() => requestAnimationFrame(resolve)) : setTimeout(check, 5);
  check();
})"""


def make_runs(root: Path, n_runs: int, n_arms: int) -> list[Path]:
    """Write run folders with random numbers for every measure of every arm."""
    draw = np.random.default_rng(0)
    units = [(f"arm_{i}", m.metric, s) for i in range(n_arms) for m in LAYOUTS[NOTEBOOK].measures for s in range(SEEDS)]
    folders = []
    for i in range(n_runs):
        folder = root / str(i)
        folder.mkdir(parents=True)
        record = {
            "notebook": NOTEBOOK, "key": f"{i:016x}", "profile": f"profile{i % 5}", "status": "finished",
            "started": f"2026-01-01T{i // 60 % 24:02}:{i % 60:02}", "seeds": [*range(SEEDS)], "wall_seconds": 60 + i,
            "parameters": {"model": f"model-{i % 7}", "layer": i % 12, "hook": "resid_post"},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        table = pd.DataFrame(units, columns=["arm", "metric", "seed"]).assign(value=draw.random(len(units)))
        table.to_parquet(folder / "metrics.parquet")
        folders.append(folder)
    return folders


def answered(page: Page, act: object, name: str, wanted: str) -> float:
    """Seconds from an action to its answer on the screen; the address then holds ``name`` = ``wanted``."""
    began = time.perf_counter()
    act()
    page.evaluate(PAINTED, [name, wanted])
    return time.perf_counter() - began


def tell(what: str, times: list[float]) -> None:
    """Print one figure."""
    print(json.dumps({"what": what, "seconds": round(median(times), 2), "times": [round(t, 2) for t in times]}))


def measure(page: Page, file: Path) -> None:
    """Open the page, type, subtract, sort and go back to all."""
    began = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_selector("#compare-status:not(:empty)")
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    tell("open", [time.perf_counter() - began])
    page.focus("#filter-text")
    key, word = page.keyboard.press, "arm_1"
    typed = [answered(page, lambda c=c: key(c), "q", word[: i + 1]) for i, c in enumerate(word)]
    tell("letter", typed)
    tell("letter taken back", [answered(page, lambda: key("Backspace"), "q", word[:i]) for i in range(4, -1, -1)])
    choose, heads = page.select_option, page.locator("#comparison thead th:visible button")
    subtracted = [answered(page, lambda v=v: choose("#against", v), "against", v) for v in ("own", NOTEBOOK)]
    tell("differences", subtracted)
    tell("sort of differences", [answered(page, heads.nth(i).click, "sort", f"{i}-ascending") for i in (0, 2, 4)])
    tell("values again", [answered(page, lambda: choose("#against", ""), "against", "")])
    tell("sort", [answered(page, heads.nth(i).click, "sort", f"{i}-ascending") for i in (0, 2, 3)])
    tell("one profile", [answered(page, lambda: choose("#filter-profile", "profile1"), "profile", "profile1")])


def main() -> None:
    """Build the site and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--arms", type=int, default=6)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as work, sync_playwright() as play:
        runs = make_runs(Path(work) / "runs", options.runs, options.arms)
        began = time.perf_counter()
        file = build_site(runs, Path(work) / "site").with_name("compare.html")
        tell("build", [time.perf_counter() - began])
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        measure(browser.new_page(viewport={"width": 1280, "height": 900}), file)
        browser.close()


if __name__ == "__main__":
    main()
