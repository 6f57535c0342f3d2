"""Dots with their intervals: in rows, an arm or a group each, and along a quantity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pandas.api.types import is_number

from rkcnn_lib.figures.display import checked, chosen, finish, parts_of, rows_axis, window
from rkcnn_lib.figures.lines import LEVELS
from rkcnn_lib.figures.style import CHANCE_FILL, GREY, Style, arm_order, escape, label, named, number, short, style_of
from rkcnn_lib.measure.statistics import mean_interval

GROUPS = ["top", "random", "bottom", "full"]


def dot(
    x: float,
    y: float,
    ends: Sequence[float],
    style: Style,
    size: int,
    hover: str,
    bar: tuple[float, float] = (2.5, 7),
    **trace: Any,
) -> go.Scatter:
    """One dot in row ``y`` with its interval: none unless both ``ends`` are finite; ``bar`` is (thickness, width)."""
    low, high = (float(end) for end in ends)
    looks = {"mode": "markers", "showlegend": False, "hovertemplate": f"{hover}<extra></extra>"} | trace
    looks["marker"] = {"color": style.colour, "symbol": style.marker, "size": size} | trace.get("marker", {})
    error = interval_bar(x, low, high, style, bar) | {"visible": bool(np.isfinite([low, high]).all())}
    return go.Scatter(looks, x=[x], y=[y], error_x=error)


def interval_bar(value: Any, low: Any, high: Any, style: Style, bar: tuple[float, float]) -> dict[str, Any]:
    """plotly's error bars from ends, of which an infinite or missing one is not drawn; ``bar`` as for :func:`dot`."""
    up, down = (np.nan_to_num(np.atleast_1d(length), posinf=0) for length in (high - value, value - low))
    looks = {"color": style.colour, "thickness": bar[0], "width": bar[1]}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down} | looks


def box(x0: float, x1: float, y: float, name: str, legend: bool) -> go.Scatter:
    """The grey rectangle around one row: its chance band or its margin."""
    low, high = y - 0.42, y + 0.42
    looks = {"mode": "lines", "fill": "toself", "fillcolor": CHANCE_FILL, "line": {"width": 1, "color": GREY}}
    named = {"name": name, "legendgroup": name, "showlegend": legend, "hoverinfo": "skip"}
    return go.Scatter(looks | named, x=[x0, x1, x1, x0, x0], y=[low, low, high, high, low])


def rows_of_seeds(
    table: pd.DataFrame, key: str, names: Sequence[str], grey: str
) -> tuple[list[go.Scatter], list[float], list[float]]:
    """The form: a row a name, with a dot a row of the table, the mean with its 95 % interval and a band of chance.

    ``table`` has columns ``key``, seed, value and, where there are several of a seed, label: a seed counts once in the
    interval; chance_mean and chance_upper, where known, are the ends of the band, which ``grey`` names. Return the
    traces, the ends of the intervals, the ends of the bands.
    """
    traces: list[go.Scatter] = []
    ends: list[float] = []
    bands: list[float] = []
    for y, name in enumerate(names):
        rows = table[table[key] == name]
        if rows.empty:
            continue
        shown, style, beside = f"<b>{escape(name)}</b>", style_of(name), ""
        levels = rows.reindex(columns=LEVELS).apply(pd.to_numeric, errors="coerce").dropna()
        if len(levels):
            chance = levels.mean().tolist()
            traces.append(box(*chance, y, f"{grey}: mean to 95 % point", legend=not bands))
            bands += chance
            beside = f"<br>{grey} {number(chance[0])}, 95 % point {number(chance[1])}"
        labels = [f", {escape(label)}" for label in rows["label"]] if "label" in rows else [""] * len(rows)
        texts = [
            f"{shown}, seed {escape(seed)}{of}<br>{number(value)}{beside}"
            for seed, of, value in zip(rows["seed"], labels, rows["value"], strict=True)
        ]
        # faint dots, spread a little below their mean so that equal values stay visible
        spread = np.linspace(-0.12, 0.12, len(rows)) if len(rows) > 1 else np.zeros(1)
        x, heights = rows["value"].to_numpy(np.float32), (y - 0.2 + spread * 0.8).astype(np.float32)
        marker = {"color": style.colour, "symbol": style.marker, "size": 7, "opacity": 0.6}
        looks = {"mode": "markers", "showlegend": False, "hovertemplate": "%{text}<extra></extra>", "marker": marker}
        traces.append(go.Scatter(looks, x=x, y=heights, text=texts))
        values = rows.groupby("seed")["value"].mean()
        mean, low, high = mean_interval(values)
        hover = f"{shown}{beside}<br>mean of {len(values)}: {number(mean)}<br>{interval_text(low, high)}"
        traces.append(dot(mean, y + 0.12, (low, high), style, 13, hover, name=escape(name)))
        ends += [low, high]
    return traces, ends, bands


def interval_text(low: float, high: float) -> str:
    """The 95 % interval over seeds in words."""
    return f"95 % interval {number(low)} to {number(high)}" if np.isfinite(low) else "one seed: no interval"


def arm_metrics(table: pd.DataFrame) -> go.Figure:
    """Metrics of each arm: a dot a seed, the mean with its 95 % interval, a drop-down over the metrics.

    Columns arm, seed, value and, where the metric has them, chance_mean and chance_upper, the ends of the arm's grey
    band; metric where there are several.
    """
    table = checked(table, ["arm", "seed", "value"], ["value"]).astype({"arm": str})
    arms, choices, any_chance = arm_order(table["arm"].unique().tolist()), [], False
    for metric, part in parts_of(table):
        traces, ends, bands = rows_of_seeds(part, "arm", arms, "chance")
        any_chance |= bool(bands)
        axis = {"xaxis.title.text": label(metric), "xaxis.range": window(part["value"], ends, bands)}
        choices.append((short(metric), traces, axis))
    legend = "top" if any_chance else None
    return finish(chosen(choices), height=100 + 46 * len(arms), legend=legend, yaxis=rows_axis(arms))


