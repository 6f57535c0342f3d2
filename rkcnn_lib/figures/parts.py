"""The parts that figures are put together from: bands, dots, means with their intervals, lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.inputs import in_order
from rkcnn_lib.figures.style import CHANCE_FILL, CHANCE_LINE, Style, escape, faint, style_of


def summary(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval; below two values the interval is NaN, for there is none."""
    from rkcnn_lib.measure.statistics import mean_interval

    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    mean, low, high = mean_interval(values)
    return float(mean), float(low), float(high)


def number(value: float) -> str:
    """A number for a hover or a label: three significant places, whole counts as they are."""
    if not np.isfinite(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.3g}"


def band(
    x: Any, low: Any, high: Any, fill: str, name: str = "", group: str | None = None, legend: bool = False
) -> go.Scatter:
    """A filled region between ``low`` and ``high`` along ``x``; it answers no hover."""
    x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([low, high[::-1]]),
        fill="toself",
        fillcolor=fill,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=name,
        legendgroup=group,
        showlegend=legend,
    )


def box(x0: float, x1: float, y: float, half: float, fill: str, name: str, legend: bool) -> go.Scatter:
    """A filled rectangle around one row of a dot plot: the chance band or a margin of that row."""
    return go.Scatter(
        x=[x0, x1, x1, x0, x0],
        y=[y - half, y - half, y + half, y + half, y - half],
        fill="toself",
        fillcolor=fill,
        line={"width": 1, "color": CHANCE_LINE},
        mode="lines",
        hoverinfo="skip",
        name=name,
        legendgroup=name,
        showlegend=legend,
    )


def mean_with_interval(
    y: float, values: np.ndarray, style: Style, name: str, hover: str, symbol: str | None = None
) -> go.Scatter:
    """The mean of one row of a dot plot, with its interval as an error bar."""
    mean, low, high = summary(values)
    known = np.isfinite(low)
    said = f"95 % interval {number(low)} to {number(high)}" if known else "one seed: no interval"
    return go.Scatter(
        x=[mean],
        y=[y],
        mode="markers",
        marker={"color": style.colour, "symbol": symbol or style.marker, "size": 13},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - mean if known else 0],
            "arrayminus": [mean - low if known else 0],
            "color": style.colour,
            "thickness": 2.5,
            "width": 7,
            "visible": bool(known),
        },
        name=escape(name),
        showlegend=False,
        hovertemplate=f"{hover}<br>mean of {len(values)}: {number(mean)}<br>{said}<extra></extra>",
    )


def seed_dots(y: float, values: np.ndarray, texts: Sequence[str], style: Style) -> go.Scatter:
    """One open dot a seed, spread a little below the row's mean so that equal values stay visible."""
    spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
    return go.Scatter(
        x=np.asarray(values, dtype=np.float32),
        y=(y - 0.2 + spread * 0.8).astype(np.float32),
        mode="markers",
        marker={"color": style.colour, "symbol": style.marker, "size": 7, "opacity": 0.6},
        text=list(texts),
        showlegend=False,
        hovertemplate="%{text}<extra></extra>",
    )


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """The y axis of a dot plot whose rows are ``names``, first row on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [escape(name).replace(" - ", "<br>− ") for name in names],
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def window(values: Any, wide: Any = (), keep: Sequence[float] = ()) -> list[float]:
    """An axis range that holds ``values`` and ``keep`` and, up to three times their span, the ``wide`` ends.

    The t interval of two seeds is thirteen standard errors long: drawn whole it would press all dots into a
    line. It then runs out of the axis, and the hover names its ends.
    """
    core = np.asarray([*np.ravel(values), *keep], dtype=float)
    core = core[np.isfinite(core)]
    low, high = core.min(), core.max()
    span = high - low or abs(high) * 0.2 or 1.0
    ends = np.asarray([end for end in np.ravel(np.asarray(wide, dtype=float)) if np.isfinite(end)])
    if ends.size:
        low, high = min(low, max(ends.min(), low - 1.5 * span)), max(high, min(ends.max(), high + 1.5 * span))
    pad = 0.06 * (high - low or span)
    return [float(low - pad), float(high + pad)]


def steps(values: np.ndarray, edges: np.ndarray, name: str, colour: str, fill: str | None = None) -> go.Scatter:
    """A histogram as a filled step line; ``y`` is the share of ``values`` in each bin."""
    counts = np.histogram(values, edges)[0]
    share = counts / max(len(values), 1)
    shown = escape(name)
    return go.Scatter(
        x=[round(float(edge), 8) for edge in edges],
        y=[round(float(s), 6) for s in (*share, 0.0)],
        mode="lines",
        line={"color": colour, "width": 1.8, "shape": "hv"},
        fill="tozeroy",
        fillcolor=fill or faint(colour),
        name=shown,
        legendgroup=shown,
        customdata=[int(count) for count in (*counts, 0)],
        hovertemplate=f"<b>{shown}</b><br>from %{{x:.3g}}<br>%{{y:.2%}} (%{{customdata}})<extra></extra>",
    )


def line_of_seeds(table: pd.DataFrame, x: str, name: str, title: str | None = None) -> list[go.Scatter]:
    """The mean over seeds along ``x`` as a line, and the range from the lowest to the highest seed as a band."""
    style = style_of(name)
    grouped = table.groupby(x)["value"]
    mean, low, high, count = grouped.mean(), grouped.min(), grouped.max(), grouped.count()
    xs = mean.index.to_numpy(dtype=float)
    shown = escape(title or name)
    lines = go.Scatter(
        x=xs,
        y=mean.to_numpy(),
        mode="lines+markers",
        line={"color": style.colour, "width": 2},
        marker={"symbol": style.marker, "size": 8 if len(xs) < 40 else 4},
        name=shown,
        legendgroup=shown,
        customdata=np.stack([low, high, count], axis=1),
        hovertemplate=(
            f"<b>{shown}</b><br>{escape(x)} %{{x}}<br>mean %{{y:.4g}}, "
            "seeds from %{customdata[0]:.4g} to %{customdata[1]:.4g} (%{customdata[2]} seeds)<extra></extra>"
        ),
    )
    if (count < 2).all():
        return [lines]
    return [band(xs, low, high, faint(style.colour), group=shown), lines]


def chance_bands(table: pd.DataFrame, x: str) -> list[go.Scatter]:
    """Grey bands from the mean of chance to its 95 % point along ``x``: one where all lines share it."""
    columns = ["chance_mean", "chance_upper"]
    if not set(columns) <= set(table.columns):
        return []
    names = in_order(table["miner"] if "miner" in table else table["arm"])
    key = "miner" if "miner" in table else "arm"
    bands: list[go.Scatter] = []
    drawn: list[pd.DataFrame] = []
    for name in names:
        part = table[table[key] == name].dropna(subset=columns).groupby(x)[columns].mean().sort_index()
        if part.empty or any(part.shape == other.shape and np.allclose(part, other) for other in drawn):
            continue
        drawn.append(part)
        bands.append(
            band(
                part.index,
                part["chance_mean"],
                part["chance_upper"],
                CHANCE_FILL,
                name="chance: mean to 95 % point",
                group="chance",
                legend=len(drawn) == 1,
            )
        )
    return bands
