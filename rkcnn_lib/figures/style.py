"""The visual language of every figure: colours, markers, template, labels, escaping.

One arm or miner has one colour *and* one marker everywhere, so that a reader who cannot tell two hues apart
still tells two arms apart. The ten colours were chosen by maximising the smallest CIELAB distance among them
as seen with normal vision, protanopia, deuteranopia and tritanopia (simulation matrices of Machado, Oliveira
& Fernandes 2009), within the luminance band that keeps a contrast of 3:1 on white and on a dark page alike.
"""

import hashlib
import html
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import hex_to_rgb


@dataclass(frozen=True)
class Style:
    """How one arm, miner or group is drawn: a colour (#rrggbb) and a plotly marker symbol."""

    colour: str
    marker: str


_TABLES = tomllib.loads(Path(__file__).with_name("style.toml").read_text(encoding="utf-8"))
STYLES = {name: Style(*look) for name, look in _TABLES["styles"].items()}
_SPARE_COLOURS = ("#8a6fb0", "#2f9447", "#9c7a52", "#d0527a", "#4f83a8")
_SPARE_MARKERS = ("square-cross", "diamond-tall", "hourglass", "bowtie", "circle-cross")

GREY = "#808080"  # of chance and of what is true, in every figure; no arm is grey
CHANCE_FILL = "rgba(128, 128, 128, 0.28)"
# Blue, near-white, red: signed values, always centred on zero.
DIVERGING = [[0.0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1.0, "#b2182b"]]
SEQUENTIAL = "Cividis"
# Hues to follow features by, none of them dark or pale enough to vanish on either page.
MANY_HUES = ["#5946f2", "#0d93f2", "#59937f", "#7d7f16", "#f26c0d", "#d0527a", "#b920b9"]

METRIC_LABELS: dict[str, str] = _TABLES["labels"]


def escape(text: object) -> str:
    """Text from data made safe for plotly's pseudo-HTML, which decodes ``&lt; &gt; &amp;`` only, and for HTML text."""
    return html.escape(str(text), quote=False)


def number(value: float) -> str:
    """A number for a hover or a label: three significant places, whole counts as they are."""
    if not np.isfinite(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.3g}"


def label(name: object) -> str:
    """The axis label of a metric, with its unit; an unknown name is shown as it is, escaped."""
    return METRIC_LABELS.get(str(name), escape(str(name)))


def short(name: object) -> str:
    """The label of a metric without its explanation and unit, for menus."""
    return re.split(r" \(|: ", label(name))[0]


def style_of(name: object) -> Style:
    """The colour and marker of an arm, miner or group: fixed for known names, else a spare by the name's digest."""
    if str(name).count(" - ") == 1:  # a contrast: the hue of its baseline, the marker of its arm
        arm, baseline = (style_of(part) for part in str(name).split(" - "))
        return Style(baseline.colour, arm.marker)
    key = _TABLES["aliases"].get(str(name), str(name))
    if key in STYLES:
        return STYLES[key]
    digest = hashlib.sha256(str(name).encode()).digest()
    return Style(_SPARE_COLOURS[digest[0] % len(_SPARE_COLOURS)], _SPARE_MARKERS[digest[1] % len(_SPARE_MARKERS)])


def named(name: object, hover: str) -> dict[str, Any]:
    """What a trace of data says of itself: its name in the legend, all traces of it one group, and on hover."""
    shown = escape(name)
    return {"name": shown, "legendgroup": shown, "hovertemplate": f"<b>{shown}</b>{hover}<extra></extra>"}


def arm_order(names: list[str], order: Iterable[str] = STYLES) -> list[str]:
    """Known names in an order, by default that of the palette (rivals first, then RkCNN), then others as they came."""
    known = [name for name in order if name in names]
    return known + [name for name in names if name not in known]


def faint(colour: str, alpha: float = 0.18) -> str:
    """A ``#rrggbb`` colour as ``rgba`` with the given opacity in [0, 1], for bands."""
    return f"rgba{(*hex_to_rgb(colour), alpha)}"


_LINE = "#8a8f98"
_AXIS = {
    "showline": True, "linecolor": _LINE, "linewidth": 1, "gridcolor": "#e3e6ea", "zerolinecolor": "#b4b9c1",
    "zerolinewidth": 1, "ticks": "outside", "tickcolor": _LINE, "ticklen": 4, "automargin": True,
    "exponentformat": "none", "title": {"standoff": 10},
}  # fmt: skip
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
pio.templates["rkcnn"] = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": "#24292f"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "colorway": [style.colour for style in STYLES.values()],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"size": 12}, "namelength": -1},
        "legend": {"itemsizing": "constant", "tracegroupgap": 0, "bgcolor": "rgba(0, 0, 0, 0)"},
        "margin": {"l": 60, "r": 24, "t": 30, "b": 56},
        "colorscale": {"diverging": DIVERGING},
        "updatemenudefaults": {"bgcolor": "#f3f4f6", "bordercolor": "#c4c9d0", "font": {"size": 12}},
        "sliderdefaults": {"bgcolor": "#e3e6ea", "bordercolor": "#c4c9d0", "font": {"size": 12}},
    }
)