def recovery_by_miner(table: pd.DataFrame) -> go.Figure:
    """As :func:`arm_metrics`, with a column miner in place of arm; each has its chance level."""
    return arm_metrics(checked(table, ["miner", *LEVELS], LEVELS).rename(columns={"miner": "arm"}))


def selectivity(table: pd.DataFrame, measured: str = "balanced accuracy on new rows (share)") -> go.Figure:
    """How well the best, random and worst subsets (and the full space) separate labels, beside permuted ones.

    Columns group (top, random, bottom, full), seed, value (``measured`` names it), chance_mean and chance_upper (under
    permuted labels) and, where there are several, label and probe (a drop-down); a seed counts once in the interval.
    """
    table = checked(table, ["group", "seed", "value", *LEVELS], ["value", *LEVELS])
    groups, choices = arm_order(table["group"].unique().tolist(), GROUPS), []
    for probe, part in parts_of(table, "probe"):
        traces, _, bands = rows_of_seeds(part, "group", groups, "permuted labels")
        choices.append((f"probe: {escape(probe)}", traces, {"xaxis.range": window(part["value"], keep=bands)}))
    x_axis, height = {"title": measured}, 110 + 62 * len(groups)
    return finish(chosen(choices), height=height, legend="top", xaxis=x_axis, yaxis=rows_axis(groups))


def points(
    x: Any, table: pd.DataFrame, column: str, style: Style, name: str, hover: str, line: dict[str, Any], **trace: Any
) -> go.Scatter:
    """The form: dots of ``column`` along ``x`` with intervals from columns low and high, joined by a thin line."""
    value, low, high = (table[c].to_numpy(float) for c in (column, "low", "high"))
    looks = {"mode": "lines+markers", "marker": {"color": style.colour, "symbol": style.marker, "size": 9}}
    looks |= named(name, "") | {"line": {"width": 1.5} | line, "hovertemplate": f"{hover}<extra></extra>"} | trace
    error = interval_bar(value, low, high, style, (1.8, 4))
    return go.Scatter(looks, x=np.asarray(x, dtype=float), y=value, error_y=error)


def sensitivity(table: pd.DataFrame) -> go.Figure:
    """Each arm along one swept hyper-parameter at a time: means with 95 % intervals over seeds; a drop-down.

    Columns axis, x (a value of the axis: number or text), arm, seed, metric, value.
    """
    table = checked(table, ["axis", "x", "arm", "seed", "metric", "value"], ["value"])
    arms = arm_order(table["arm"].astype(str).unique().tolist())
    choices = []
    for axis, along in parts_of(table, "axis"):
        # numbers in order, then others as they come
        places = sorted(along["x"].unique().tolist(), key=lambda x: (not is_number(x), x if is_number(x) else 0))
        along = along.assign(place=along["x"].map(places.index))
        layout = {"xaxis.tickvals": list(range(len(places))), "xaxis.ticktext": [escape(place) for place in places]}
        layout |= {"xaxis.title.text": escape(axis), "xaxis.range": [-0.4, len(places) - 0.6]}
        for metric, part in parts_of(along):
            traces = []
            ends: list[float] = []
            for i, arm in enumerate(arms):
                style, shown = style_of(arm), escape(arm)
                found = part[part["arm"] == arm].groupby("place")["value"].apply(mean_interval)
                means = pd.DataFrame(found.tolist(), index=found.index, columns=["value", "low", "high"])
                text = [
                    f"<b>{shown}</b> at {escape(places[m.Index])}<br>mean {number(m.value)}"
                    f"<br>{interval_text(m.low, m.high)}"
                    for m in means.itertuples()
                ]
                x = means.index + 0.06 * (i - (len(arms) - 1) / 2)
                traces.append(points(x, means, "value", style, arm, "%{text}", {"color": style.colour}, text=text))
                ends += [*means["low"], *means["high"]]
            y_axis = {"yaxis.title.text": label(metric), "yaxis.range": window(part["value"], ends)}
            choices.append((f"{escape(axis)}: {short(metric)}", traces, layout | y_axis))
    return finish(chosen(choices), height=420, legend="right")


def next_tokens(table: pd.DataFrame) -> go.Figure:
    """A row a token: its probability of coming next under each of several runs of one prompt.

    Columns token, run, probability ([0, 1]); tokens and runs in the order they are to be shown.
    """
    table = checked(table, ["token", "run", "probability"], ["probability"])
    tokens, runs = (table[column].astype(str).unique().tolist() for column in ("token", "run"))
    fig = go.Figure()
    for i, run in enumerate(runs):
        part, style = table[table["run"].astype(str) == run], style_of(run)
        shift = 0.18 * (i - (len(runs) - 1) / 2)  # equal probabilities stay visible
        x, y = part["probability"].round(5).tolist(), [tokens.index(str(token)) + shift for token in part["token"]]
        marker, text = {"color": style.colour, "symbol": style.marker, "size": 11}, part["token"].map(escape).tolist()
        fig.add_scatter(x=x, y=y, text=text, mode="markers", marker=marker, **named(run, ": “%{text}” %{x:.1%}"))
    x_axis = {"title": "probability of coming next", "range": [-0.02, 1.02], "tickformat": ".0%"}
    return finish(fig, height=90 + 34 * len(tokens), legend="top", xaxis=x_axis, yaxis=rows_axis(tokens))
