"""Recovery along one quantity or several: a line a miner, its seeds as a band, chance in grey."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, finish, log_axis
from rkcnn_lib.figures.inputs import checked, in_order, metrics_of
from rkcnn_lib.figures.parts import chance_bands, line_of_seeds
from rkcnn_lib.figures.style import escape, label, short


def recovery_curve(table: pd.DataFrame, x: str, title: str | None = None) -> go.Figure:
    """Recovery along ``x``: a line a miner with the range of its seeds, above the grey band of chance.

    Parameters
    ----------
    table : DataFrame
        Columns ``x``, miner, seed, value, chance_mean, chance_upper; with a column metric, a drop-down.
    x : str
        Name of the column on the horizontal axis, also its title.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = [x, "miner", "seed", "value", "chance_mean", "chance_upper"]
    table = checked(table, columns, [x, "value", "chance_mean", "chance_upper"], "recovery_curve")
    fig = go.Figure()
    choices = Choices(fig)
    for metric, part in metrics_of(table):
        choices.add(short(metric or "value"), _lines(part, x), {"yaxis.title.text": label(metric or "recovery")})
    choices.close()
    return finish(
        fig, title, height=430, legend="right", xaxis=_axis(table[x]) | {"title": escape(x.replace("_", " "))}
    )


def recovery_curves(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Recovery along several quantities, one at a time by a drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns axis (what ``x`` is, in words), x, miner, seed, metric (one), value, chance_mean, chance_upper.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column, or holds several metrics.
    """
    columns = ["axis", "x", "miner", "seed", "metric", "value", "chance_mean", "chance_upper"]
    table = checked(table, columns, ["x", "value", "chance_mean", "chance_upper"], "recovery_curves")
    if table["metric"].nunique() > 1:
        raise ValueError(f"recovery_curves: one metric at a time, not {sorted(table['metric'].unique())}")
    fig = go.Figure()
    choices = Choices(fig)
    for level in ("chance_mean", "chance_upper"):  # one band: that of the miner which returned most directions
        table[level] = table.groupby(["axis", "x", "miner"])[level].transform("mean")
        table[level] = table.groupby(["axis", "x"])[level].transform("max")
    for axis, part in metrics_of(table, "axis"):
        scale = {"xaxis.type": "linear", "xaxis.dtick": None, "xaxis.tickmode": "auto"}
        scale |= {f"xaxis.{key}": value for key, value in _axis(part["x"]).items()}
        choices.add(
            escape(axis), _lines(part, "x"), scale | {"xaxis.title.text": escape(axis), "xaxis.autorange": True}
        )
    choices.close()
    return finish(fig, title, height=430, legend="right", yaxis={"title": label(table["metric"].iloc[0])})


def _lines(table: pd.DataFrame, x: str) -> list[go.Scatter]:
    traces = chance_bands(table, x)
    for miner in in_order(table["miner"]):
        traces += line_of_seeds(table[table["miner"] == miner], x, str(miner))
    return traces


def _axis(values: pd.Series) -> dict[str, object]:
    wide = values.min() > 0 and values.max() / values.min() > 30
    return log_axis(values) if wide else {}
