"""The plotly.js that pages load: the third of it that draws flat charts, or all of it where that is not enough."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs, get_plotlyjs_version

# plotly.js-cartesian-dist-min as its makers publish it (MIT); `make plotly-js` fetches it. Loading all of plotly.js
# takes a browser twice as long as drawing anything with it, and the rest of it is maps, finance and three dimensions.
SMALL = Path(__file__).parent / "assets" / "plotly-cartesian.min.js"
IN_SMALL = {
    *("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour"),
    *("image", "pie", "scatter", "scatterternary", "violin"),
}


def trace_types(figure: dict[str, Any]) -> set[str]:
    """Return the types of a figure's traces (plotly's JSON), also of those that its frames bring."""
    frames = (frame.get("data") or [] for frame in figure.get("frames") or [])
    return {trace.get("type", "scatter") for traces in (figure.get("data") or [], *frames) for trace in traces}


def script(types: Set[str]) -> tuple[str, bool]:
    """Return the plotly.js that draws traces of these types, and whether it compiles code as it runs (WebGL).

    The small bundle serves only beside the plotly of the same version, whose figures it is known to understand.
    """
    if types <= IN_SMALL:
        small = SMALL.read_text(encoding="utf-8")
        version = re.search(r"plotly\.js \(cartesian - minified\) v(\S+)", small[:200])
        if version and version[1] == get_plotlyjs_version():
            return small, False
    return get_plotlyjs(), True
