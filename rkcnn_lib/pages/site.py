"""From run folders to pages that open from disk: one page a run, an index, nothing loaded from elsewhere.

They can be given away: a site says what it weighs, and one run can be a single file that needs nothing beside it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup

from rkcnn_lib.files import DamagedFile, alone_at, plain_name, read_json, write_json, write_text, write_whole
from rkcnn_lib.pages import ASSETS, answers, glossary
from rkcnn_lib.pages.compare import Row, comparison, run_rows
from rkcnn_lib.pages.page import COPIED, NAMES, SHORT_TITLES, Page, environment, load, position, read_record
from rkcnn_lib.pages.render import plotly_script
from rkcnn_lib.runs.gates import NOT_RUN, Recorded, gates_since, read_run, record_of
from rkcnn_lib.runs.params import NOTEBOOKS
from rkcnn_lib.strings import visible

FORMAT = 1
QUESTION = "Do directions mined by random-subset probing make better sparse autoencoders?"
STYLES = ("site.css", "figures.css", "cards.css", "compare.css", "print.css")
SCRIPTS = ("controls.js", "figure_data.js", "cards.js", "compare.js", "site.js")
HEAVY = 15e6  # bytes from which a report is unhandy to mail
OUTWARD = ("#", "http:", "https:", "mailto:", "data:")
MIME = {".json": "application/json", ".parquet": "application/vnd.apache.parquet"}
OWN_PAGES = ("index.html", "compare.html", glossary.PAGE)


def build_site(runs: list[Path], out: Path, title: str = QUESTION, also: Sequence[Path] = ()) -> Path:
    """Build pages from run folders and, once all are built, put them in place file by file, each whole.

    ``runs`` are folders with ``run.json`` and, if papermill executed it, ``notebook.ipynb``: of several of one notebook
    the latest without a variant leads, the others get pages of their own. ``also`` are further ones to compare with:
    they lead no notebook that ``runs`` has, and one that cannot be read is named on standard error and left out.

    Of what is in ``out`` only files that its ``site.json`` lists are replaced or removed. Return ``out/index.html``.
    ValueError if a folder of ``runs`` holds no readable run, ``out`` exists and is not a site made here, or a file that
    is not the site's stands where a new one has to.
    """
    out = Path(out).resolve()
    _own_files(out)
    given = {run.resolve() for run in runs}
    leading = sorted(map(read_record, runs), key=position)
    others = sorted(_readable(read_record, (run for run in also if run.resolve() not in given)), key=position)
    # Pages stay together by notebook; within one, sorting is stable: what leads comes first.
    records = sorted([*leading, *others], key=lambda item: position(item)[:2])
    records = [(folder, gates_since(record, records)) for folder, record in records]
    with tempfile.TemporaryDirectory() as work:
        summary = _write_site(Path(work), records, title, given)
        _publish(Path(work), out, summary)
    return out / "index.html"


def _readable(read: Callable[[Any], Any], places: Iterable[Any]) -> list[Any]:
    """What could be read; the rest is named and left out."""
    readable = []
    for place in places:
        try:
            readable.append(read(place))
        except (ValueError, OSError) as error:
            print(f"rkcnn: {error}; this run is left out", file=sys.stderr)
    return readable


def _write_site(work: Path, records: list[Recorded], title: str, required: set[Path]) -> dict[str, Any]:
    """Write all files of the site but ``site.json``, which is returned; runs are left out unless they are required."""
    assets = work / "assets"
    assets.mkdir()
    for name in STYLES + SCRIPTS:
        shutil.copyfile(ASSETS / name, assets / name)
    pages: list[Page] = []
    rows: list[Row] = []

    def add(item: Recorded) -> None:
        page = load(*item, {*OWN_PAGES, *(page.file for page in pages)})
        rows.extend(run_rows(page, item[0]))
        for file in page.files:
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item[0] / Path(file).name, work / file)
        pages.append(page)

    for item in records:
        if item[0].resolve() in required:
            add(item)
        else:
            _readable(add, [item])
    plotly, compiles = plotly_script(set().union(*(page.rendered.trace_types for page in pages)))
    (assets / "plotly.min.js").write_text(plotly, encoding="utf-8")
    steps, compared, templates = _steps(pages), comparison(rows), environment()
    gone = [page for page in pages if page.withdrawn]
    withdrawn = [f"{page.number} {SHORT_TITLES.get(page.notebook, page.title)}. {page.withdrawn}" for page in gone]
    banners = [*dict.fromkeys(page.caution for page in pages if page.caution), *withdrawn]
    shared = {"site_title": title, "steps": steps, "pages": pages, "plotly_compiles": compiles, "banners": banners}

    def write(template: str, file: str, **given: Any) -> None:
        """Write a page; no string in it, wherever it came from, may turn the text around it."""
        text = templates.get_template(template).render(here=file, **shared, **given)
        (work / file).write_text(visible(text), encoding="utf-8")

    for page in pages:
        write("page.html.j2", page.file, page=page)
    write("compare.html.j2", "compare.html", compared=compared, short_titles=SHORT_TITLES)
    write("index.html.j2", "index.html", built=_now(), **_index(pages, steps, compared))
    write("glossary.html.j2", glossary.PAGE, terms=glossary.terms())
    return _summary(pages, steps, title)


def _index(pages: list[Page], steps: list[dict[str, Any]], compared: dict[str, Any]) -> dict[str, Any]:
    """What the index says beyond what every page knows: the answer, the figures, all verdicts."""
    leads = {step["notebook"]: step["lead"] for step in steps if step["lead"]}
    judged = leads.get(answers.JUDGED_BY)
    record = judged.record if judged else {}
    starts = [row for row in compared["rows"] if row.page is judged and row.cells]
    measures = [measure for measure in compared["measures"] if any(measure.key in row.cells for row in starts)]
    return {
        "answer": answers.in_one_sentence(record),
        "judged": judged,
        "setting": answers.setting(record),
        "starts": {"rows": starts, "measures": measures},
        "others": [page for page in pages if page is not judged and page.answers],
        "hero": next((page for page in leads.values() if page.rendered.hero), None),
    }


def _steps(pages: list[Page]) -> list[dict[str, Any]]:
    """The six notebooks in order (and any other that was given), each with its runs' pages."""
    steps = []
    for name in dict.fromkeys([*NOTEBOOKS, *(page.notebook for page in pages)]):
        runs = [page for page in pages if page.notebook == name]
        lead = runs[0] if runs else None
        title, short = NAMES.get(name, (name, name))
        steps.append({
            "notebook": name, "number": name[:2], "title": lead.title if lead else title, "short": short,
            "lead": lead, "others": runs[1:], "gate": lead.gate if lead else NOT_RUN,
        })  # fmt: skip
    return steps


