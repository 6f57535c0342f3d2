"""One figure on a page: its block, what it holds in words, and the plotly.js that draws it."""

from __future__ import annotations

import html
import re
from collections.abc import Set
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs, get_plotlyjs_version

from rkcnn_lib.strings import fit_figure, script_json

ASSETS = Path(__file__).parent / "assets"
SERIES_NAMED = 12
# plotly.js-cartesian-dist-min as its makers publish it (MIT); `make plotly-js` fetches it. Loading all of plotly.js
# takes a browser twice as long as drawing anything with it, and the rest of it is maps, finance and three dimensions.
SMALL = ASSETS / "plotly-cartesian.min.js"
IN_SMALL = {
    *("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour"),
    *("image", "pie", "scatter", "scatterternary", "violin"),
}


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
        version = re.search(r"plotly\.js \(cartesian - minified\) v(\S+)", small[:200])
        if version and version[1] == get_plotlyjs_version():
            return small, False
    return get_plotlyjs(), True


def plain(text: object) -> str:
    """A text of plotly's pseudo-HTML without its tags, entities and forced line breaks."""
    return " ".join(html.unescape(re.sub(r"</?(?:br|b|i|sup|sub|span)\b[^>]*>", " ", str(text or ""))).split())


def _title(holder: Any) -> str:
    """The title of a layout or an axis, which plotly writes as a text or as an object."""
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


def figure_block(number: int, spec: dict[str, Any]) -> str:
    """The HTML of one figure (plotly's JSON), numbered from 1 on its page.

    Its title as text, which wraps on a phone; a place to draw; its data in words; its JSON.
    """
    spec = fit_figure({key: spec[key] for key in ("data", "layout", "frames", "config") if spec.get(key)})
    layout = spec["layout"] = dict(spec.get("layout", {}))
    title = _title(layout)
    space = layout["meta"].get("rkcnn_title_space") if isinstance(layout.get("meta"), dict) else None
    if space is not None:  # a figure of ours: its title moves out of the drawing
        layout.pop("title", None)
        layout["height"] = layout["height"] - space
        layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] - space}
    caption = f"<b>Figure {number}.</b> {html.escape(title)}" if title else f"<b>Figure {number}</b>"
    caption += f' <a class="anchor" href="#figure-{number}" aria-label="link to figure {number}">#</a>'
    spoken = html.escape(f"Figure {number}. {title}", quote=True)
    return (
        f'<figure class="drawn" id="figure-{number}"><figcaption>{caption}</figcaption>'
        f'<div class="plot" id="plot-{number}" data-height="{int(layout.get("height") or 450)}" role="group"'
        f' aria-label="{spoken}" data-short="Figure {number}"></div>'
        f'<details class="figure-data" data-plot="plot-{number}"><summary>Data of this figure</summary>'
        f'<p class="small">{html.escape(in_words(spec))}</p><div class="figure-table"></div></details>'
        f'<script type="application/json" id="plot-{number}-data">{script_json(spec)}</script></figure>'
    )
