"""Arrows from the origin of a plane, with a slider: features of toy models, mined directions against true ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rkcnn_lib.figures.display import add_slider, as_array, finish
from rkcnn_lib.figures.style import GREY, MANY_HUES, faint, style_of

CIRCLE = np.linspace(0, 2 * np.pi, 121)


def arrows(
    frames: Mapping[str, list[dict[str, Any]]],
    looks: list[dict[str, Any]],
    points: Iterable[np.ndarray],
    axes: tuple[str, str],
    from_end: bool = False,
) -> go.Figure:
    """The form: traces on a plane that a slider moves, inside the unit circle.

    ``frames`` holds each step's data (one dict a trace, plain lists), ``looks`` how each trace is drawn, ``points``
    all arrays (n, 2) of ends; the slider begins at its first step, or ``from_end`` with a button that plays all of
    them. One frame has no slider: one that cannot be moved would look broken.
    """
    first = len(frames) - 1 if from_end else 0
    x, y = (trace.astype(np.float32) for trace in (np.cos(CIRCLE), np.sin(CIRCLE)))
    dotted = {"color": GREY, "width": 1, "dash": "dot"}
    circle = go.Scatter(x=x, y=y, mode="lines", line=dotted, hoverinfo="skip", name="unit circle")
    shown = zip(list(frames.values())[first], looks, strict=True)
    fig = go.Figure([*(go.Scatter(**data, **look) for data, look in shown), circle])
    if len(frames) > 1:
        add_slider(fig, frames, play=from_end, active=first)
    reach = 1.08 * max(1.0, *(float(np.linalg.norm(ends, axis=1).max(initial=0)) for ends in points))
    axis = {"range": [-reach, reach], "constrain": "domain"}
    across, up = axis | {"title": axes[0]}, axis | {"title": axes[1], "scaleanchor": "x"}
    return finish(fig, height=520, legend="right" if from_end else None, xaxis=across, yaxis=up)


def _segments(points: np.ndarray) -> dict[str, Any]:
    """Segments from the origin to each of ``points (n, 2)``, separated by gaps, as plain lists."""
    x, y = ([end for value in values for end in (0.0, value, None)] for values in points.T.round(4).tolist())
    return {"type": "scatter", "x": x, "y": y}


def toy_directions(frames: Mapping[str, Any]) -> go.Figure:
    """Feature directions of toy models with two hidden dimensions, one model a slider step.

    Arrays (n_features, 2) of the rows W_i of each model, keyed by what varies ("p = 0.1").
    """
    models = {name: as_array(points) for name, points in frames.items()}
    hover = (
        "feature %{customdata[0]}<br>‖W_i‖ = %{customdata[1]}, angle %{customdata[2]}°"
        "<br>(dropped where the norm is below 0.5)<extra></extra>"
    )
    looks = [
        {"mode": "lines", "line": {"color": faint("#24728c", 0.75), "width": 2}, "hoverinfo": "skip"},
        {"mode": "markers", "hovertemplate": hover},
    ]
    data = {name: [_segments(points), _tips(points)] for name, points in models.items()}
    return arrows(data, looks, models.values(), ("hidden dimension 1", "hidden dimension 2"))


def _tips(points: np.ndarray) -> dict[str, Any]:
    norms, angles = np.linalg.norm(points, axis=1), np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    told = zip(norms.round(3).tolist(), angles.round(1).tolist(), strict=True)
    x, y = points.T.round(4).tolist()
    hover = [[i, norm, angle] for i, (norm, angle) in enumerate(told)]
    marker = {"color": list(range(len(points))), "colorscale": MANY_HUES, "size": 11, "showscale": False}
    return {"type": "scatter", "x": x, "y": y, "customdata": hover, "marker": marker}


def mined_slider(frames: Mapping[str, tuple[Any, Any]]) -> go.Figure:
    """Mined directions against true ones on a plane, with a slider from noise to mined that begins at its end.

    Pairs of truth (n, 2) and mined (m, 2) by step, coordinates on one common plane; m may differ between steps and be
    0. One step has no slider.
    """
    pairs = {name: [as_array(points) for points in pair] for name, pair in frames.items()}
    data = {name: [_segments(points) for points in pair] for name, pair in pairs.items()}
    for trace in (trace for traces in data.values() for trace in traces):
        trace["customdata"] = [i // 3 for i in range(len(trace["x"]))]
    colour = style_of("mined").colour
    hover = "%{customdata}<br>(%{x:.2f}, %{y:.2f})<extra></extra>"
    true = {"mode": "lines", "line": {"color": GREY, "width": 6}, "opacity": 0.5}
    mined = {"mode": "lines+markers", "line": {"color": colour, "width": 2}}
    mined["marker"] = {"symbol": "arrow", "angleref": "previous", "size": 13, "color": colour}
    looks = [
        true | {"name": "true directions", "hovertemplate": f"true feature {hover}"},
        mined | {"name": "mined directions", "hovertemplate": f"direction {hover}"},
    ]
    axes = ("first axis of the plane", "second axis of the plane")
    return arrows(data, looks, [points for pair in pairs.values() for points in pair], axes, from_end=True)
