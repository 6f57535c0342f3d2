"""Arrows from the origin of a plane, with a slider: features of toy models, mined directions against true ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rkcnn_lib.figures.display import add_slider, as_array, checked_arrays, finish
from rkcnn_lib.figures.style import MANY_HUES, NEUTRAL, faint, style_of

CIRCLE = np.linspace(0, 2 * np.pi, 121)


def arrows(
    frames: Mapping[str, list[dict[str, Any]]],
    looks: list[dict[str, Any]],
    first: int,
    reach: float,
    axes: tuple[str, str],
    play: bool = False,
) -> tuple[go.Figure, dict[str, Any]]:
    """The form: traces on a plane that a slider moves, inside the unit circle; the figure and the layout of its axes.

    ``frames`` holds each step's data (one dict a trace, plain lists), ``looks`` how each trace is drawn; the slider
    begins at step ``first``, and one frame has none: a slider that cannot be moved would look broken. ``reach`` is the
    longest arrow, at least 1.
    """
    shown = list(frames.values())[first]
    circle = go.Scatter(
        x=np.cos(CIRCLE).astype(np.float32),
        y=np.sin(CIRCLE).astype(np.float32),
        mode="lines",
        line={"color": NEUTRAL, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        name="unit circle",
    )
    fig = go.Figure([*(go.Scatter(**data, **look) for data, look in zip(shown, looks, strict=True)), circle])
    if len(frames) > 1:
        add_slider(fig, frames, play=play, active=first)
    axis = {"range": [-1.08 * reach, 1.08 * reach], "constrain": "domain"}
    return fig, {"xaxis": axis | {"title": axes[0]}, "yaxis": axis | {"title": axes[1], "scaleanchor": "x"}}


def _segments(points: np.ndarray) -> dict[str, Any]:
    """Segments from the origin to each of ``points (n, 2)``, separated by gaps, as plain lists."""
    x, y = ([end for point in points for end in (0.0, round(float(point[axis]), 4), None)] for axis in (0, 1))
    return {"type": "scatter", "x": x, "y": y}


def _reach(arrays: Any) -> float:
    return max(1.0, *(float(np.linalg.norm(points, axis=1).max(initial=0)) for points in arrays))


def toy_directions(frames: Mapping[str, Any]) -> go.Figure:
    """Feature directions of toy models with two hidden dimensions, one model a slider step.

    Arrays (n_features, 2) of the rows W_i of each model, keyed by what varies ("p = 0.1").
    """
    models = checked_arrays(frames, "toy_directions", ndim=2, columns=2)
    looks = [
        {"mode": "lines", "line": {"color": faint("#24728c", 0.75), "width": 2}, "hoverinfo": "skip"},
        {
            "mode": "markers",
            "hovertemplate": "feature %{customdata[0]}<br>‖W_i‖ = %{customdata[1]}, angle %{customdata[2]}°"
            "<br>(dropped where the norm is below 0.5)<extra></extra>",
        },
    ]
    data = {name: [_segments(points), _tips(points)] for name, points in models.items()}
    axes = ("hidden dimension 1", "hidden dimension 2")
    fig, layout = arrows(data, looks, first=0, reach=_reach(models.values()), axes=axes)
    return finish(fig, height=520, **layout)


def _tips(points: np.ndarray) -> dict[str, Any]:
    angles = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    norms = np.linalg.norm(points, axis=1)
    hover = [[i, round(float(n), 3), round(float(a), 1)] for i, (n, a) in enumerate(zip(norms, angles, strict=True))]
    return {
        "type": "scatter",
        "x": [round(float(v), 4) for v in points[:, 0]],
        "y": [round(float(v), 4) for v in points[:, 1]],
        "customdata": hover,
        "marker": {"color": list(range(len(points))), "colorscale": MANY_HUES, "size": 11, "showscale": False},
    }


def mined_slider(frames: Mapping[str, tuple[Any, Any]]) -> go.Figure:
    """Mined directions against true ones on a plane, with a slider from noise to mined that begins at its end.

    Pairs of truth (n, 2) and mined (m, 2) by step, coordinates on one common plane; m may differ between steps and be
    0. One step has no slider.
    """
    if not frames:
        raise ValueError("mined_slider: nothing was given, so there is nothing to draw")
    pairs: dict[str, list[np.ndarray]] = {}
    for name, (truth, mined) in frames.items():
        what = f"mined_slider, {name!r}"  # a calibrated miner may rightly return nothing, the truth never is nothing
        pairs[str(name)] = [as_array(truth, what, 2, columns=2), as_array(mined, what, 2, columns=2, may_be_empty=True)]
    data: dict[str, list[dict[str, Any]]] = {}
    for name, pair in pairs.items():
        data[name] = [_segments(points) for points in pair]
        for trace in data[name]:
            trace["customdata"] = [i // 3 for i in range(len(trace["x"]))]
    colour = style_of("mined").colour
    looks = [
        {
            "mode": "lines",
            "line": {"color": NEUTRAL, "width": 6},
            "opacity": 0.5,
            "name": "true directions",
            "hovertemplate": "true feature %{customdata}<br>(%{x:.2f}, %{y:.2f})<extra></extra>",
        },
        {
            "mode": "lines+markers",
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": "arrow", "angleref": "previous", "size": 13, "color": colour},
            "name": "mined directions",
            "hovertemplate": "direction %{customdata}<br>(%{x:.2f}, %{y:.2f})<extra></extra>",
        },
    ]
    reach = _reach(points for pair in pairs.values() for points in pair)
    axes = ("first axis of the plane", "second axis of the plane")
    fig, layout = arrows(data, looks, first=len(data) - 1, reach=reach, axes=axes, play=True)
    return finish(fig, height=520, legend="right", **layout)
