"""What README shows of published runs: `python docs/from_runs.py` draws docs/recovery.svg and prints the verdicts.

The picture says which true directions each start finds, before and after training, in the reader's light or dark theme.
The table has a row a hypothesis and a column a world. A test holds README to both.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.figures.style import style_of
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.pages import answers
from rkcnn_lib.vocabulary import HYPOTHESES

PUBLISHED = Path(__file__).parents[1] / "outputs/published"
WORLDS = ("planted", "atlas", "gemma")  # the first has the truth that the picture shows
PICTURE = Path(__file__).parent / "recovery.svg"

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


def picture(metrics: pd.DataFrame, world: str, n_seeds: int) -> str:
    """Return the SVG of a run's metrics (arm, seed, metric, value)."""
    title = f"True directions that a start finds, one-to-one at cosine 0.9 ({world}, {n_seeds} seeds)"
    shown = metrics[metrics["metric"].isin(BARS)]
    means = shown.groupby(["arm", "metric"])["value"].mean().unstack()
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
            values = shown[(shown["arm"] == arm) & (shown["metric"] == metric)]["value"].to_numpy()
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


def table(records: list[dict[str, Any]]) -> str:
    """Return the verdicts of several runs as a Markdown table."""
    columns = [{one.hypothesis.split(":")[0]: one.sentence for one in answers.answers(record)} for record in records]
    heads = [f"{answers.place(record)}, {record['parameters']['n_seeds']} seeds" for record in records]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for hypothesis in dict.fromkeys(name for column in columns for name in column):
        claim = f"{hypothesis}: {HYPOTHESES[hypothesis][0]}"
        told = [re.sub("undecided on [^;]*", "undecided on the rest", column.get(hypothesis, "")) for column in columns]
        lines.append(f"| **{claim}** | {' | '.join(told)} |")
    return "\n".join(lines)


def read(world: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return run.json and the metrics of the published 04 of a world."""
    folder = PUBLISHED / world / "runs" / "04_sae_compare"
    return json.loads((folder / "run.json").read_text(encoding="utf-8")), pd.read_parquet(folder / "metrics.parquet")


if __name__ == "__main__":
    record, metrics = read(WORLDS[0])
    PICTURE.write_text(picture(metrics, answers.place(record), record["parameters"]["n_seeds"]), encoding="utf-8")
    print(table([read(world)[0] for world in WORLDS]))
