"""Figures of mined directions against the truth and of the scores they were chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, add_slider, finish, log_axis, scale_buttons
from rkcnn_lib.figures.dots import dot_plot
from rkcnn_lib.figures.inputs import as_array, checked, checked_arrays, in_order, metrics_of
from rkcnn_lib.figures.parts import (
    box,
    mean_with_interval,
    number,
    rows_axis,
    seed_dots,
    steps,
    window,
)
from rkcnn_lib.figures.style import (
    CHANCE_FILL,
    CHANCE_LINE,
    DIVERGING,
    NEUTRAL,
    escape,
    style_of,
)
from rkcnn_lib.figures.toy import arrows, plane_layout, unit_circle


def mined_versus_true(cosines: Mapping[str, Any], title: str | None = None) -> go.Figure:
    """Heat map of the signed cosines of true features with mined directions, one miner at a time.

    Parameters
    ----------
    cosines : mapping of str to array (n_true, n_mined)
        Signed cosines in [-1, 1]; columns in the order of the matching, so that matches lie on the diagonal.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given, an array is no matrix, or a value lies outside [-1, 1].
    """
    arrays = checked_arrays(cosines, "mined_versus_true", ndim=2)
    fig = go.Figure()
    choices = Choices(fig)
    for name, values in arrays.items():
        if np.abs(values).max() > 1 + 1e-4:
            raise ValueError(f"mined_versus_true, {name!r}: cosines must lie in [-1, 1]")
        diagonal = np.diagonal(values)
        shown = escape(name)
        heat = go.Heatmap(
            z=values.astype(np.float32),
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar={"title": {"text": "cosine"}, "thickness": 12},
            name=shown,
            hovertemplate=f"<b>{shown}</b><br>true feature %{{y}}, mined direction matched to feature %{{x}}"
            "<br>cosine %{z:.3f}<extra></extra>",
        )
        choices.add(
            f"{shown}: mean {diagonal.mean():.2f}, {values.shape[1]} directions",
            [heat],
            {"xaxis.title.text": f"mined direction ({shown}), in the order of its match"},
        )
    choices.close()
    return finish(
        fig,
        title,
        height=470,
        xaxis={"showgrid": False, "zeroline": False, "constrain": "domain"},
        yaxis={"showgrid": False, "zeroline": False, "autorange": "reversed", "title": "true feature"},
    )


def _arrow_data(points: np.ndarray) -> dict[str, Any]:
    x, y = arrows(points)
    ids = [i // 3 for i in range(len(x))]
    return {"type": "scatter", "x": x, "y": y, "customdata": ids}


def mined_slider(frames: Mapping[str, tuple[Any, Any]], title: str | None = None) -> go.Figure:
    """Mined directions against true ones on a plane, with a slider from noise to mined that begins at its end.

    Parameters
    ----------
    frames : mapping of str to (truth (n, 2), mined (m, 2))
        Coordinates on one common plane; m may differ between frames and be 0. One frame has no slider.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given or an array is not (n, 2).
    """
    if not frames:
        raise ValueError("mined_slider: nothing was given, so there is nothing to draw")
    data: dict[str, list[dict[str, Any]]] = {}
    reach = 1.0
    for name, (truth, mined) in frames.items():
        what = f"mined_slider, {name!r}"  # a calibrated miner may rightly return nothing, the truth never is nothing
        pair = [as_array(truth, what, 2, columns=2), as_array(mined, what, 2, columns=2, may_be_empty=True)]
        reach = max(reach, float(np.linalg.norm(np.concatenate(pair), axis=1).max()))
        data[str(name)] = [_arrow_data(part) for part in pair]
    true_lines, mined_lines = list(data.values())[-1]
    style = style_of("mined")
    head = {"symbol": "arrow", "angleref": "previous", "size": 13}
    fig = go.Figure(
        [
            go.Scatter(
                **true_lines,
                mode="lines",
                line={"color": NEUTRAL, "width": 6},
                opacity=0.5,
                name="true directions",
                hovertemplate="true feature %{customdata}<br>(%{x:.2f}, %{y:.2f})<extra></extra>",
            ),
            go.Scatter(
                **mined_lines,
                mode="lines+markers",
                line={"color": style.colour, "width": 2},
                marker=head | {"color": style.colour},
                name="mined directions",
                hovertemplate="direction %{customdata}<br>(%{x:.2f}, %{y:.2f})<extra></extra>",
            ),
            unit_circle(),
        ]
    )
    if len(data) > 1:  # a slider that cannot be moved would look broken
        add_slider(fig, data, play=True, active=len(data) - 1)
    layout = plane_layout(reach)
    layout["xaxis"]["title"], layout["yaxis"]["title"] = "first axis of the plane", "second axis of the plane"
    return finish(fig, title, height=520, legend="right", **layout)


def recovery_by_miner(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Recovery by each miner: a dot a seed, the mean with its 95 % interval, its own grey chance band.

    Parameters
    ----------
    table : DataFrame
        Columns miner, seed, value, chance_mean, chance_upper; with a column metric, a drop-down over it.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["miner", "seed", "value", "chance_mean", "chance_upper"]
    table = checked(table, columns, ["value", "chance_mean", "chance_upper"], "recovery_by_miner")
    return dot_plot(table, "miner", title)


def selectivity(
    table: pd.DataFrame, title: str | None = None, measured: str = "balanced accuracy on new rows (share)"
) -> go.Figure:
    """How well the best, random and worst subsets (and the full space) separate labels, beside permuted ones.

    Parameters
    ----------
    table : DataFrame
        Columns group (top, random, bottom, full), seed or label, value, null (the same under permuted labels; a
        group's grey band holds 95 % of its rows). Where chance_mean and chance_upper are given they make the
        band instead. With a column probe, a drop-down over it. Rows of one seed (several labels) count as one
        in the interval.
    title : str, optional
        The finding, in words.
    measured : str
        What a value is, for the axis.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["group", "value", "null"], ["value", "null"], "selectivity")
    by = next((name for name in ("seed", "label") if name in table.columns), None)
    if by is None:
        raise ValueError("selectivity: the table needs a column seed or label")
    usual = ["top", "random", "bottom", "full"]
    present = in_order(table["group"])
    groups = [g for g in usual if g in present] + [g for g in present if g not in usual]
    fig = go.Figure()
    choices = Choices(fig)
    for probe, part in metrics_of(table, "probe"):
        traces: list[go.Scatter] = []
        bands: list[float] = []
        for row, group in enumerate(groups):
            here = part[part["group"] == group]
            if len(here):
                low, high, name = _permuted(here)
                traces.append(box(low, high, row, 0.42, CHANCE_FILL, name, legend=not bands))
                traces += _group_row(row, group, here, by)
                bands += [low, high]
        axis = window(part["value"], keep=bands)
        choices.add(f"probe: {escape(probe)}" if probe else "value", traces, {"xaxis.range": axis})
    choices.close()
    x_axis = {"title": measured}
    return finish(fig, title, height=110 + 62 * len(groups), legend="top", xaxis=x_axis, yaxis=rows_axis(groups))


