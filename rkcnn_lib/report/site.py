"""From run folders to pages that open from disk: one page a run, an index, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rkcnn_lib.report import answers, figures, glossary
from rkcnn_lib.report.compare import comparison
from rkcnn_lib.report.params import NOTEBOOKS
from rkcnn_lib.report.render import ASSETS, Rendered, figure_block, render_notebook
from rkcnn_lib.report.strings import cut, visible

FORMAT = 1
QUESTION = "Do directions mined by random-subset probing make better sparse autoencoders?"
TITLES = {
    "01_toy_superposition": "Toy models whose features are known",
    "02_probe_validation": "Does the score choose?",
    "03_gpt2_cache": "The activations",
    "04_sae_compare": "Sparse autoencoders, arm by arm",
    "05_multilayer": "Across layers",
    "06_causal_checks": "Causal checks",
}
SHORT_TITLES = {
    "01_toy_superposition": "Toy models",
    "02_probe_validation": "Probe",
    "03_gpt2_cache": "Activations",
    "04_sae_compare": "SAE arms",
    "05_multilayer": "Layers",
    "06_causal_checks": "Causal checks",
}
BANNERS = {
    "smoke": "A smoke run: sizes of seconds, no conclusions.",
    "quick": "A quick run: small models and few seeds. It shows that everything works; it settles nothing.",
}
COPIED = ("run.json", "metrics.parquet")
STYLES = ("site.css", "figures.css", "cards.css", "compare.css", "print.css")
SCRIPTS = ("controls.js", "figure_data.js", "cards.js", "compare.js", "site.js")


@dataclass
class Page:
    """One run and the page made of it."""

    notebook: str
    variant: str | None
    file: str
    record: dict[str, Any]
    rendered: Rendered
    files: list[str]  # copied beside the page, as relative links

    @property
    def number(self) -> str:
        """The notebook's number in the argument, "01" to "06"."""
        return self.notebook[:2]

    @property
    def title(self) -> str:
        """The run's own title, else the notebook's first heading, else its name."""
        return (
            self.record.get("title")
            or self.rendered.title
            or TITLES.get(self.notebook, self.notebook.replace("_", " "))
        )

    @property
    def gate(self) -> str:
        """PASS, FAIL, or NOT RUN where the run has judged no gate."""
        return (self.record.get("gate") or {}).get("verdict") or "NOT RUN"

    @property
    def profile(self) -> str:
        """The profile without its variant."""
        return str(self.record.get("profile") or "unknown").split("--")[0]

    @property
    def banners(self) -> list[str]:
        """What a reader must know before reading on."""
        said = [BANNERS[self.profile]] if self.profile in BANNERS else []
        status = self.record.get("status") or "unknown"
        if status != "finished":
            said.append(f"This run did not finish (status: {status}): what follows is partial.")
        return said

    @property
    def place(self) -> str:
        """On what the run worked."""
        return answers.place(self.record)

    @property
    def answers(self) -> list[answers.Answer]:
        """The run's hypotheses with their verdicts."""
        return answers.answers(self.record)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """The contrasts behind each hypothesis, each with its page."""
        return [dict(row) | {"page": self.file, "number": self.number} for row in self.record.get("verdicts") or []]


