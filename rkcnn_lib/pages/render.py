"""From one executed notebook to the body of a page: prose and figures first, code behind a fold.

Whatever a notebook printed is treated as data: HTML is reduced to a list of harmless tags, scripts are taken
out (and reported), headings are put in order. Figures become blocks of JSON that the site's own script draws.
"""

from __future__ import annotations

import html
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bleach
import nbformat
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter

from rkcnn_lib.figures.display import HERO
from rkcnn_lib.figures.display import MIMETYPE as PLOTLY
from rkcnn_lib.pages.cards import CARDS
from rkcnn_lib.pages.figure import ASSETS, figure_block, trace_types
from rkcnn_lib.pages.glossary import link_first_uses
from rkcnn_lib.strings import cut, script_json

WIDGET = "application/vnd.jupyter.widget-view+json"
LEFT_OUT = "In JupyterLab controls stand here; a page has no kernel behind it, so they are left out."
HEADINGS = re.compile(r"^h[1-6]$")
# The page's own header says what these outputs of a notebook's first cells say.
IN_HEADER = ".banner, table.provenance"
TAGS = frozenset(
    """a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li mark ol p
    pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()  # noqa: SIM905
)
SCHEMES = {"http", "https", "mailto"}  # of links, which may also lead to a place of the page or a file beside it
ATTRIBUTES = {"class", "id", "title", "colspan", "rowspan", "scope", "alt", "open", "start"}


@dataclass
class Rendered:
    """The body of a page and what was found while making it."""

    title: str | None = None  # the notebook's first heading of level one, taken out of the body
    body: str = ""
    contents: list[tuple[int, str, str]] = field(default_factory=list)  # level (2 or 3), id, text
    n_figures: int = 0
    trace_types: set[str] = field(default_factory=set)  # of all figures, as plotly names them
    n_cards: int = 0
    flags: list[str] = field(default_factory=list)  # what a reader should know is missing or odd
    hero: tuple[dict[str, Any], str] | None = None  # a figure that the index shows too, and its note


def render_notebook(path: Path) -> Rendered:
    """Convert an executed notebook (``.ipynb``); its body is safe HTML.

    Raises
    ------
    ValueError
        If the file is not a notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several kinds, none of them ours
        raise ValueError(f"{path} is not a notebook that can be read: {error}") from error
    page = Rendered()
    blocks = _collect_blocks(notebook, page)
    exporter = HTMLExporter(
        raw_template=(ASSETS / "notebook.html.j2").read_text(encoding="utf-8"), exclude_anchor_links=True
    )
    exporter.register_filter("safe_html", lambda text: safe_html(text, page))
    body, _ = exporter.from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    _order_headings(soup, page)
    link_first_uses(soup)
    for pre in soup.find_all("pre"):
        pre["tabindex"] = "0"  # what scrolls sideways must be reachable by keyboard
    for corner in soup.find_all("th"):
        if not corner.get_text(strip=True):
            corner.name = "td"  # pandas leaves the corner above an index empty: it heads nothing
            corner.attrs.pop("scope", None)
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "table-scroll", "tabindex": "0"}))
    page.body = str(soup)
    for place, block in blocks.items():
        page.body = page.body.replace(place, block)
    if not page.n_figures:
        page.flags.append("no figure was drawn by this notebook")
    page.flags = list(dict.fromkeys(page.flags))
    return page


def safe_html(text: str, page: Rendered | None = None) -> str:
    """Reduce HTML to harmless tags: no script, style, handler or resource from elsewhere.

    Scripts and styles go with their content; every other foreign tag is shown as text, not lost.
    """
    soup = BeautifulSoup(text, "html.parser")
    if page is not None and soup.find("script"):
        page.flags.append("an output held a script, which pages do not run")
    for unwanted in soup.select(f"style, script, {IN_HEADER}"):
        unwanted.decompose()
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.replace_with(f"[image not in the page: {image.get('alt') or image.get('src')}]")
            if page is not None:
                page.flags.append("an image that is not embedded was left out")
    return bleach.clean(str(soup), tags=TAGS, attributes=_allowed, protocols={*SCHEMES, "data"}, strip=False)


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "href":
        # Browsers read past white space and control characters in an address; one of two slashes names a machine.
        value = re.sub(r"[\s\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2060\ufeff]", "", value).lower()
        scheme = re.match(r"([^/?#]*?):", value)
        return tag == "a" and (scheme[1] in SCHEMES if scheme else not re.match(r"[/\\]{2}", value))
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    return name in ATTRIBUTES


