"""Figures of toy models of superposition: learned directions, geometry against sparsity, interference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, add_slider, finish, log_axis
from rkcnn_lib.figures.inputs import as_array, checked, checked_arrays
from rkcnn_lib.figures.parts import band, number
from rkcnn_lib.figures.style import DIVERGING, MANY_HUES, NEUTRAL, escape, faint, label, short, style_of

MAX_TICKS = 8  # as many probabilities are named one by one on the axis
CIRCLE = np.linspace(0, 2 * np.pi, 121)


def arrows(points: np.ndarray) -> tuple[list[float | None], list[float | None]]:
    """Segments from the origin to each of ``points (n, 2)``, separated by gaps, as plain lists."""
    x: list[float | None] = []
    y: list[float | None] = []
    for px, py in points:
        x += [0.0, round(float(px), 4), None]
        y += [0.0, round(float(py), 4), None]
    return x, y


def plane_layout(reach: float) -> dict[str, Any]:
    """Axes of a plane with equal aspect that hold a disc of radius ``reach``."""
    limits = [-1.08 * reach, 1.08 * reach]
    return {
        "xaxis": {"range": limits, "title": "hidden dimension 1", "constrain": "domain"},
        "yaxis": {"range": limits, "title": "hidden dimension 2", "scaleanchor": "x", "constrain": "domain"},
    }


def unit_circle() -> go.Scatter:
    """The circle of radius one, for the eye."""
    return go.Scatter(
        x=np.cos(CIRCLE).astype(np.float32),
        y=np.sin(CIRCLE).astype(np.float32),
        mode="lines",
        line={"color": NEUTRAL, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        name="unit circle",
    )


def _directions_data(points: np.ndarray) -> list[dict[str, Any]]:
    x, y = arrows(points)
    angles = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    norms = np.linalg.norm(points, axis=1)
    hover = [[i, round(float(n), 3), round(float(a), 1)] for i, (n, a) in enumerate(zip(norms, angles, strict=True))]
    return [
        {"type": "scatter", "x": x, "y": y},
        {
            "type": "scatter",
            "x": [round(float(v), 4) for v in points[:, 0]],
            "y": [round(float(v), 4) for v in points[:, 1]],
            "customdata": hover,
            "marker": {"color": list(range(len(points))), "colorscale": MANY_HUES, "size": 11, "showscale": False},
        },
    ]


def toy_directions(frames: Mapping[str, Any], title: str | None = None) -> go.Figure:
    """Feature directions of toy models with two hidden dimensions, one model a slider step.

    Parameters
    ----------
    frames : mapping of str to array (n_features, 2)
        The rows W_i of each model, keyed by what varies ("p = 0.1").
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given or an array is not (n_features, 2).
    """
    points = checked_arrays(frames, "toy_directions", ndim=2, columns=2)
    reach = max(1.0, max(float(np.linalg.norm(p, axis=1).max()) for p in points.values()))
    data = {name: _directions_data(p) for name, p in points.items()}
    lines, tips = next(iter(data.values()))
    fig = go.Figure(
        [
            go.Scatter(**lines, mode="lines", line={"color": faint("#24728c", 0.75), "width": 2}, hoverinfo="skip"),
            go.Scatter(
                **tips,
                mode="markers",
                hovertemplate="feature %{customdata[0]}<br>‖W_i‖ = %{customdata[1]}, angle %{customdata[2]}°"
                "<br>(dropped where the norm is below 0.5)<extra></extra>",
            ),
            unit_circle(),
        ]
    )
    add_slider(fig, data)
    return finish(fig, title, height=520, **plane_layout(reach))


def toy_curves(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Loss, represented features and dimensionality of toy models against the features' probability.

    Parameters
    ----------
    table : DataFrame
        Columns probability (0, 1], instance, loss, n_represented, mean_dimensionality; one row an instance.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    quantities = ["n_represented", "mean_dimensionality", "loss"]
    columns = ["probability", "instance", *quantities]
    table = checked(table, columns, ["probability"], "toy_curves")
    style = style_of("datapoint")
    fig = go.Figure()
    choices = Choices(fig)
    for quantity in quantities:
        part = checked(table, columns, ["probability", quantity], "toy_curves")
        grouped = part.groupby("probability")[quantity]
        low, mid, high = grouped.quantile(0.1), grouped.median(), grouped.quantile(0.9)
        dots = go.Scattergl if len(part) > 4000 else go.Scatter
        choices.add(
            short(quantity),
            [
                band(mid.index, low, high, faint(style.colour), name="10 % to 90 % of instances", legend=True),
                dots(
                    x=part["probability"].to_numpy(np.float32),
                    y=part[quantity].to_numpy(np.float32),
                    mode="markers",
                    marker={"color": style.colour, "size": 5, "opacity": 0.45},
                    customdata=[escape(i) for i in part["instance"]],
                    name="one instance",
                    hovertemplate="p = %{x:.3g}, instance %{customdata}<br>%{y:.4g}<extra></extra>",
                ),
                go.Scatter(
                    x=mid.index.to_numpy(float),
                    y=mid.to_numpy(),
                    mode="lines+markers",
                    line={"color": style.colour, "width": 2.5},
                    marker={"symbol": "line-ew-open", "size": 16, "line": {"width": 3}},
                    name="median",
                    hovertemplate="p = %{x:.3g}<br>median %{y:.4g}<extra></extra>",
                ),
            ],
            {"yaxis.title.text": label(quantity)},
        )
    choices.close()
    measured = np.sort(table["probability"].unique())
    x_axis = log_axis(measured) | {"title": "probability that a feature is active"}
    if len(measured) <= MAX_TICKS:
        x_axis |= {"tickmode": "array", "tickvals": measured, "ticktext": [number(p) for p in measured]}
    return finish(fig, title, height=420, legend="right", xaxis=x_axis)


def interference(W: Any, title: str | None = None) -> go.Figure:
    """Heat map of W Wᵀ: squared norms on the diagonal, interference between features off it.

    Parameters
    ----------
    W : array (n_features, n_hidden)
        The features' directions in hidden space, one a row.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If W is empty or not a matrix.
    """
    W = as_array(W, "interference", ndim=2)
    gram = (W @ W.T).astype(np.float32)
    limit = float(np.abs(gram).max()) or 1.0
    heat = go.Heatmap(
        z=gram,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        colorbar={"title": {"text": "W_i · W_j"}, "thickness": 12},
        hovertemplate="feature %{y} with feature %{x}<br>W_i · W_j = %{z:.3f}<extra></extra>",
    )
    axes = {"showgrid": False, "zeroline": False}
    return finish(
        go.Figure(heat),
        title,
        height=480,
        xaxis=axes | {"title": "feature"},
        yaxis=axes | {"title": "feature", "autorange": "reversed"},
    )