def _permuted(here: pd.DataFrame) -> tuple[float, float, str]:
    if {"chance_mean", "chance_upper"} <= set(here.columns):
        low, high = (float(here[name].astype(float).mean()) for name in ("chance_mean", "chance_upper"))
        return low, high, "permuted labels: mean to 95 % point"
    low, high = (float(here["null"].quantile(q)) for q in (0.025, 0.975))
    return low, high, "permuted labels: 95 % of draws"


def _group_row(row: int, group: str, here: pd.DataFrame, by: str) -> list[go.Scatter]:
    style, values = style_of(group), here["value"].to_numpy()
    labels = here["label"] if "label" in here.columns else [None] * len(here)
    texts = [
        f"{escape(group)} subsets, {by} {escape(which)}"
        + (f", {escape(name)}" if name is not None and by != "label" else "")
        + f"<br>{number(value)} (permuted labels: {number(null)})"
        for which, name, value, null in zip(here[by], labels, values, here["null"], strict=True)
    ]
    per_replicate = here.groupby(by)["value"].mean().to_numpy()
    return [
        seed_dots(row, values, texts, style),
        mean_with_interval(row + 0.12, per_replicate, style, group, f"<b>{escape(group)} subsets</b>"),
    ]


def score_distribution(
    scores: Mapping[str, Any],
    threshold: float | None = None,
    null_maxima: Any | None = None,
    title: str | None = None,
) -> go.Figure:
    """Histograms of scores with the maxima that surrogate data reach and the threshold drawn from them.

    Parameters
    ----------
    scores : mapping of str to array (n,)
        Scores by group, for instance "data" and "surrogate".
    threshold : float, optional
        The score that a direction must beat, in the scores' unit.
    null_maxima : array (n_draws,), optional
        The largest score of each surrogate search, in the same unit.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given or an array is empty or not one-dimensional.
    """
    arrays = checked_arrays(scores, "score_distribution", ndim=1)
    if null_maxima is not None:
        maxima = as_array(null_maxima, "score_distribution, null_maxima", ndim=1)
    pooled = np.concatenate([*arrays.values(), *([maxima] if null_maxima is not None else [])])
    log = pooled.min() > 0 and pooled.max() > 50 * np.median(pooled)
    edges = np.geomspace(pooled.min(), pooled.max() * 1.001, 61) if log else np.histogram_bin_edges(pooled, 60)
    traces = [steps(values, edges, name, style_of(name).colour) for name, values in arrays.items()]
    if null_maxima is not None:
        name = f"largest of each null search ({len(maxima)} draws)"
        traces.append(steps(maxima, edges, name, CHANCE_LINE, fill=CHANCE_FILL))
    fig = go.Figure(traces)
    if threshold is not None:
        top = max(float(np.max(trace.y)) for trace in traces)
        fig.add_trace(
            go.Scatter(
                x=[threshold, threshold], y=[0, top], mode="lines", name=f"threshold {number(threshold)}",
                line={"color": NEUTRAL, "width": 2, "dash": "dash"},
                hovertemplate=f"threshold {number(threshold)}<extra></extra>",
            )
        )  # fmt: skip
    scale_buttons(fig, "yaxis", "linear")
    return finish(
        fig,
        title,
        height=400,
        legend="right",
        xaxis=(log_axis(pooled) if log else {}) | {"title": "score"},
        yaxis={"title": "share of the group"},
    )
