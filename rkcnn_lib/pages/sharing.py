"""Giving pages away: what a site weighs, and one run as a single file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bs4 import BeautifulSoup

from rkcnn_lib.files import read_json, write_text
from rkcnn_lib.pages.site import build_site
from rkcnn_lib.runs.gates import read_run, record_of

HEAVY = 15e6  # bytes from which a report is unhandy to mail
OUTWARD = ("#", "http:", "https:", "mailto:", "data:")
MIME = {".json": "application/json", ".parquet": "application/vnd.apache.parquet"}


def weights(site: Path) -> dict[str, int]:
    """Bytes of each page of a site, of the scripts and styles that pages share, and of the runs' data, by name."""
    sizes = {path.name: path.stat().st_size for path in sorted(site.glob("*.html"))}
    return sizes | {f"{folder}/": _weight(site / folder) for folder in ("assets", "runs")}


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def weight_lines(site: Path) -> list[str]:
    """What the site weighs, a line a page and the total, to print."""
    total = _weight(site)
    lines = [f"{size / 1e6:8.2f} MB  {name}" for name, size in weights(site).items()]
    heavy = f", more than the {HEAVY / 1e6:.0f} MB that mail takes easily" if total > HEAVY else ""
    return [*lines, f"{total / 1e6:8.2f} MB  in all (plotly.min.js once){heavy}"]


def run_folders(places: Iterable[Path]) -> list[Path]:
    """Run folders with a finished run among ``places``, each a run folder or a folder that holds some at any depth.

    A damaged ``run.json`` that was found so is named and left out.

    Raises
    ------
    ValueError
        If a place is no folder, holds no run at all, or is itself a run folder with a damaged ``run.json``.
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

    ``out`` is replaced and returned; its folder is made.

    Raises
    ------
    ValueError
        If ``run`` holds no readable run, or ``out`` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file, such as {out / 'report.html'}")
    with tempfile.TemporaryDirectory() as work:
        site = build_site([Path(run)], Path(work) / "site").parent
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
        inner.string = _closed(source)
        soup.body.append(inner)  # at the end, in order: an inline script cannot be deferred
        hashes.append("'sha256-" + base64.b64encode(hashlib.sha256(inner.string.encode()).digest()).decode() + "'")
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
    allowed = " ".join([*hashes, *re.findall("'unsafe-eval'", policy["content"])])
    policy["content"] = re.sub(r"script-src [^;]*", f"script-src {allowed}", policy["content"]).replace(
        "'self' file: ", ""
    )
    _keep_links_inside(soup, page.parent)
    return str(soup)


def _closed(source: str) -> str:
    """A script that no parser of HTML takes to end early; in its strings the backslash means nothing."""
    return re.sub(r"<(?=/script|!--)", r"<\\", source, flags=re.IGNORECASE)


def _keep_links_inside(soup: BeautifulSoup, site: Path) -> None:
    """Data of the run becomes part of the page; what points at other pages becomes plain text."""
    for way in soup.select("header.top ol, header.top .aside, nav.turn"):
        way.decompose()
    for link in soup.find_all("a", href=True):
        if link["href"].startswith(OUTWARD):
            continue
        file = site / link["href"]
        if link.has_attr("download") and file.is_file():
            kind = MIME.get(file.suffix, "application/octet-stream")
            link["download"] = file.name
            link["href"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        else:
            link.name = "span"
            del link["href"]
