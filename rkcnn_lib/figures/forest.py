"""Forests of differences and effects whose intervals are given: margins, verdicts, reference lines."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.display import checked, chosen, finish, parts_of, rows_axis, window
from rkcnn_lib.figures.dots import box, dot, points
from rkcnn_lib.figures.lines import band
from rkcnn_lib.figures.style import CHANCE_FILL, GREY, Style, arm_order, escape, faint, label, number, short, style_of

VERDICTS: dict[str, Style] = {
    "better": Style("#2f9447", "circle"),
    "equivalent": Style("#2f9447", "circle-open"),
    "worse": Style("#b9330d", "x"),
    "undecided": Style(GREY, "diamond-open"),
}
UNJUDGED = Style(GREY, "circle-open")
WITHIN = "within the margin ±δ"
REFERENCES = {"clean": "clean", "full-resample": "full resample"}
SYMBOLS = {"keep": "", "ablate": "-open"}  # filled where the subspace is kept, open where it is ablated


def paired_differences(table: pd.DataFrame) -> go.Figure:
    """Forest plot of differences paired by seed, with their intervals, the margins and the verdicts.

    Columns contrast, metric, difference (positive: its first arm is better), low, high, delta, verdict (or None),
    n_seeds.
    """
    columns = ["contrast", "metric", "difference", "low", "high", "delta", "verdict", "n_seeds"]
    table = checked(table, columns, ["difference"])
    rows = table["contrast"].astype(str).unique().tolist()
    choices = []
    for metric, part in parts_of(table):
        traces: list[go.Scatter] = []
        for y, contrast in enumerate(rows):
            for _, row in part[part["contrast"].astype(str) == contrast].iterrows():
                traces += _difference(y, row, legend=not traces)
        deltas = part["delta"].astype(float).fillna(0).abs()
        axis = window(part["difference"], part[["low", "high"]].to_numpy(float), [0, *deltas * 1.2, *-deltas * 1.2])
        what = f"difference in {label(metric)}; right of 0: the first arm is better"
        choices.append((short(metric), traces, {"xaxis.range": axis, "xaxis.title.text": what}))
    x_axis, height = {"zerolinewidth": 2}, 110 + 58 * len(rows)
    return finish(chosen(choices), height=height, legend="top", xaxis=x_axis, yaxis=rows_axis(rows))


def _difference(y: float, row: pd.Series, legend: bool) -> list[go.Scatter]:
    judged = row["verdict"] if isinstance(row["verdict"], str) else "no verdict"
    delta = float(row["delta"]) if pd.notna(row["delta"]) else 0.0
    hover = (
        f"<b>{escape(row['contrast'])}</b><br>difference {number(row['difference'])}<br>interval {_bounds(row)}"
        f"<br>margin ±{number(delta)}, {escape(row['n_seeds'])} seeds<br>{escape(judged)}"
    )
    beside = {"mode": "markers+text", "text": [escape(judged)], "textposition": "top center", "textfont": {"size": 11}}
    style, ends = VERDICTS.get(judged, UNJUDGED), (row["low"], row["high"])
    margin = [box(-delta, delta, y, WITHIN, legend)] if delta > 0 else []
    return [*margin, dot(row["difference"], y, ends, style, 12, hover, cliponaxis=False, **beside)]


def _bounds(row: pd.Series) -> str:
    """The ends of an interval in words; one seed has infinite ones."""
    low, high = float(row["low"]), float(row["high"])
    return f"{number(low)} to {number(high)}" if np.isfinite([low, high]).all() else "none"


def layer_differences(table: pd.DataFrame, x: str = "layer") -> go.Figure:
    """Differences paired by seed at each layer, with their intervals and the margin.

    Columns layer, contrast, difference, low, high, delta and, for a drop-down, metric. ``x`` is the column along which
    the layers stand; another than "layer" gives dots without a line.
    """
    columns = [*dict.fromkeys(["layer", x]), "contrast", "difference", "low", "high", "delta"]
    table = checked(table, columns, [x, "difference"])
    contrasts = table["contrast"].astype(str).unique().tolist()
    by_layer, places = x == "layer", np.sort(table[x].unique())
    margin = 0.5 if by_layer else 0.05 * (np.ptp(places) or 1.0)
    shift = 0.12 * np.diff(places).min(initial=1.0) if by_layer else 0.0
    choices = []
    for metric, part in parts_of(table):
        traces: list[go.Scatter] = []
        delta = part["delta"].astype(float).max()
        if np.isfinite(delta) and delta > 0:
            ends = [part[x].min() - margin, part[x].max() + margin]
            traces.append(band(ends, [-delta] * 2, [delta] * 2, CHANCE_FILL, WITHIN, legend=True))
        for i, contrast in enumerate(contrasts):
            rows = part[part["contrast"].astype(str) == contrast].sort_values(x)
            if len(rows):
                at = rows[x] + shift * (i - (len(contrasts) - 1) / 2)
                mode = "lines+markers" if by_layer else "markers"
                style = style_of(contrast.split(",")[0])
                traces.append(_along_layers(at, rows, "difference", style, contrast, mode=mode))
        axis = window(part["difference"], part[["low", "high"]].to_numpy(float), [0, delta, -delta])
        layout = {"yaxis.title.text": f"difference in {label(metric)}", "yaxis.range": axis}
        choices.append((short(metric), traces, layout))
    x_axis = {"title": label(x)} | ({"tickvals": places} if by_layer else {})
    return finish(chosen(choices), height=460, legend="right", xaxis=x_axis, yaxis={"zerolinewidth": 2})


def _along_layers(
    x: pd.Series, rows: pd.DataFrame, column: str, style: Style, name: str, dash: str = "dot", **trace: Any
) -> go.Scatter:
    hover = (
        f"<b>{escape(name)}</b>, layer %{{customdata[0]}}<br>%{{y:.4g}}"
        "<br>interval %{customdata[1]:.3g} to %{customdata[2]:.3g}"
    )
    trace["customdata"] = rows[["layer", "low", "high"]].to_numpy(float)
    return points(x, rows, column, style, name, hover, {"color": faint(style.colour, 0.8), "dash": dash}, **trace)


def causal_by_layer(table: pd.DataFrame) -> go.Figure:
    """Effects of interventions on subspaces, layer by layer, with intervals.

    Columns layer, subspace, intervention (keep or ablate), metric, value, low, high. Rows whose subspace is "clean" or
    "full-resample" become grey reference lines.
    """
    columns = ["layer", "subspace", "intervention", "metric", "value", "low", "high"]
    table = checked(table, columns, ["layer", "value"])
    choices = []
    for metric, part in parts_of(table):
        traces: list[go.Scatter] = []
        for (subspace, intervention), rows in part.groupby(["subspace", "intervention"], sort=False):
            rows = rows.sort_values("layer")
            if subspace in REFERENCES:
                traces.append(_reference(subspace, rows["layer"], rows["value"], name=REFERENCES[subspace]))
            else:
                dash, style = "solid" if intervention == "keep" else "dot", _opened(style_of(subspace), intervention)
                name = f"{subspace}, {intervention}"
                traces.append(_along_layers(rows["layer"], rows, "value", style, name, dash))
        axis = window(part["value"], part[["low", "high"]].to_numpy(float), [0])
        choices.append((short(metric), traces, {"yaxis.title.text": label(metric), "yaxis.range": axis}))
    x_axis = {"title": "layer", "tickvals": sorted(table["layer"].unique())}
    return finish(chosen(choices), height=430, legend="right", xaxis=x_axis)


def causal_effects(table: pd.DataFrame, drawn: Sequence[str] | None = None) -> go.Figure:
    """Effects of keeping or ablating subspaces, with intervals; clean and full-resample runs are lines.

    Columns subspace (references as in :func:`causal_by_layer`), intervention, metric, value, low, high. Subspaces that
    are not ``drawn`` come with a choice of their own in the drop-down.
    """
    table = checked(table, ["subspace", "intervention", "metric", "value", "low", "high"], ["value"])
    subspaces = table.loc[~table["subspace"].isin(REFERENCES), "subspace"].astype(str).unique().tolist()
    first = [subspace for subspace in subspaces if drawn is None or subspace in drawn] or subspaces
    subspaces = arm_order(subspaces, first)
    choices = []
    for n, (metric, part) in itertools.product(dict.fromkeys([len(first), len(subspaces)]), parts_of(table)):
        is_reference = part["subspace"].isin(REFERENCES)
        traces: list[go.Scatter] = []
        for _, row in part[is_reference].drop_duplicates("subspace").iterrows():
            name, value = REFERENCES[row["subspace"]], number(row["value"])
            told = {"name": f"{name} ({value})", "hovertemplate": f"{name}: {value}<extra></extra>"}
            traces.append(_reference(row["subspace"], [row["value"]] * 2, [-0.6, n - 0.4], **told))
        for i, (intervention, under) in enumerate(parts_of(part[~is_reference], "intervention")):
            for y, subspace in enumerate(subspaces[:n]):
                for _, row in under[under["subspace"].astype(str) == subspace].iterrows():
                    traces.append(_effect(y + 0.3 * i - 0.15, row))
            marker = {"color": GREY, "symbol": "circle" + SYMBOLS.get(intervention, ""), "size": 10}
            traces.append(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=escape(intervention)))
        axis = window(part["value"], part[["low", "high"]].to_numpy(float), [0])
        layout = {"xaxis.title.text": label(metric), "xaxis.range": axis}
        layout["yaxis.range"] = rows_axis(subspaces[:n])["range"]
        choices.append((short(metric) + ", every subspace" * (n > len(first)), traces, layout))
    rows = rows_axis(subspaces)
    del rows["range"]  # each choice has its own
    return finish(chosen(choices), height=110 + 54 * len(first), legend="right", yaxis=rows)


def _reference(subspace: str, x: Any, y: Any, **trace: Any) -> go.Scatter:
    dash = "dash" if subspace == "clean" else "dot"
    return go.Scatter(x=x, y=y, mode="lines", line={"color": GREY, "width": 2, "dash": dash}, **trace)


def _opened(style: Style, intervention: object) -> Style:
    return Style(style.colour, style.marker + SYMBOLS.get(str(intervention), ""))


def _effect(y: float, row: pd.Series) -> go.Scatter:
    style = _opened(style_of(row["subspace"]), row["intervention"])
    hover = (
        f"<b>{escape(row['subspace'])}</b>, {escape(row['intervention'])}"
        f"<br>{number(row['value'])}, interval {_bounds(row)}"
    )
    outline = {"line": {"width": 2, "color": style.colour}}
    return dot(row["value"], y, (row["low"], row["high"]), style, 11, hover, (2, 5), marker=outline)