def _collect_blocks(notebook: Any, page: Rendered) -> dict[str, str]:
    """Take figures and cards out of the outputs, each leaving a place for its block; tidy the other outputs."""
    blocks: dict[str, str] = {}
    slot = f"block-{uuid.uuid4().hex}"  # no text of the notebook can be taken for it

    def put(output: Any, block: str) -> None:
        place = f"{slot}-{len(blocks) + 1}."
        blocks[place] = block
        output.data = {"text/html": place}

    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"(?<![\\$])\$[^$\n]+\$", _without_code(cell.source)):
            page.flags.append("formulas between dollar signs are shown as they were typed")
        if "outputs" in cell:
            cell.outputs = _one_stream_each(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _without_places(_settle(output.text))
            elif output.output_type == "error":
                page.flags.append(f"a cell ended with {output.ename}")
            elif PLOTLY in output.data:
                figure = output.data[PLOTLY]
                page.n_figures += 1
                page.trace_types |= trace_types(figure)
                if output.metadata.get(HERO):
                    page.hero = figure, str(output.metadata[HERO])
                put(output, figure_block(page.n_figures, figure))
            elif WIDGET in output.data:
                output.data = {"text/html": f'<p class="small">{html.escape(LEFT_OUT)}</p>'}
            elif CARDS in output.data:
                page.n_cards += len(output.data[CARDS].get("cards", []))
                put(output, cards_block(output.data[CARDS], safe_html(output.data.get("text/html", ""), page)))
    return blocks


def cards_block(record: dict[str, Any], fallback: str) -> str:
    """Return the place of the cards on a page: a search, their data for the page's script, a few where none runs.

    ``record``, see :mod:`~rkcnn_lib.pages.cards.book`, reaches the page as JSON that only ``assets/cards.js`` reads,
    and sets as text. ``fallback``, HTML of a few cards made safe already, is shown until that script runs.
    """
    return (
        '<div class="feature-cards" id="cards">'
        '<form class="card-search" role="search" aria-label="Find a card" hidden>'
        '<label>Start <select name="arm"></select></label>'
        '<label>Latent or token <input type="search" name="query" size="12" autocomplete="off"></label>'
        '<button type="submit">Find</button>'
        '<button type="button" name="previous">← Previous</button><button type="button" name="next">Next →</button>'
        '</form><p class="card-status" role="status" aria-live="polite"></p>'
        '<div class="card-list" role="group" aria-label="Cards to choose from"></div>'
        '<div class="feature-card" hidden></div>'
        f'<div class="card-fallback">{fallback}</div>'
        f'<script type="application/json" class="card-data">{script_json(record)}</script></div>'
    )


def _one_stream_each(outputs: list[Any]) -> list[Any]:
    """Join what a cell wrote to stdout, and to stderr: a progress bar leaves an output for every time it moved."""
    first: dict[str, Any] = {}
    kept = []
    for output in outputs:
        if output.output_type == "stream" and output.name in first:
            first[output.name].text += output.text
            continue
        if output.output_type == "stream":
            first[output.name] = output
        kept.append(output)
    return kept


def _without_code(source: str) -> str:
    return re.sub(r"```.*?```|`[^`]*`", "", source, flags=re.DOTALL)


def _settle(text: str) -> str:
    """What a terminal would show in the end: of a line rewritten by carriage returns, its last state."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _without_places(text: str) -> str:
    """Warnings name files by where they lie on the machine that ran: of those paths only the package's part is kept."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+(?:site-packages/|(?=(?:rkcnn_lib|notebooks)/))", "", text)


def _order_headings(soup: BeautifulSoup, page: Rendered) -> None:
    """Give headings ids and levels without gaps below the page's own h1, and note the contents."""
    used: set[str] = set()
    previous = 1
    for heading in soup.find_all(HEADINGS):
        text = heading.get_text(" ", strip=True)
        if heading.name == "h1" and page.title is None and not used:
            page.title = text
            heading.decompose()
            continue
        level = max(2, min(int(heading.name[1]), previous + 1))
        heading.name, previous = f"h{level}", level
        slug, n = re.sub(r"[^a-z0-9]+", "-", text.lower())[:80].strip("-") or "section", 1
        anchor = f"s-{slug}"
        while anchor in used:
            anchor, n = f"s-{slug}-{n + 1}", n + 1
        used.add(anchor)
        heading["id"] = anchor
        if level <= 3:
            page.contents.append((level, anchor, cut(text, 120)))
        link = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{anchor}", "aria-label": "link to here"})
        link.string = "#"
        heading.append(link)
    for other in soup.find_all(id=True):
        # Ids of a notebook's own HTML could collide with those of the page.
        if isinstance(other, Tag) and not HEADINGS.match(other.name):
            del other["id"]