def _summary(pages: list[Page], steps: list[dict[str, Any]], title: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": title,
        "built": _now(),
        "figures": sum(page.rendered.n_figures for page in pages),
        "pages": [
            {
                "notebook": page.notebook, "variant": page.variant, "page": page.file, "key": page.record.get("key"),
                "profile": page.record.get("profile"), "status": page.record.get("status"), "gate": page.gate,
                "figures": page.rendered.n_figures, "flags": page.rendered.flags,
            }
            for page in pages
        ],
        "not_run": [step["notebook"] for step in steps if step["lead"] is None],
    }  # fmt: skip


def _own_files(out: Path) -> set[str]:
    """The files of the site in ``out``, as paths within it; refuses what is no site made here or has a damaged list."""
    path = out / "site.json"
    if not path.is_file():
        begun = out.is_dir() and all(one.name.startswith(".site.json.part-") for one in out.iterdir())
        if out.exists() and not begun:
            raise ValueError(f"{out} exists and is not a site made here (no site.json): choose another folder")
        return set()
    record = read_json(path)
    if not isinstance(record.get("pages"), list):
        raise ValueError(f"{out} is not a site made here ({path} lists no pages): choose another folder")
    files = record.get("files", _as_once_written(record["pages"]))
    if not isinstance(files, list):
        raise DamagedFile(f"{path} is damaged: its files are no list")
    return {_within(out, name) for name in files}


def _as_once_written(pages: list[Any]) -> list[str]:
    """The files of a site from before sites listed them, by the pages that it lists."""
    names = [str(page.get("page")) for page in pages if isinstance(page, dict)]
    data = [f"runs/{name.removesuffix('.html')}/{file}" for name in names for file in COPIED]
    assets = [f"assets/{name}" for name in (*STYLES, *SCRIPTS, "plotly.min.js")]
    return ["site.json", *OWN_PAGES, *names, *data, *assets]


def _within(out: Path, name: Any) -> str:
    """A path that a site lists, if it can be no other than one within its folder."""
    try:
        parts = [plain_name(part, "a part") for part in name.split("/")]
        inside = (out / name).parent.resolve() == out.joinpath(*parts[:-1])
    except (AttributeError, ValueError):
        inside = False
    if not inside:
        raise DamagedFile(f"{out / 'site.json'} lists {str(name)[:80]!r}, which is no plain path within its folder")
    return name


