"""Figures that compare SAE arms: metrics, training curves, paired differences, frozen dictionaries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, finish, scale_buttons
from rkcnn_lib.figures.dots import arm_order, dot_plot
from rkcnn_lib.figures.inputs import checked, in_order, metrics_of
from rkcnn_lib.figures.parts import box, chance_bands, line_of_seeds, number, rows_axis, window
from rkcnn_lib.figures.style import (
    CHANCE_FILL,
    UNJUDGED,
    VERDICT_STYLES,
    escape,
    label,
    rival,
    short,
)

FAR = 10.0  # margins from 0 beyond which the overview gives a number instead of a place


def arm_metrics(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Metrics of each arm: a dot a seed, the mean with its 95 % interval, a drop-down over the metrics.

    Parameters
    ----------
    table : DataFrame
        Columns arm, seed, metric, value and, where the metric has them, chance_mean and chance_upper.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["arm", "seed", "metric", "value"], ["value"], "arm_metrics")
    return dot_plot(table, "arm", title)


def arm_lines(table: pd.DataFrame, x: str) -> list[go.Scatter]:
    """A line an arm along ``x`` with the range of its seeds, and the chance band where the table has one."""
    traces = chance_bands(table, x)
    for arm in arm_order([str(name) for name in in_order(table["arm"])]):
        traces += line_of_seeds(table[table["arm"].astype(str) == arm], x, arm)
    return traces


def _lines_by_metric(table: pd.DataFrame, x: str) -> go.Figure:
    """A figure of `arm_lines`, one metric at a time by a drop-down."""
    fig = go.Figure()
    choices = Choices(fig)
    for metric, part in metrics_of(table):
        choices.add(short(metric), arm_lines(part, x), {"yaxis.title.text": label(metric)})
    choices.close()
    return fig


def _axis_of_k(ks: pd.Series, title: str) -> dict[str, object]:
    """A log axis with a tick at each k that was asked for."""
    ticks = sorted(ks.unique())
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [f"{k:g}" for k in ticks]}


def training_curves(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Metrics during training: the mean over seeds as a line, the range of the seeds as a band.

    Parameters
    ----------
    table : DataFrame
        Columns arm, seed, step, metric, value.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["arm", "seed", "step", "metric", "value"], ["step", "value"], "training_curves")
    fig = _lines_by_metric(table, "step")
    scale_buttons(fig, "xaxis", "log" if table["step"].min() > 0 else "linear")
    return finish(fig, title, height=430, legend="right", xaxis={"title": "training step"})


def quality_front(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Quality against L0: a line an arm through the SAEs trained at several k, a drop-down over the metrics.

    Parameters
    ----------
    table : DataFrame
        Columns arm, seed, k (asked), l0 (active latents a token, measured), metric, value.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["arm", "seed", "k", "l0", "metric", "value"], ["k", "l0", "value"], "quality_front")
    table = table.assign(l0=table.groupby(["arm", "k"])["l0"].transform("mean"))  # one point for all seeds of a k
    fig = _lines_by_metric(table, "l0")
    return finish(fig, title, height=430, legend="right", xaxis=_axis_of_k(table["k"], label("l0")))


def paired_differences(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Forest plot of differences paired by seed, with their intervals, the margins and the verdicts.

    Parameters
    ----------
    table : DataFrame
        Columns contrast, metric, difference, low, high, delta, verdict (None where none is given), n_seeds.
        Positive means that the first arm of the contrast is better.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["contrast", "metric", "difference", "low", "high", "delta", "verdict", "n_seeds"]
    table = checked(table, columns, ["difference"], "paired_differences")
    fig = go.Figure()
    choices = Choices(fig)
    rows = in_order(table["contrast"].astype(str))
    for metric, part in metrics_of(table):
        traces: list[go.Scatter] = []
        for row, contrast in enumerate(rows):
            here = part[part["contrast"].astype(str) == contrast]
            for _, one in here.iterrows():
                traces += _difference(row, one, legend=not traces)
        deltas = part["delta"].astype(float).fillna(0).abs()
        axis = window(part["difference"], part[["low", "high"]].to_numpy(float), [0, *deltas * 1.2, *-deltas * 1.2])
        what = f"difference in {label(metric)}; right of 0: the first arm is better"
        choices.add(short(metric), traces, {"xaxis.range": axis, "xaxis.title.text": what})
    choices.close()
    return finish(
        fig, title, height=110 + 58 * len(rows), legend="top",
        yaxis=rows_axis(rows), xaxis={"zerolinewidth": 2},
    )  # fmt: skip


def verdict_overview(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Every judged contrast on one axis: the difference in multiples of its own margin, positive meaning better.

    A difference of more than 10 margins lies outside of the axis, and a note at its edge says how far.

    Parameters
    ----------
    table : DataFrame
        Columns hypothesis, contrast, difference, low, high, delta (positive), contrast_verdict, n_seeds, and said:
        in words where the interval lies.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty, lacks a column or a margin is not positive.
    """
    columns = ["hypothesis", "contrast", "difference", "low", "high", "delta", "contrast_verdict", "n_seeds", "said"]
    table = checked(table, columns, ["difference", "delta"], "verdict_overview")
    if (table["delta"] <= 0).any():
        raise ValueError("verdict_overview: margins must be positive, differences are shown in multiples of them")
    baselines = table["contrast"].map(rival)
    in_margins = table.assign(
        **{end: table[end].astype(float) / table["delta"] for end in ("difference", "low", "high")},
        delta=1.0,
        metric="margins",
        verdict=table["contrast_verdict"],
        contrast=table["hypothesis"].astype(str) + " - " + baselines,
    )
    fig = paired_differences(in_margins, title)
    fig.update_xaxes(title="advantage of mined starts, in multiples of each margin δ")
    fig.update_yaxes(ticktext=[row.replace("<br>− ", "<br>against ") for row in fig.layout.yaxis.ticktext])
    far = in_margins["difference"].abs() > FAR
    if far.any():
        near = in_margins[~far]
        axis = window([0, *near["difference"]], near[["low", "high"]].to_numpy(float), [-2, 2])
        axis = [max(axis[0], -FAR), min(axis[1], FAR)]
        rows = in_order(in_margins["contrast"])
        for _, one in in_margins[far].iterrows():
            left = one["difference"] < 0
            said = f"{one['said']}, by {abs(one['difference']):.0f} margins"
            fig.add_annotation(
                x=axis[0] if left else axis[1], y=rows.index(one["contrast"]), showarrow=False, font={"size": 11},
                xanchor="left" if left else "right", text=f"◀ {escape(said)}" if left else f"{escape(said)} ▶",
            )  # fmt: skip
        fig.update_xaxes(range=axis)
    return fig


