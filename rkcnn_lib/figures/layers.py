"""Figures across layers, and of causal interventions on subspaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, add_menu, finish
from rkcnn_lib.figures.dots import arm_order
from rkcnn_lib.figures.inputs import checked, in_order, metrics_of
from rkcnn_lib.figures.parts import band, number, rows_axis, window
from rkcnn_lib.figures.style import (
    CHANCE_FILL,
    CHANCE_LINE,
    DIVERGING,
    SEQUENTIAL,
    escape,
    faint,
    label,
    short,
    style_of,
)

REFERENCES = {"clean": "clean", "full-resample": "full resample", "full_resample": "full resample"}
SYMBOLS = {"keep": "", "ablate": "-open"}  # filled where the subspace is kept, open where it is ablated


def layer_heatmap(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Heat map of a metric's mean by arm and layer, with a drop-down over the metrics and one over hooks.

    Parameters
    ----------
    table : DataFrame
        Columns layer, arm, metric, value, and hook where there are several; several rows of a cell (seeds) are
        averaged. The first hook is the one shown.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    table = checked(table, ["layer", "arm", "metric", "value"], ["value"], "layer_heatmap")
    table = table.assign(arm=table["arm"].astype(str), hook=table["hook"].astype(str) if "hook" in table else "")
    arms, layers = arm_order([str(name) for name in in_order(table["arm"])]), sorted(table["layer"].unique())
    hooks = in_order(table["hook"])
    fig = go.Figure()
    choices = Choices(fig)
    shown: dict[str, list[dict[str, Any]]] = {hook: [] for hook in hooks}
    for metric, part in metrics_of(table):
        for hook in hooks:
            shown[hook].append(_heat(part[part["hook"] == hook], arms, layers))
        heat = go.Heatmap(
            x=[str(layer) for layer in layers],
            y=[escape(arm) for arm in arms],
            texttemplate="%{text}",
            colorbar={"thickness": 12},
            hovertemplate="%{y}, layer %{x}<br>mean %{z:.4g}<extra></extra>",
            **shown[hooks[0]][-1],
        )
        choices.add(short(metric), [heat])
    choices.close()
    if len(hooks) > 1:
        buttons = [
            {"label": escape(hook), "method": "restyle",
             "args": [{name: [heat[name] for heat in shown[hook]] for name in shown[hook][0]}]}
            for hook in hooks
        ]  # fmt: skip
        add_menu(fig, {"type": "dropdown", "buttons": buttons, "active": 0, "x": 1, "xanchor": "right"})
    return finish(
        fig,
        title,
        height=110 + 40 * len(arms),
        xaxis={"title": "layer", "type": "category", "showgrid": False},
        yaxis={"autorange": "reversed", "showgrid": False},
    )


def _heat(part: pd.DataFrame, arms: list[str], layers: list[Any]) -> dict[str, Any]:
    """Return what of a heat map depends on its values, as plain lists: a drop-down restyles with them."""
    cells = part.pivot_table(index="arm", columns="layer", values="value").reindex(index=arms, columns=layers)
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


def layer_differences(table: pd.DataFrame, title: str | None = None, x: str = "layer") -> go.Figure:
    """Differences paired by seed at each layer, with their intervals and the margin.

    Parameters
    ----------
    table : DataFrame
        Columns layer, contrast, difference, low, high, delta; with a column metric, a drop-down over it.
    title : str, optional
        The finding, in words.
    x : str, default "layer"
        Column along which the layers stand; another than "layer" gives dots without a line.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = [*dict.fromkeys(["layer", x]), "contrast", "difference", "low", "high", "delta"]
    table = checked(table, columns, [x, "difference"], "layer_differences")
    contrasts = in_order(table["contrast"].astype(str))
    by_layer, places = x == "layer", np.sort(table[x].unique())
    margin = 0.5 if by_layer else 0.05 * (np.ptp(places) or 1.0)
    shift = 0.12 * np.diff(places).min(initial=1.0) if by_layer else 0.0
    fig = go.Figure()
    choices = Choices(fig)
    for metric, part in metrics_of(table):
        traces: list[go.Scatter] = []
        delta = part["delta"].astype(float).max()
        if np.isfinite(delta) and delta > 0:
            ends = [part[x].min() - margin, part[x].max() + margin]
            traces.append(band(ends, [-delta] * 2, [delta] * 2, CHANCE_FILL, "within the margin ±δ", legend=True))
        for i, contrast in enumerate(contrasts):
            here = part[part["contrast"].astype(str) == contrast].sort_values(x)
            if len(here):
                offset = shift * (i - (len(contrasts) - 1) / 2)
                traces.append(_points(here[x] + offset, here, "difference", contrast, "layer"))
                if not by_layer:
                    traces[-1].mode = "markers"
        ends = part[["low", "high"]].to_numpy(float)
        axis = window(part["difference"], ends, [0, delta, -delta])
        layout = {"yaxis.title.text": f"difference in {label(metric or 'value')}", "yaxis.range": axis}
        choices.add(short(metric or "value"), traces, layout)
    choices.close()
    ticks = {"tickvals": places} if by_layer else {}
    return finish(fig, title, height=460, legend="right", xaxis={"title": label(x)} | ticks, yaxis={"zerolinewidth": 2})


