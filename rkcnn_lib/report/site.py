"""From run folders to pages that open from disk: one page a run, an index, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rkcnn_lib.report import answers, glossary, plotly_js
from rkcnn_lib.report.compare import comparison
from rkcnn_lib.report.gates import NOT_RUN, gates_since
from rkcnn_lib.report.pages import SHORT_TITLES, TITLES, Page, load, position, read_record
from rkcnn_lib.report.params import NOTEBOOKS
from rkcnn_lib.report.render import ASSETS
from rkcnn_lib.report.strings import visible
from rkcnn_lib.report.templates import environment

FORMAT = 1
QUESTION = "Do directions mined by random-subset probing make better sparse autoencoders?"
STYLES = ("site.css", "figures.css", "cards.css", "compare.css", "print.css")
SCRIPTS = ("controls.js", "figure_data.js", "cards.js", "compare.js", "site.js")


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
    records = sorted((read_record(Path(run)) for run in runs), key=position)
    given = {Path(run).resolve() for run in runs}
    others = sorted((read_record(Path(run)) for run in also if Path(run).resolve() not in given), key=position)
    # Pages stay together by notebook; within one, sorting is stable: what leads comes first.
    records = sorted([*records, *others], key=lambda item: position(item)[:2])
    records = [(folder, gates_since(record, records)) for folder, record in records]
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_site(work, records, title or QUESTION)
        work.chmod(0o755)
        _swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out / "index.html"


def _write_site(work: Path, records: list[tuple[Path, dict[str, Any]]], title: str) -> None:
    assets = work / "assets"
    assets.mkdir()
    for name in STYLES + SCRIPTS:
        shutil.copy(ASSETS / name, assets / name)
    taken = {"index.html", "compare.html", glossary.PAGE}
    pages = [load(folder, record, work, taken) for folder, record in records]
    plotly, compiles = plotly_js.script(set().union(*(page.rendered.trace_types for page in pages)))
    (assets / "plotly.min.js").write_text(plotly, encoding="utf-8")
    steps = _steps(pages)
    templates = environment()
    cautions = dict.fromkeys(page.caution for page in pages if page.caution)
    withdrawn = [
        f"{page.number} {SHORT_TITLES.get(page.notebook, page.title)}. {page.withdrawn}"
        for page in pages
        if page.withdrawn
    ]
    shared = {
        "site_title": title, "steps": steps, "pages": pages, "plotly_compiles": compiles,
        "banners": [*cautions, *withdrawn],
    }  # fmt: skip
    for page in pages:
        text = templates.get_template("page.html.j2").render(page=page, here=page.file, **shared)
        _write(work / page.file, text)
    compared = comparison(zip(pages, (folder for folder, _ in records), strict=True))
    text = templates.get_template("compare.html.j2").render(
        here="compare.html", compared=compared, short_titles=SHORT_TITLES, **shared
    )
    _write(work / "compare.html", text)
    index = templates.get_template("index.html.j2")
    text = index.render(here="index.html", built=_now(), **shared, **_index(pages, steps, compared))
    _write(work / "index.html", text)
    text = templates.get_template("glossary.html.j2").render(here=glossary.PAGE, terms=glossary.terms(), **shared)
    _write(work / glossary.PAGE, text)
    (work / "site.json").write_text(json.dumps(_summary(pages, steps, title), indent=1), encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Write a page; no string in it, wherever it came from, may turn the text around it."""
    path.write_text(visible(text), encoding="utf-8")


def _index(pages: list[Page], steps: list[dict[str, Any]], compared: dict[str, Any]) -> dict[str, Any]:
    """What the index says beyond what every page knows: the answer, the figures, all verdicts."""
    leads = {step["notebook"]: step["lead"] for step in steps if step["lead"]}
    judged = leads.get(answers.JUDGED_BY)
    record = judged.record if judged else None
    starts = [row for row in compared["rows"] if row.page is judged and row.cells]
    measures = [measure for measure in compared["measures"] if any(measure.key in row.cells for row in starts)]
    return {
        "answer": answers.in_one_sentence(record),
        "judged": judged,
        "answers": answers.answers(record or {}),
        "setting": answers.setting(record or {}),
        "starts": {"rows": starts, "measures": measures},
        "others": [(page, page.answers) for page in pages if page is not judged and page.answers],
        "hero": next((page for page in leads.values() if page.rendered.hero), None),
        "overview": answers.overview(record or {}),
    }


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
                "gate": lead.gate if lead else NOT_RUN,
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
