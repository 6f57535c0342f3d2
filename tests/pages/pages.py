"""What tests of pages share: runs without computing anything, and a browser that reports every complaint."""

from __future__ import annotations

import json
import re
import shutil
import time

import nbformat
import pandas as pd
from bs4 import BeautifulSoup

from rkcnn_lib import figures
from rkcnn_lib.figures.display import MIMETYPE as PLOTLY
from rkcnn_lib.figures.display import TITLE

EVIL = "<script>window.hacked = true</script>"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
VERDICT = {
    "hypothesis": "explained variance", "contrast": "rkcnn - random", "metric": "explained_variance",
    "difference": 0.011, "low": 0.006, "high": 0.016, "n_seeds": 5, "delta": 0.005, "verdict": "supported",
    "gated": False,
}  # fmt: skip


class WordTokenizer:
    """A tokenizer whose tokens are what stands between white space; what a word and a number mean, heirs say."""

    unk_token_id = 999

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=True):
        spans = [found.span() for found in re.finditer(r"\S+", text)]
        return {"input_ids": self.encode(text), "offset_mapping": spans}

    def encode(self, text, add_special_tokens=True):
        return [self.number(word) for word in text.split()]


def dot_figure(seed="0"):
    table = pd.DataFrame(
        [
            {"arm": a, "seed": seed, "metric": m, "value": 0.5}
            for a in ("random", "rkcnn")
            for m in ("explained_variance", "dead")
        ]
    )
    return figures.arm_metrics(table)


def slider_figure():
    return figures.toy_directions({"p = 0.1": [[1.0, 0.0]], "p = 0.01": [[0.0, 0.5]]})


def figure_output(fig, title="The lift wins", **metadata):
    data = {PLOTLY: json.loads(fig.to_json()), "text/plain": "figure"}
    return nbformat.v4.new_output("display_data", data, metadata={TITLE: title} | metadata)


def write_run(
    root, notebook="01_toy_superposition", figs=(), cells=(), executed=True, figure_title="The lift wins", **record
):
    folder = root / notebook / str(len(list(root.glob("*/*"))))
    folder.mkdir(parents=True)
    base = {
        "format": 1, "notebook": notebook, "variant": None, "key": "abc123", "profile": "full", "status": "finished",
        "title": None, "question": "Which?", "headline": "This one.", "parameters": {"n_subsets": 600},
        "gate": {"verdict": "PASS", "checks": [
            {"name": "recovery", "value": 0.82, "requirement": "> chance", "passed": True, "chance": 0.09}]},
        "verdicts": [], "earlier_gates": {}, "provenance": {"git_commit": "0123456789ab", "git_dirty": True},
        "model": None, "data": None, "seeds": [0, 1], "started": "2026-01-01T10:00:00", "finished": None,
        "wall_seconds": 61.5,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(base | record), encoding="utf-8")
    pd.DataFrame({"value": [1.0]}).to_parquet(folder / "metrics.parquet")
    if executed:
        book = nbformat.v4.new_notebook()
        book.cells = [
            nbformat.v4.new_markdown_cell("# A title\n\nProse.\n\n## Method\n\n#### Detail\n\n## Method"),
            *cells,
            *[nbformat.v4.new_code_cell("show(fig)", outputs=[figure_output(fig, figure_title)]) for fig in figs],
        ]
        nbformat.write(book, folder / "notebook.ipynb")
    return folder


def read(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def until(page, expression, seconds=30):
    """Wait until an expression holds. Playwright's own wait compiles it within the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"!!({expression})"):
        assert time.monotonic() < end, f"after {seconds} seconds still not: {expression}"
        page.wait_for_timeout(20)


def chromium(play):
    """Start Chromium as every test does: no sandbox, no GPU, nothing fetched in the background."""
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    return play.chromium.launch(executable_path=CHROMIUM, args=options)


def open_page(browser, file, width=1280, scheme="light", before=None):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else complaints.append(r.url))
    if before:
        page.add_init_script(f"({before})()")
    page.goto(file.as_uri())
    if page.query_selector(".plot"):
        until(page, "document.documentElement.dataset.figures", seconds=60)
    return page, complaints
