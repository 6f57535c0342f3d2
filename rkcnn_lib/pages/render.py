"""From one executed notebook to the body of a page: prose and figures first, code behind a fold.

Whatever a notebook printed is treated as data: HTML is reduced to a list of harmless tags, scripts are taken
out (and reported), headings are put in order. Figures become blocks of JSON that the site's own script draws.
"""

import html
import itertools
import re
import uuid
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import bleach
import nbformat
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbconvert import HTMLExporter
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from rkcnn_lib.figures.display import HERO, TITLE
from rkcnn_lib.figures.display import MIMETYPE as PLOTLY
from rkcnn_lib.pages import ASSETS, CARDS, blocks
from rkcnn_lib.pages.glossary import link_first_uses
from rkcnn_lib.strings import HOVER, cut, fit_figure, script_json, visible

SERIES_NAMED = 12
# plotly.js-cartesian-dist-min as its makers publish it (MIT); `make plotly-js` fetches it. Loading all of plotly.js
# takes a browser twice as long as drawing anything with it, and the rest of it is maps, finance and three dimensions.
SMALL = ASSETS / "plotly-cartesian.min.js"
IN_SMALL = {
    *("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour"),
    *("image", "pie", "scatter", "scatterternary", "violin"),
}
WIDGET = "application/vnd.jupyter.widget-view+json"
LEFT_OUT = "In JupyterLab controls stand here; a page has no kernel behind it, so they are left out."
MOST_ROWS = 8  # a table of more is folded
SAID_BY_PAGE = ".banner, table.provenance, p.figure-title"  # outputs whose words the page's header and captions have
TAGS = frozenset(
    """a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li mark ol p
    pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()  # noqa: SIM905
)
SCHEMES = {"http", "https", "mailto"}  # of links, which may also lead to a place of the page or a file beside it
ATTRIBUTES = {"class", "id", "title", "colspan", "rowspan", "scope", "alt", "open", "start"}


class Hero(NamedTuple):
    """A figure (plotly's JSON) that the index shows too."""

    figure: dict[str, Any]
    title: str
    note: str


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
    hero: Hero | None = None


def render_notebook(path: Path) -> Rendered:
    """Convert an executed notebook (``.ipynb``) to safe HTML; ValueError if the file is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several kinds, none of them ours
        raise ValueError(f"{path} is not a notebook that can be read: {error}") from error
    page = Rendered()
    placed = _collect_blocks(notebook, page)
    template = (ASSETS / "notebook.html.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(raw_template=template, exclude_anchor_links=True)
    exporter.register_filter("safe_html", lambda text: safe_html(text, page.flags))
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    _order_headings(soup, page)
    link_first_uses(soup)
    for pre in soup.find_all("pre"):
        pre["tabindex"] = "0"  # what scrolls sideways must be reachable by keyboard
    for corner in soup.find_all("th"):
        if not corner.get_text(strip=True):
            corner.name = "td"  # pandas leaves the corner above an index empty: it heads nothing
            corner.attrs.pop("scope", None)
    for table in soup.find_all("table"):
        box = table.wrap(soup.new_tag("div", attrs={"class": "table-scroll", "tabindex": "0"}))
        rows = table.select("tbody tr")
        if len(rows) > MOST_ROWS:  # behind a line that says what its rows are
            names = [cell.get_text(" ", strip=True) for row in rows[:3] if (cell := row.find(["th", "td"]))]
            folded = box.wrap(soup.new_tag("details", attrs={"class": "long"}))
            folded.insert(0, soup.new_tag("summary"))
            folded.summary.string = f"Table of {len(rows)} rows: {', '.join(filter(None, names))}, ..."
    page.body = str(soup)
    for place, block in placed.items():
        page.body = page.body.replace(place, block)
    if not page.n_figures:
        page.flags.append("no figure was drawn by this notebook")
    page.flags = list(dict.fromkeys(page.flags))
    return page


def safe_html(text: str, flags: list[str]) -> str:
    """Reduce HTML to harmless tags: no script, style, handler or resource from elsewhere.

    Scripts and styles go with their content; every other foreign tag is shown as text, not lost. ``flags`` takes what
    a reader should know of it.
    """
    soup = BeautifulSoup(text, "html.parser")
    if soup.find("script"):
        flags.append("an output held a script, which pages do not run")
    for unwanted in soup.select(f"style, script, {SAID_BY_PAGE}"):
        unwanted.decompose()
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.replace_with(f"[image not in the page: {image.get('alt') or image.get('src')}]")
            flags.append("an image that is not embedded was left out")
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
    placed: dict[str, str] = {}  # by the place that is left for it
    slot = f"block-{uuid.uuid4().hex}"  # no text of the notebook can be taken for it

    def put(output: Any, block: str) -> None:
        place = f"{slot}-{len(placed) + 1}."
        placed[place] = block
        output.data = {"text/html": place}

    for cell in notebook.cells:
        without_code = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
        if cell.cell_type == "markdown" and re.search(r"(?<![\\$])\$[^$\n]+\$", without_code):
            page.flags.append("formulas between dollar signs are shown as they were typed")
        if "outputs" in cell:
            cell.outputs = _one_stream_each(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _as_in_the_end(output.text)
            elif output.output_type == "error":
                page.flags.append(f"a cell ended with {output.ename}")
            elif PLOTLY in output.data:
                figure = output.data[PLOTLY]
                page.n_figures += 1
                page.trace_types |= trace_types(figure)
                title = str(output.metadata.get(TITLE) or "")
                if output.metadata.get(HERO):
                    page.hero = Hero(figure, title, str(output.metadata[HERO]))
                put(output, figure_block(figure, page.n_figures, title))
            elif WIDGET in output.data:
                output.data = {"text/html": f'<p class="small">{html.escape(LEFT_OUT)}</p>'}
            elif CARDS in output.data:
                page.n_cards += len(output.data[CARDS].get("cards", []))
                fallback = Markup(safe_html(output.data.get("text/html", ""), page.flags))
                put(output, blocks().cards(Markup(script_json(output.data[CARDS])), fallback))
    return placed


def trace_types(figure: dict[str, Any]) -> set[str]:
    """Return the types of a figure's traces (plotly's JSON), also of those that its frames bring."""
    frames = (frame.get("data") or [] for frame in figure.get("frames") or [])
    return {trace.get("type", "scatter") for traces in (figure.get("data") or [], *frames) for trace in traces}


def plotly_script(types: Set[str]) -> tuple[str, bool]:
    """Return the plotly.js that draws traces of these types, and whether it compiles code as it runs (WebGL).

    The small bundle serves only beside the plotly of the same version, whose figures it is known to understand.
    """
    if types <= IN_SMALL:
        small = SMALL.read_text(encoding="utf-8")
        if f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}\n" in small[:200]:
            return small, False
    return get_plotlyjs(), True


def plain(text: object) -> str:
    """A text of plotly's pseudo-HTML without its tags, entities and forced line breaks."""
    return " ".join(html.unescape(re.sub(r"</?(?:br|b|i|sup|sub|span)\b[^>]*>", " ", str(text or ""))).split())


def _title(holder: Any) -> str:
    """The title of a layout or an axis: a text or an object."""
    title = holder.get("title") if isinstance(holder, dict) else None
    return plain(title.get("text") if isinstance(title, dict) else title)


def in_words(spec: dict[str, Any]) -> str:
    """Series, axes, views and steps of a figure (plotly's JSON), for who has no scripts or does not see it."""
    layout = spec.get("layout") or {}
    names = list(dict.fromkeys(name for trace in spec.get("data") or [] if (name := plain(trace.get("name")))))
    menus = [menu for menu in layout.get("updatemenus") or [] if menu.get("type") == "dropdown"]
    views = [plain(button.get("label")) for menu in menus for button in menu.get("buttons") or []]
    steps = [plain(step.get("label")) for slider in layout.get("sliders") or [] for step in slider.get("steps") or []]
    more = f" and {len(names) - SERIES_NAMED} more" if len(names) > SERIES_NAMED else ""
    parts = {
        "Series": ", ".join(names[:SERIES_NAMED]) + more,
        "Across": _title(layout.get("xaxis")),
        "Up": _title(layout.get("yaxis")),
        "Views": ", ".join(views),
        "Steps": ", ".join(steps),
    }
    return " ".join(f"{part}: {text}." for part, text in parts.items() if text) or "One series without a name."


def figure_block(spec: dict[str, Any], number: int, title: str) -> Markup:
    """The HTML of one figure (plotly's JSON), numbered from 1 on its page: caption, place to draw, words and JSON.

    A figure that was not shown by `rkcnn_lib.figures.show` has no ``title``: the caption repeats its own.
    """
    spec = fit_figure({key: spec[key] for key in ("data", "layout", "frames", "config") if spec.get(key)})
    layout = spec.get("layout", {})
    title = cut(visible(title), HOVER) if title else _title(layout)
    data = Markup(script_json(spec))  # in which nothing ends the element
    return blocks().figure(number, title, in_words(spec), int(layout.get("height") or 450), data)


def _one_stream_each(outputs: list[Any]) -> list[Any]:
    """Join what a cell wrote to stdout, and to stderr: a progress bar leaves an output for every time it moved."""
    streams: dict[str, Any] = {}
    kept = []
    for output in outputs:
        name = output.get("name")  # a stream's
        if name in streams:
            streams[name].text += output.text
        else:
            kept.append(output)
            if name:
                streams[name] = output
    return kept


def _as_in_the_end(text: str) -> str:
    """What a terminal would show in the end: of a line rewritten by carriage returns, its last state.

    Warnings name files by where they lie on the machine that ran: of those paths only the package's part is kept.
    """
    text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+(?:site-packages/|(?=(?:rkcnn_lib|notebooks)/))", "", text)


def _order_headings(soup: BeautifulSoup, page: Rendered) -> None:
    """Give headings ids and levels without gaps below the page's own h1, and note the contents."""
    used: set[str] = set()
    previous = 1
    for other in soup.find_all(id=True):  # ids of a notebook's own HTML could collide with those of the page
        del other["id"]
    for heading in soup.find_all(re.compile("^h[1-6]$")):
        text = heading.get_text(" ", strip=True)
        if heading.name == "h1" and page.title is None and not used:
            page.title = text
            heading.decompose()
            continue
        level = max(2, min(int(heading.name[1]), previous + 1))
        heading.name, previous = f"h{level}", level
        slug = "s-" + (re.sub(r"[^a-z0-9]+", "-", text.lower())[:80].strip("-") or "section")
        names = itertools.chain([slug], (f"{slug}-{n}" for n in itertools.count(2)))
        anchor = next(name for name in names if name not in used)
        used.add(anchor)
        heading["id"] = anchor
        if level <= 3:
            page.contents.append((level, anchor, cut(text, 120)))
        link = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{anchor}", "aria-label": "link to here"})
        link.string = "#"
        heading.append(link)
