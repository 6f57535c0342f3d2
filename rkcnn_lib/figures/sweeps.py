"""Figures of sweeps over hyper-parameters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, finish
from rkcnn_lib.figures.dots import arm_order
from rkcnn_lib.figures.inputs import checked, in_order, metrics_of
from rkcnn_lib.figures.parts import number, summary, window
from rkcnn_lib.figures.style import escape, label, short, style_of


def sensitivity(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Each arm along one swept hyper-parameter at a time: means with 95 % intervals over seeds; a drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns axis, x (a value of the axis: number or text), arm, seed, metric, value.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["axis", "x", "arm", "seed", "metric", "value"], ["value"], "sensitivity")
    arms = arm_order([str(name) for name in in_order(table["arm"])])
    fig = go.Figure()
    choices = Choices(fig)
    for axis, along in metrics_of(table, "axis"):
        values = _ordered(along["x"])
        for metric, part in metrics_of(along):
            traces, ends = [], []
            for i, arm in enumerate(arms):
                trace, intervals = _line(part[part["arm"] == arm], values, arm, 0.06 * (i - (len(arms) - 1) / 2))
                traces.append(trace)
                ends += intervals
            layout = {
                "xaxis.title.text": escape(axis), "xaxis.tickvals": list(range(len(values))),
                "xaxis.ticktext": [escape(value) for value in values], "yaxis.title.text": label(metric),
                "xaxis.range": [-0.4, len(values) - 0.6], "yaxis.range": window(part["value"], ends),
            }  # fmt: skip
            choices.add(f"{escape(axis)}: {short(metric)}", traces, layout)
    choices.close()
    return finish(fig, title, height=420, legend="right")


def _ordered(values: pd.Series) -> list[object]:
    """Return an axis's distinct values: numbers in order, others as they come, after them."""
    found = in_order(values)
    numbers = sorted(value for value in found if isinstance(value, int | float | np.number))
    return numbers + [value for value in found if not isinstance(value, int | float | np.number)]


def _line(rows: pd.DataFrame, values: list[object], arm: str, shift: float) -> tuple[go.Scatter, list[float]]:
    style, shown = style_of(arm), escape(arm)
    places, means, lows, highs = [], [], [], []
    for place, value in enumerate(values):
        here = rows.loc[rows["x"] == value, "value"].to_numpy(float)
        if len(here):
            mean, low, high = summary(here)
            places.append(place)
            means.append(mean)
            lows.append(low)
            highs.append(high)
    above, below = (np.nan_to_num(np.subtract(a, b)) for a, b in ((highs, means), (means, lows)))
    trace = go.Scatter(
        x=np.add(places, shift),
        y=means,
        mode="lines+markers",
        line={"color": style.colour, "width": 1.5},
        marker={"color": style.colour, "symbol": style.marker, "size": 9},
        error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.6},
        name=shown,
        legendgroup=shown,
        text=[
            f"<b>{shown}</b> at {escape(values[place])}<br>mean {number(mean)}<br>"
            + (f"interval {number(low)} to {number(high)}" if np.isfinite(low) else "one seed: no interval")
            for place, mean, low, high in zip(places, means, lows, highs, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    return trace, [*lows, *highs]