def _points(
    x: pd.Series, rows: pd.DataFrame, column: str, name: str, unit: str, symbol: str = "", dash: str = "dot"
) -> go.Scatter:
    """Points with their intervals along ``x``, joined by a thin line; the hover names the true ``unit``."""
    style, shown = style_of(name.split(",")[0]), escape(name)
    value, low, high = (rows[c].to_numpy(float) for c in (column, "low", "high"))
    return go.Scatter(
        x=x.to_numpy(float),
        y=value,
        mode="lines+markers",
        line={"color": faint(style.colour, 0.8), "width": 1.5, "dash": dash},
        marker={"color": style.colour, "symbol": style.marker + symbol, "size": 9},
        error_y={
            "type": "data", "symmetric": False, "color": style.colour, "thickness": 1.8, "width": 4,
            "array": np.nan_to_num(high - value, posinf=0), "arrayminus": np.nan_to_num(value - low, posinf=0),
        },
        customdata=np.stack([rows[unit].to_numpy(float), low, high], axis=1),
        name=shown,
        legendgroup=shown,
        hovertemplate=f"<b>{shown}</b>, {unit} %{{customdata[0]}}<br>%{{y:.4g}}"
        "<br>interval %{customdata[1]:.3g} to %{customdata[2]:.3g}<extra></extra>",
    )  # fmt: skip


