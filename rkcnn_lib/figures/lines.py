"""Lines with bands: means along a quantity, the range of their seeds, and chance in grey."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.display import checked, chosen, finish, log_axis, parts_of, scale_buttons
from rkcnn_lib.figures.style import CHANCE_FILL, arm_order, escape, faint, label, named, number, short, style_of

MANY = 4000  # points from which WebGL draws
MAX_TICKS = 8  # as many probabilities are named one by one on the axis
FOOT = 0.3  # where a logarithmic axis of counts shows 0
LEVELS = ["chance_mean", "chance_upper"]


def band(
    x: Any, low: Any, high: Any, fill: str, name: str = "", group: str | None = None, legend: bool = False
) -> go.Scatter:
    """A filled region between ``low`` and ``high`` along ``x``; it answers no hover."""
    x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
    looks = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": fill, "hoverinfo": "skip"}
    named = {"name": name, "legendgroup": group, "showlegend": legend}
    return go.Scatter(looks | named, x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]))


def lines(table: pd.DataFrame, x: str, key: str = "arm", drawn: Collection[str] | None = None) -> list[go.Scatter]:
    """The form: a line a ``key`` along ``x`` with the range of its seeds, above the grey bands of chance.

    Columns ``x``, ``key``, value (several rows of a place are its seeds) and, where chance is known, `LEVELS`. Arms
    come in the order of the palette, miners as in the table; those that are not ``drawn`` wait in the legend.
    """
    table = table.assign(**{key: table[key].astype(str)})
    names = table[key].unique().tolist()
    traces = _chance_bands(table, x, key)
    for name in arm_order(names) if key == "arm" else names:
        of_name = _line_of_seeds(table[table[key] == name], x, name)
        waits = drawn is not None and name not in drawn
        traces += [trace.update(visible="legendonly") for trace in of_name] if waits else of_name
    return traces


def _line_of_seeds(table: pd.DataFrame, x: str, name: str) -> list[go.Scatter]:
    style, grouped = style_of(name), table.groupby(x)["value"]
    mean, low, high, count = grouped.mean(), grouped.min(), grouped.max(), grouped.count()
    xs = mean.index.to_numpy(dtype=float)
    hover = (
        f"<br>{escape(x)} %{{x}}<br>mean %{{y:.4g}}, "
        "seeds from %{customdata[0]:.4g} to %{customdata[1]:.4g} (%{customdata[2]} seeds)"
    )
    looks = {"mode": "lines+markers", "line": {"color": style.colour, "width": 2}}
    looks["marker"] = {"symbol": style.marker, "size": 8 if len(xs) < 40 else 4}
    told = np.stack([low, high, count], axis=1)
    line = go.Scatter(looks | named(name, hover), x=xs, y=mean.to_numpy(), customdata=told)
    one_seed = (count < 2).all()
    return [line] if one_seed else [band(xs, low, high, faint(style.colour), group=escape(name)), line]


def _chance_bands(table: pd.DataFrame, x: str, key: str) -> list[go.Scatter]:
    """Grey bands from the mean of chance to its 95 % point along ``x``: one where all lines share it."""
    if not set(LEVELS) <= set(table.columns):
        return []
    drawn: list[pd.DataFrame] = []
    for name in table[key].unique():
        chance = table[table[key] == name].dropna(subset=LEVELS).groupby(x)[LEVELS].mean()
        if len(chance) and not any(chance.shape == other.shape and np.allclose(chance, other) for other in drawn):
            drawn.append(chance)
    named = {"name": "chance: mean to 95 % point", "group": "chance"}
    return [
        band(chance.index, *(chance[level] for level in LEVELS), CHANCE_FILL, legend=i == 0, **named)
        for i, chance in enumerate(drawn)
    ]


def _by_metric(table: pd.DataFrame, x: str, *of: Any) -> go.Figure:
    return chosen([(short(m), lines(part, x, *of), {"yaxis.title.text": label(m)}) for m, part in parts_of(table)])


def _log_where_wide(values: pd.Series) -> dict[str, Any]:
    wide = values.min() > 0 and values.max() / values.min() > 30
    return log_axis(values) if wide else {}


def recovery_curve(table: pd.DataFrame, x: str, drawn: Collection[str] | None = None) -> go.Figure:
    """Recovery along ``x`` (a column, and the axis's title): a line a miner, above the grey band of chance.

    Columns ``x``, miner, seed, value, chance_mean, chance_upper; with a column metric, a drop-down. Miners that are not
    ``drawn`` wait in the legend.
    """
    table = checked(table, [x, "miner", "seed", "value", *LEVELS], [x, "value", *LEVELS])
    fig = _by_metric(table.assign(metric=table.get("metric", "recovery")), x, "miner", drawn)
    x_axis = _log_where_wide(table[x]) | {"title": escape(x.replace("_", " "))}
    return finish(fig, height=430, legend="right", xaxis=x_axis)


def recovery_curves(table: pd.DataFrame) -> go.Figure:
    """Recovery along several quantities, one at a time by a drop-down.

    Columns axis (what ``x`` is, in words), x, miner, seed, metric (one), value, chance_mean, chance_upper.
    """
    table = checked(table, ["axis", "x", "miner", "seed", "metric", "value", *LEVELS], ["x", "value", *LEVELS])
    for level in LEVELS:  # one band: that of the miner which returned most directions
        table[level] = table.groupby(["axis", "x", "miner"])[level].transform("mean")
        table[level] = table.groupby(["axis", "x"])[level].transform("max")
    choices = []
    for axis, part in parts_of(table, "axis"):
        scale = {"xaxis.type": "linear", "xaxis.dtick": None, "xaxis.tickmode": "auto"}
        scale |= {f"xaxis.{key}": value for key, value in _log_where_wide(part["x"]).items()}
        scale |= {"xaxis.title.text": escape(axis), "xaxis.autorange": True}
        choices.append((escape(axis), lines(part, "x", "miner"), scale))
    y_axis = {"title": label(table["metric"].iloc[0])}
    return finish(chosen(choices), height=430, legend="right", yaxis=y_axis)


def training_curves(table: pd.DataFrame, x: str = "step") -> go.Figure:
    """Metrics during training: the mean over seeds as a line, the range of the seeds as a band.

    Columns arm, seed, metric, value and ``x``: "step", "tokens" or another quantity.
    """
    table = checked(table, ["arm", "seed", x, "metric", "value"], [x, "value"])
    fig = _by_metric(table, x)
    axes = {"step": "training step", "tokens": "tokens trained on"}
    scale_buttons(fig, "xaxis", "log" if x in axes and table[x].min() > 0 else "linear")
    return finish(fig, height=430, legend="right", xaxis={"title": axes.get(x, label(x))})


def quality_front(table: pd.DataFrame) -> go.Figure:
    """Quality against L0: a line an arm through the SAEs trained at several k, a drop-down over the metrics.

    Columns arm, seed, k (asked), l0 (active latents a token, measured), metric, value.
    """
    table = checked(table, ["arm", "seed", "k", "l0", "metric", "value"], ["k", "l0", "value"])
    table = table.assign(l0=table.groupby(["arm", "k"])["l0"].transform("mean"))  # one point for all seeds of a k
    ks = sorted(table["k"].unique())
    x_axis = {"title": label("l0"), "type": "log", "tickvals": ks, "ticktext": [f"{k:g}" for k in ks]}
    return finish(_by_metric(table, "l0"), height=430, legend="right", xaxis=x_axis)


def funnel(table: pd.DataFrame) -> go.Figure:
    """How many are left after each stage of a search, a line an arm on a logarithmic axis that 0 is put at the foot of.

    Columns arm, seed, stage (in the order in which the table names them), value (a count).
    """
    table = checked(table, ["arm", "seed", "stage", "value"], ["value"]).astype({"arm": str})
    stages, arms = (table[column].unique().tolist() for column in ("stage", "arm"))
    fig = go.Figure()
    for arm in arm_order(arms):
        part = table[table["arm"] == arm]
        seeds = part.groupby("stage", sort=False)["value"].agg(["mean", "min", "max"])
        told = [
            f"{escape(stage)}: {number(row['mean'])}, seeds from {number(row['min'])} to {number(row['max'])}"
            for stage, row in seeds.iterrows()
        ]
        x, y, style = list(map(stages.index, seeds.index)), seeds["mean"].clip(lower=FOOT).to_numpy(), style_of(arm)
        looks = {"mode": "lines+markers", "line": {"color": style.colour, "width": 2}}
        looks["marker"] = {"symbol": style.marker, "size": 9}
        fig.add_scatter(x=x, y=y, text=told, **looks, **named(arm, "<br>%{text}"))
    most = int(np.ceil(np.log10(max(table["value"].max(), 10))))
    decades = [10**power for power in range(most + 1)]
    x_axis = {"tickvals": list(range(len(stages))), "ticktext": [escape(stage) for stage in stages], "zeroline": False}
    y_axis = {"title": "directions left (count)", "type": "log", "range": [np.log10(FOOT) - 0.1, most + 0.1]}
    y_axis |= {"tickvals": [FOOT, *decades], "ticktext": ["0", *(f"{count:,}" for count in decades)]}
    return finish(fig, height=400, legend="right", xaxis=x_axis, yaxis=y_axis)


def toy_curves(table: pd.DataFrame) -> go.Figure:
    """Loss, represented features and dimensionality of toy models against the features' probability.

    Columns probability (0, 1], instance, loss, n_represented, mean_dimensionality; one row an instance.
    """
    quantities = ["n_represented", "mean_dimensionality", "loss"]
    choices = []
    for quantity in quantities:
        part = checked(table, ["probability", "instance", *quantities], ["probability", quantity])
        choices.append((short(quantity), _instances(part, quantity), {"yaxis.title.text": label(quantity)}))
    measured = np.sort(table["probability"].unique())
    x_axis = log_axis(measured) | {"title": "probability that a feature is active"}
    if len(measured) <= MAX_TICKS:
        x_axis |= {"tickmode": "array", "tickvals": measured, "ticktext": [number(p) for p in measured]}
    return finish(chosen(choices), height=420, legend="right", xaxis=x_axis)


def _instances(table: pd.DataFrame, quantity: str) -> list[Any]:
    """A dot an instance, their median as a line and their middle 80 % as a band."""
    ends = table.groupby("probability")[quantity].quantile([0.1, 0.5, 0.9]).unstack().reset_index().to_numpy().T
    marker = {"symbol": "line-ew-open", "size": 16, "line": {"width": 3}}
    middle, median = _middle(*ends, "instances", "p = %{x:.3g}<br>median %{y:.4g}", 2.5, marker=marker)
    dots = go.Scattergl if len(table) > MANY else go.Scatter
    one = {"mode": "markers", "name": "one instance", "customdata": table["instance"].map(escape).tolist()}
    one["marker"] = {"color": style_of("datapoint").colour, "size": 5, "opacity": 0.45}
    hover = "p = %{x:.3g}, instance %{customdata}<br>%{y:.4g}<extra></extra>"
    x, y = (table[column].to_numpy(np.float32) for column in ("probability", quantity))
    return [middle, dots(one, x=x, y=y, hovertemplate=hover), median]


def _middle(
    x: Any, low: Any, median: Any, high: Any, among: str, hover: str, width: float, **looks: Any
) -> list[go.Scatter]:
    """The band of the middle 80 %, and a line of medians."""
    colour = style_of("datapoint").colour
    line = {"mode": "lines+markers", "line": {"color": colour, "width": width}, "name": "median"} | looks
    shaded = band(x, low, high, faint(colour), f"10 % to 90 % of {among}", legend=True)
    return [shaded, go.Scatter(line, x=x, y=median, hovertemplate=f"{hover}<extra></extra>")]


def norms_by_position(table: pd.DataFrame) -> go.Figure:
    """Norms of activations by position in the context: the median and the middle 80 %.

    Columns position, q10, median, q90 (norms in activation units).
    """
    columns = ["position", "q10", "median", "q90"]
    table = checked(table, columns, columns).sort_values("position")
    hover = "position %{x}<br>median norm %{y:.4g}<br>80 % of tokens from %{customdata[0]:.4g} to %{customdata[1]:.4g}"
    looks = {"marker": {"size": 4}, "customdata": table[["q10", "q90"]].to_numpy(np.float32)}
    fig = go.Figure(_middle(*table[columns].to_numpy(np.float32).T, "tokens", hover, 2, **looks))
    wide = table["q10"].min() > 0 and table["q90"].max() > 20 * table["q10"].min()
    scale_buttons(fig, "yaxis", "log" if wide else "linear")
    x_axis, y_axis = {"title": "position in the context (tokens)"}, {"title": "norm (activation units)"}
    return finish(fig, height=380, legend="right", xaxis=x_axis, yaxis=y_axis)
