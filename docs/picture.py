"""Draw README's picture from a published run: which true directions each start finds, before and after training.

    python docs/picture.py outputs/published/planted/runs/04_sae_compare docs/recovery.svg

Reads the run's metrics.parquet and run.json. The SVG follows the reader's light or dark theme.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from rkcnn_lib.figures.style import style_of
from rkcnn_lib.measure.statistics import mean_interval

BARS = {  # metric: words, opacity, place of its key
    "untrained_recovery_rate": ("before training", 0.35, 0),
    "recovery_rate": ("after training", 1.0, 130),
    "rare_recovery_rate": ("after training, the rarest three tenths", 0.0, 250),
}
LEFT, WIDTH, RIGHT, TOP, BAR, GAP = 150, 520, 50, 64, 15, 16
LOOKS = """
text { font: 12px system-ui, sans-serif; fill: #59636e } .ink { fill: #1f2328; stroke: #1f2328 } .name { fill: #1f2328 }
line { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .ink { fill: #f0f6fc; stroke: #f0f6fc } .name { fill: #f0f6fc } line { stroke: #3d444d }
}
"""


def tag(name: str, inside: str = "", **attributes: object) -> str:
    """Return an SVG element; `class_` and `text_anchor` stand for class and text-anchor."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name}{given}>{inside}</{name}>"


def picture(metrics: pd.DataFrame, title: str) -> str:
    """Return the SVG of a run's metrics (arm, seed, metric, value)."""
    table = metrics[metrics["metric"].isin(BARS)]
    means = table.groupby(["arm", "metric"])["value"].mean().unstack()
    arms = means.sort_values("untrained_recovery_rate", ascending=False).index
    height = TOP + len(arms) * (len(BARS) * BAR + GAP) + 30
    parts = [tag("style", LOOKS), tag("text", escape(title), x=10, y=20, class_="name", font_weight=600)]
    for words, opacity, x in BARS.values():
        parts.append(tag("rect", x=LEFT + x, y=34, width=16, height=9, class_="ink", fill_opacity=opacity))
        parts.append(tag("text", words, x=LEFT + x + 21, y=43))
    for share in np.linspace(0, 1, 6):
        x = LEFT + share * WIDTH
        parts.append(tag("line", x1=x, x2=x, y1=TOP - 8, y2=height - 26))
        parts.append(tag("text", f"{share:.0%}", x=x, y=height - 10, text_anchor="middle"))
    for place, arm in enumerate(arms):
        y = TOP + place * (len(BARS) * BAR + GAP)
        parts.append(tag("text", escape(arm), x=LEFT - 10, y=y + 26, class_="name", text_anchor="end"))
        for i, (metric, (_, opacity, _)) in enumerate(BARS.items()):
            values = table[(table["arm"] == arm) & (table["metric"] == metric)]["value"].to_numpy()
            parts.append(_bar(arm, values, opacity, y + i * BAR) if len(values) else "")
    size = f"0 0 {LEFT + WIDTH + RIGHT} {height}"
    frame = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": size, "role": "img", "aria_label": escape(title)}
    return tag("svg", "\n".join(parts), **frame) + "\n"


def _bar(arm: str, values: np.ndarray, opacity: float, top: float) -> str:
    """Return a bar for the mean, a line for its 95 % interval over seeds, and the mean in words."""
    mean, low, high = (LEFT + WIDTH * value for value in mean_interval(values))
    colour, shape = style_of(arm).colour, {"y": top, "height": BAR - 4}
    line = {"x1": low, "x2": high, "y1": top + 5.5, "y2": top + 5.5, "style": f"stroke: {colour}; stroke-width: 2"}
    return (
        tag("rect", x=LEFT, width=mean - LEFT, fill=colour, stroke=colour, fill_opacity=opacity, **shape)
        + tag("line", **line)
        + tag("text", f"{values.mean():.0%}", x=max(mean, high) + 5, y=top + 10, font_size=10)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder with run.json and metrics.parquet")
    parser.add_argument("svg", type=Path)
    given = parser.parse_args()
    p = json.loads((given.run / "run.json").read_text(encoding="utf-8"))["parameters"]
    heading = f"True directions that a start finds, one-to-one at cosine 0.9 ({p['model']}, {p['n_seeds']} seeds)"
    given.svg.write_text(picture(pd.read_parquet(given.run / "metrics.parquet"), heading), encoding="utf-8")