def causal_effects(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Effects of keeping or ablating subspaces, with intervals; clean and full-resample runs are lines.

    Parameters
    ----------
    table : DataFrame
        Columns subspace, intervention (keep or ablate), metric, value, low, high. Rows whose subspace is
        "clean" or "full-resample" become reference lines.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty, lacks a column, or holds reference rows only.
    """
    columns = ["subspace", "intervention", "metric", "value", "low", "high"]
    table = checked(table, columns, ["value"], "causal_effects")
    reference = table["subspace"].isin(REFERENCES)
    rows = in_order(table.loc[~reference, "subspace"].astype(str))
    if not rows:
        raise ValueError("causal_effects: only reference rows were given, there is no subspace to draw")
    fig = go.Figure()
    choices = Choices(fig)
    for metric, part in metrics_of(table):
        traces: list[go.Scatter] = []
        named = part["subspace"].isin(REFERENCES)
        for _, one in part[named].drop_duplicates("subspace").iterrows():
            traces.append(_reference(one, len(rows)))
        shown = part[~named]
        for i, intervention in enumerate(in_order(shown["intervention"])):
            for row, subspace in enumerate(rows):
                here = shown[(shown["intervention"] == intervention) & (shown["subspace"].astype(str) == subspace)]
                traces += [_effect(row + 0.3 * i - 0.15, one) for _, one in here.iterrows()]
            traces.append(_legend_entry(str(intervention)))
        axis = window(part["value"], part[["low", "high"]].to_numpy(float), [0])
        choices.add(short(metric), traces, {"xaxis.title.text": label(metric), "xaxis.range": axis})
    choices.close()
    return finish(fig, title, height=110 + 54 * len(rows), legend="right", yaxis=rows_axis(rows))


def _reference(one: pd.Series, n_rows: int) -> go.Scatter:
    name = REFERENCES[one["subspace"]]
    return go.Scatter(
        x=[one["value"]] * 2,
        y=[-0.6, n_rows - 0.4],
        mode="lines",
        line={"color": CHANCE_LINE, "width": 2, "dash": "dash" if name == "clean" else "dot"},
        name=f"{name} ({number(one['value'])})",
        hovertemplate=f"{name}: {number(one['value'])}<extra></extra>",
    )


def _effect(y: float, one: pd.Series) -> go.Scatter:
    style = style_of(one["subspace"])
    known = bool(np.isfinite([float(one["low"]), float(one["high"])]).all())
    bounds = f"{number(one['low'])} to {number(one['high'])}" if known else "none"
    return go.Scatter(
        x=[one["value"]],
        y=[y],
        mode="markers",
        marker={
            "color": style.colour,
            "symbol": style.marker + SYMBOLS.get(str(one["intervention"]), ""),
            "size": 11,
            "line": {"width": 2, "color": style.colour},
        },
        error_x={
            "type": "data", "symmetric": False, "visible": known, "color": style.colour, "thickness": 2,
            "width": 5, "array": [one["high"] - one["value"] if known else 0],
            "arrayminus": [one["value"] - one["low"] if known else 0],
        },
        showlegend=False,
        hovertemplate=f"<b>{escape(one['subspace'])}</b>, {escape(one['intervention'])}"
        f"<br>{number(one['value'])}, interval {bounds}<extra></extra>",
    )  # fmt: skip


def _legend_entry(intervention: str) -> go.Scatter:
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": CHANCE_LINE, "symbol": "circle" + SYMBOLS.get(intervention, ""), "size": 10},
        name=escape(intervention),
    )


def causal_by_layer(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Effects of interventions on subspaces, layer by layer, with intervals.

    Parameters
    ----------
    table : DataFrame
        Columns layer, subspace, intervention (keep or ablate), metric, value, low, high. Rows whose subspace is
        "clean" or "full-resample" become grey reference lines.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["layer", "subspace", "intervention", "metric", "value", "low", "high"]
    table = checked(table, columns, ["layer", "value"], "causal_by_layer")
    fig = go.Figure()
    choices = Choices(fig)
    for metric, part in metrics_of(table):
        traces: list[go.Scatter] = []
        for (subspace, intervention), here in part.groupby(["subspace", "intervention"], sort=False):
            here = here.sort_values("layer")
            if subspace in REFERENCES:
                line = {"color": CHANCE_LINE, "width": 2, "dash": "dash" if subspace == "clean" else "dot"}
                name = REFERENCES[subspace]
                traces.append(go.Scatter(x=here["layer"], y=here["value"], mode="lines", line=line, name=name))
                continue
            symbol = SYMBOLS.get(str(intervention), "")
            dash = "solid" if intervention == "keep" else "dot"
            name = f"{subspace}, {intervention}"
            traces.append(_points(here["layer"], here, "value", name, "layer", symbol, dash))
        axis = window(part["value"], part[["low", "high"]].to_numpy(float), [0])
        choices.add(short(metric), traces, {"yaxis.title.text": label(metric), "yaxis.range": axis})
    choices.close()
    return finish(
        fig,
        title,
        height=430,
        legend="right",
        xaxis={"title": "layer", "tickvals": sorted(table["layer"].unique())},
    )