def build_site(runs: list[Path], out: Path, title: str | None = None, also: Sequence[Path] = ()) -> Path:
    """Build pages from run folders and put them in place at once.

    Parameters
    ----------
    runs : list of Path
        Run folders, each with ``run.json`` and, if papermill executed it, ``notebook.ipynb``. Of several runs
        of one notebook the latest without a variant leads; the others get pages of their own. The list may be
        empty: all six notebooks are then NOT RUN.
    out : Path
        Folder of the site. It is replaced as a whole, once everything is written.
    title : str, optional
        The question that the index is headed by.
    also : sequence of Path
        Further run folders to compare with: they get pages and rows, but lead no notebook that ``runs`` has.

    Returns
    -------
    Path
        ``out/index.html``; beside it ``site.json`` records pages, figure counts and flags.

    Raises
    ------
    ValueError
        If a folder holds no readable run, or ``out`` exists and is not a site made here.
    """
    out = Path(out).resolve()
    if out.exists() and not (out / "site.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a site made here (no site.json): choose another folder")
    records = sorted((_read(Path(run)) for run in runs), key=_position)
    given = {Path(run).resolve() for run in runs}
    others = sorted((_read(Path(run)) for run in also if Path(run).resolve() not in given), key=_position)
    # Pages stay together by notebook; within one, sorting is stable: what leads comes first.
    records = sorted([*records, *others], key=lambda item: _position(item)[:2])
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_site(work, records, title or QUESTION)
        work.chmod(0o755)
        _swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out / "index.html"


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run.json, so it is no run folder")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not record.get("notebook"):
        raise ValueError(f"{path} names no notebook")
    return folder, record


def _variant(record: dict[str, Any]) -> str | None:
    profile = str(record.get("profile") or "")
    return record.get("variant") or (profile.split("--", 1)[1] if "--" in profile else None)


def _position(item: tuple[Path, dict[str, Any]]) -> tuple[Any, ...]:
    """Order of pages: the notebooks' order, runs without a variant first, the latest first."""
    record = item[1]
    name = str(record["notebook"])
    place = list(NOTEBOOKS).index(name) if name in NOTEBOOKS else len(NOTEBOOKS)
    age = "".join(chr(0x10FFFF - ord(c)) for c in str(record.get("started") or ""))
    return place, name, _variant(record) is not None, str(_variant(record) or ""), age


def _file_name(record: dict[str, Any], taken: set[str]) -> str:
    parts = [str(record["notebook"]), _variant(record)]
    stem = "--".join("".join(c if c.isalnum() or c in "-_" else "-" for c in part[:60]) for part in parts if part)
    name, n = f"{stem}.html", 2
    while name in taken:
        name, n = f"{stem}--run{n}.html", n + 1
    taken.add(name)
    return name


