"""Heat maps: signed values in colours centred on zero, others in one hue."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.display import add_menu, as_array, checked, chosen, finish, parts_of
from rkcnn_lib.figures.style import DIVERGING, SEQUENTIAL, arm_order, escape, number, short

PLAIN = {"showgrid": False, "zeroline": False}  # an axis of a matrix


def heat(values: Mapping[str, Any], hover: str, bar: str | None = None, **trace: Any) -> go.Heatmap:
    """The form: a heat map of ``values`` (z and its colours), with what its colour bar says."""
    colorbar = {"thickness": 12} | ({"title": {"text": bar}} if bar else {})
    return go.Heatmap(colorbar=colorbar, hovertemplate=f"{hover}<extra></extra>", **values, **trace)


def _signed(z: np.ndarray, limit: float) -> dict[str, Any]:
    return {"z": z.astype(np.float32), "zmin": -limit, "zmax": limit, "colorscale": DIVERGING}


def mined_versus_true(cosines: Mapping[str, Any]) -> go.Figure:
    """Heat map of the signed cosines of true features with mined directions, one miner at a time.

    Arrays (n_true, n_mined) by miner; columns in the order of the matching, so that matches lie on the diagonal.
    """
    choices = []
    for name, matrix in cosines.items():
        values, shown = as_array(matrix), escape(name)
        hover = f"<b>{shown}</b><br>true feature %{{y}}, mined direction matched to feature %{{x}}<br>cosine %{{z:.3f}}"
        told = f"{shown}: mean {np.diagonal(values).mean():.2f}, {values.shape[1]} directions"
        axis = {"xaxis.title.text": f"mined direction ({shown}), in the order of its match"}
        choices.append((told, [heat(_signed(values, 1), hover, "cosine", name=shown)], axis))
    y_axis = PLAIN | {"autorange": "reversed", "title": "true feature"}
    return finish(chosen(choices), height=470, xaxis=PLAIN | {"constrain": "domain"}, yaxis=y_axis)


def interference(W: Any) -> go.Figure:
    """Heat map of W Wᵀ, W (n_features, n_hidden): squared norms on the diagonal, interference of features off it."""
    W = as_array(W)
    gram = (W @ W.T).astype(np.float32)
    hover = "feature %{y} with feature %{x}<br>W_i · W_j = %{z:.3f}"
    fig = go.Figure(heat(_signed(gram, float(np.abs(gram).max()) or 1.0), hover, "W_i · W_j"))
    axis = PLAIN | {"title": "feature"}
    return finish(fig, height=480, xaxis=axis, yaxis=axis | {"autorange": "reversed"})


def layer_heatmap(table: pd.DataFrame, x: str = "layer") -> go.Figure:
    """Heat map of a metric's mean by arm and layer, with a drop-down over the metrics and one over hooks.

    Columns layer (or another name, ``x``), arm, metric, value, and hook where there are several (the first is shown
    first); several rows of a cell (seeds) are averaged.
    """
    table = checked(table, [x, "arm", "metric", "value"], ["value"])
    table = table.assign(arm=table["arm"].astype(str), layer=table[x])
    arms, layers = arm_order(table["arm"].unique().tolist()), sorted(table["layer"].unique())
    cells = {  # by hook, a heat map a metric
        hook: [_cells(part[part["metric"].astype(str) == metric], arms, layers) for metric, _ in parts_of(table)]
        for hook, part in parts_of(table, "hook")
    }
    names = {"x": [str(layer) for layer in layers], "y": [escape(arm) for arm in arms], "texttemplate": "%{text}"}
    hover, first = f"%{{y}}, {x} %{{x}}<br>mean %{{z:.4g}}", next(iter(cells.values()))
    shown = zip(parts_of(table), first, strict=True)
    fig = chosen([(short(metric), [heat(values, hover, **names)], {}) for (metric, _), values in shown])
    buttons = []
    for hook, maps in cells.items():
        changed = {name: [values[name] for values in maps] for name in maps[0]}
        buttons.append({"label": escape(hook), "method": "restyle", "args": [changed]})
    if len(cells) > 1:
        add_menu(fig, buttons, x=1, xanchor="right")
    x_axis = {"title": x, "type": "category", "showgrid": False}
    y_axis = {"autorange": "reversed", "showgrid": False}
    return finish(fig, height=110 + 40 * len(arms), xaxis=x_axis, yaxis=y_axis)


def _cells(table: pd.DataFrame, arms: list[str], layers: list[Any]) -> dict[str, Any]:
    """What of a heat map depends on its values, as plain lists: a drop-down restyles with them."""
    cells = table.pivot_table(index="arm", columns="layer", values="value").reindex(index=arms, columns=layers)
    values = cells.to_numpy(float)
    finite = values[np.isfinite(values)]
    signed = len(finite) > 0 and finite.min() < 0 < finite.max()
    limit = float(np.abs(finite).max()) if signed else None
    return {
        "z": [[float(f"{v:.5g}") if np.isfinite(v) else None for v in row] for row in values],
        "text": [[number(v) if np.isfinite(v) else "" for v in row] for row in values],
        "colorscale": DIVERGING if signed else SEQUENTIAL,
        "zmin": -limit if signed else None,
        "zmax": limit,
        "zauto": not signed,
    }