def _difference(row: int, one: pd.Series, legend: bool) -> list[go.Scatter]:
    judged = one["verdict"] if isinstance(one["verdict"], str) else None
    said = escape(one.get("said", judged or "no verdict"))
    style = VERDICT_STYLES.get(judged or "", UNJUDGED)
    traces: list[go.Scatter] = []
    delta = float(one["delta"]) if pd.notna(one["delta"]) else 0.0
    if delta > 0:
        traces.append(box(-delta, delta, row, 0.42, CHANCE_FILL, "within the margin ±δ", legend))
    known = bool(np.isfinite([float(one["low"]), float(one["high"])]).all())  # one seed: infinite
    bounds = f"{number(one['low'])} to {number(one['high'])}" if known else "none"
    traces.append(
        go.Scatter(
            x=[one["difference"]],
            y=[row],
            mode="markers+text",
            marker={"color": style.colour, "symbol": style.marker, "size": 12},
            text=[said],
            textposition="top center",
            cliponaxis=False,
            textfont={"size": 11},
            error_x={
                "type": "data", "symmetric": False, "visible": known, "color": style.colour,
                "array": [one["high"] - one["difference"] if known else 0],
                "arrayminus": [one["difference"] - one["low"] if known else 0],
                "thickness": 2.5, "width": 7,
            },
            showlegend=False,
            hovertemplate=f"<b>{escape(one['contrast'])}</b><br>difference {number(one['difference'])}"
            f"<br>interval {bounds}<br>margin ±{number(delta)}, {escape(one['n_seeds'])} seeds"
            f"<br>{said}<extra></extra>",
        )
    )  # fmt: skip
    return traces


def frozen_dictionary(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Explained variance of held-out activations coded with each arm's directions, against the number of atoms.

    Parameters
    ----------
    table : DataFrame
        Columns arm, seed, k (atoms a token), value (explained variance, share).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["arm", "seed", "k", "value"], ["k", "value"], "frozen_dictionary")
    fig = go.Figure(arm_lines(table, "k"))
    return finish(
        fig,
        title,
        height=420,
        legend="right",
        xaxis=_axis_of_k(table["k"], "directions a token (k)"),
        yaxis={"title": "explained variance, frozen dictionary (share)"},
    )