def _write_site(work: Path, records: list[tuple[Path, dict[str, Any]]], title: str) -> None:
    assets = work / "assets"
    assets.mkdir()
    (assets / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    for name in STYLES + SCRIPTS:
        shutil.copy(ASSETS / name, assets / name)
    taken = {"index.html", "compare.html", glossary.PAGE}
    pages = [_load(folder, record, work, taken) for folder, record in records]
    steps = _steps(pages)
    environment = _environment()
    shared = {"site_title": title, "steps": steps, "pages": pages}
    for page in pages:
        text = environment.get_template("page.html.j2").render(page=page, here=page.file, **shared)
        _write(work / page.file, text)
    compared = comparison(zip(pages, (folder for folder, _ in records), strict=True))
    text = environment.get_template("compare.html.j2").render(
        here="compare.html", compared=compared, short_titles=SHORT_TITLES, **shared
    )
    _write(work / "compare.html", text)
    index = environment.get_template("index.html.j2")
    text = index.render(here="index.html", built=_now(), **shared, **_index(pages, steps))
    _write(work / "index.html", text)
    text = environment.get_template("glossary.html.j2").render(here=glossary.PAGE, terms=glossary.terms(), **shared)
    _write(work / glossary.PAGE, text)
    (work / "site.json").write_text(json.dumps(_summary(pages, steps, title), indent=1), encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Write a page; no string in it, wherever it came from, may turn the text around it."""
    path.write_text(visible(text), encoding="utf-8")


def _index(pages: list[Page], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What the index says beyond what every page knows: the answer, the figures, all verdicts."""
    leads = {step["notebook"]: step["lead"] for step in steps if step["lead"]}
    judged = leads.get(answers.JUDGED_BY)
    record = judged.record if judged else None
    return {
        "answer": answers.in_one_sentence(record, answers.place(record or {})),
        "judged": judged,
        "answers": answers.answers(record or {}),
        "others": [(page, page.answers) for page in pages if page is not judged and page.answers],
        "hero": next((page for page in leads.values() if page.rendered.hero), None),
        "overview": answers.overview(record or {}),
        "banners": list(dict.fromkeys(BANNERS[p.profile] for p in pages if p.profile in BANNERS)),
    }


def _load(folder: Path, record: dict[str, Any], work: Path, taken: set[str]) -> Page:
    file = _file_name(record, taken)
    notebook = folder / "notebook.ipynb"
    if notebook.is_file():
        rendered = render_notebook(notebook)
    else:
        rendered = Rendered(flags=["the run has no executed notebook, so there is no prose and no figure"])
    data = work / "runs" / file.removesuffix(".html")
    copied = []
    for name in COPIED:
        if (folder / name).is_file():
            data.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, data / name)
            copied.append(f"runs/{data.name}/{name}")
    return Page(str(record["notebook"]), _variant(record), file, record, rendered, copied)


def _steps(pages: list[Page]) -> list[dict[str, Any]]:
    """The six notebooks in order (and any other that was given), each with its runs' pages."""
    names = [*NOTEBOOKS, *dict.fromkeys(page.notebook for page in pages if page.notebook not in NOTEBOOKS)]
    steps = []
    for name in names:
        runs = [page for page in pages if page.notebook == name]
        lead = runs[0] if runs else None
        steps.append(
            {
                "notebook": name,
                "number": name[:2],
                "title": lead.title if lead else TITLES.get(name, name),
                "short": SHORT_TITLES.get(name, name),
                "lead": lead,
                "others": runs[1:],
                "gate": lead.gate if lead else "NOT RUN",
            }
        )
    return steps


def _summary(pages: list[Page], steps: list[dict[str, Any]], title: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": title,
        "built": _now(),
        "figures": sum(page.rendered.n_figures for page in pages),
        "pages": [
            {
                "notebook": page.notebook,
                "variant": page.variant,
                "page": page.file,
                "key": page.record.get("key"),
                "profile": page.record.get("profile"),
                "status": page.record.get("status"),
                "gate": page.gate,
                "figures": page.rendered.n_figures,
                "flags": page.rendered.flags,
            }
            for page in pages
        ],
        "not_run": [step["notebook"] for step in steps if step["lead"] is None],
    }


def _swap(work: Path, out: Path) -> None:
    """Put the finished folder in place; what was there before comes back if that fails."""
    if not out.exists():
        os.replace(work, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    os.replace(out, old)
    try:
        os.replace(work, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- templates


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["glossary"] = {term.name: term for term in glossary.terms()}
    environment.filters |= {
        "signed": lambda value: _number(value, "+.3g"),
        "number": lambda value: _number(value, ".4g"),
        "short_number": lambda value: _number(value, ".3g"),
        "duration": _duration,
        "moment": lambda text: str(text or "unknown")[:16].replace("T", " "),
        "brief": brief,
        "figure": lambda spec, number: Markup(figure_block(number, spec)),  # escaped there
        "label": lambda name: Markup(figures.style.label(name)),  # escaped there
        "css": lambda text: str(text or "none").lower().replace(" ", "-"),
    }
    return environment


def _number(value: Any, form: str) -> str:
    if isinstance(value, bool) or value is None:
        return "n/a" if value is None else ("yes" if value else "no")
    if isinstance(value, int | float):
        return format(value, form).replace("-", "−") if math.isfinite(value) else "n/a"
    return cut(str(value), 24)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def brief(value: Any, items: int = 12) -> str:
    """A value of a record as text: long lists and mappings cut, and saying so."""
    if isinstance(value, dict):
        shown = [f"{key}: {brief(inner, 6)}" for key, inner in list(value.items())[:items]]
        return "; ".join(shown) + (f"; … ({len(value)} entries)" if len(value) > items else "")
    if isinstance(value, list | tuple):
        shown = [brief(inner, 6) for inner in value[:items]]
        return ", ".join(shown) + (f", … ({len(value)} entries)" if len(value) > items else "")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