def _publish(work: Path, out: Path, summary: dict[str, Any]) -> None:
    """Put the files of ``work`` in place; whenever this ends, each page is the old one or the new one.

    What is no longer part of the site goes last, and the site's list names every file of it all along.
    """
    made = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()} | {"site.json"}
    with alone_at(out, f"is writing the pages in {out}"):
        old = _own_files(out)
        taken = sorted(name for name in made - old if os.path.lexists(out / _within(out, name)))
        if taken:
            raise ValueError(f"{out / taken[0]} is not the site's, and a file of it has to go there: move it away")
        before = read_json(out / "site.json") if old else {"format": FORMAT, "pages": []}
        write_json(out / "site.json", before | {"files": sorted(old | made)})
        # The index last: what it points at is there by then.
        for name in sorted(made - {"site.json"}, key=lambda name: (name == "index.html", "/" not in name, name)):
            write_whole(out / name, partial(shutil.copyfile, work / name))
        for name in old - made:
            (out / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other files are in the folder
                for folder in (out / name).relative_to(out).parents[:-1]:
                    (out / folder).rmdir()
        write_json(out / "site.json", summary | {"files": sorted(made)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------- to give away


def weight_lines(site: Path) -> list[str]:
    """What the site weighs, to print: a line a page, one for what pages share, one for the runs' data, the total."""
    parts = [*sorted(site.glob("*.html")), site / "assets", site / "runs"]
    lines = [f"{_weight(part) / 1e6:8.2f} MB  {part.name}{'/' * (not part.suffix)}" for part in parts]
    total = _weight(site)
    heavy = f", more than the {HEAVY / 1e6:.0f} MB that mail takes easily" if total > HEAVY else ""
    return [*lines, f"{total / 1e6:8.2f} MB  in all (plotly.min.js once){heavy}"]


def _weight(place: Path) -> int:
    return sum(path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file())


def run_folders(places: Iterable[Path]) -> list[Path]:
    """Run folders with a finished run among ``places``, each a run folder or a folder that holds some at any depth.

    A damaged ``run.json`` that was found so is named and left out. ValueError if a place is no folder, holds no run at
    all, or is itself a run folder with a damaged ``run.json``.
    """
    folders: list[Path] = []
    for place in places:
        record_of(place)
        records = sorted(path.parent for path in place.rglob("run.json"))
        if not records:
            raise ValueError(f"{place} holds no run: give a folder with a run.json, or one that holds such folders")
        folders += [folder for folder in records if (read_run(folder) or {}).get("status") == "finished"]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def single_file(run: Path, out: Path) -> Path:
    """Write the page of one run as one HTML file: styles, scripts, plotly and the run's data are inside.

    Its policy lets only scripts of exactly these contents run, whatever a reader's copy may have met on its way.
    ``out`` is replaced and returned. ValueError if ``run`` holds no readable run, or ``out`` is a folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file, such as {out / 'report.html'}")
    with tempfile.TemporaryDirectory() as work:
        site = build_site([run], Path(work) / "site").parent
        (page,) = read_json(site / "site.json")["pages"]
        write_text(out, inlined(site / page["page"]))
    return out


def inlined(page: Path) -> str:
    """The HTML of a site's page with everything that lies beside it put inside, and no link to other pages."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for link in soup.find_all("link", rel="stylesheet"):
        style = soup.new_tag("style", attrs={"media": link["media"]} if link.has_attr("media") else {})
        style.string = (page.parent / link["href"]).read_text(encoding="utf-8")
        link.replace_with(style)
    hashes = []
    for script in soup.find_all("script", src=True):
        source = (page.parent / script["src"]).read_text(encoding="utf-8")
        script.decompose()
        inner = soup.new_tag("script")
        # No parser of HTML takes it to end early; in a script's strings the backslash means nothing.
        inner.string = re.sub(r"<(?=/script|!--)", r"<\\", source, flags=re.IGNORECASE)
        soup.body.append(inner)  # at the end, in order: an inline script cannot be deferred
        hashes.append("'sha256-" + base64.b64encode(hashlib.sha256(inner.string.encode()).digest()).decode() + "'")
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
    allowed = " ".join([*hashes, *re.findall("'unsafe-eval'", policy["content"])])
    content = re.sub(r"script-src [^;]*", f"script-src {allowed}", policy["content"])
    policy["content"] = content.replace("'self' file: ", "")
    # data of the run becomes part of the page; what points at other pages becomes plain text
    for way in soup.select("header.top ol, header.top .aside, nav.turn"):
        way.decompose()
    for link in soup.find_all("a", href=True):
        if link["href"].startswith(OUTWARD):
            continue
        file = page.parent / link["href"]
        if link.has_attr("download") and file.is_file():
            kind = MIME.get(file.suffix, "application/octet-stream")
            link["download"] = file.name
            link["href"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        else:
            link.name = "span"
            del link["href"]
    return str(soup)
