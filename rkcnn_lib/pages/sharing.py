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
    _keep_links_inside(soup, page.parent)
    return str(soup)


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
