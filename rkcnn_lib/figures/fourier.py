"""The spectrum of a modular-addition model's embedding."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import finish
from rkcnn_lib.figures.inputs import checked
from rkcnn_lib.figures.style import CHANCE_LINE, style_of


def frequency_power(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Bars of the share of power at each frequency, key frequencies in another colour, above a line of chance.

    Parameters
    ----------
    table : DataFrame
        Columns frequency, value (share of the non-constant power), is_key (bool), chance_upper (95 % point of the
        strongest frequency's share in shuffled weights; one value).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["frequency", "value", "is_key", "chance_upper"]
    table = checked(table, columns, ["frequency", "value", "chance_upper"], "frequency_power")
    fig = go.Figure()
    for name, part, colour in (
        ("key frequencies", table[table["is_key"]], style_of("mined").colour),
        ("others", table[~table["is_key"].astype(bool)], style_of("random").colour),
    ):
        fig.add_trace(
            go.Bar(
                x=part["frequency"], y=part["value"], name=name, marker={"color": colour},
                hovertemplate="frequency %{x}: %{y:.2%} of the power<extra></extra>",
            )
        )  # fmt: skip
    ends = [table["frequency"].min() - 0.5, table["frequency"].max() + 0.5]
    fig.add_trace(
        go.Scatter(
            x=ends, y=[table["chance_upper"].iloc[0]] * 2, mode="lines", name="chance: 95 % point of the strongest",
            line={"color": CHANCE_LINE, "dash": "dash"},
            hovertemplate="strongest of all frequencies in shuffled weights, 95 % point: %{y:.2%}<extra></extra>",
        )
    )  # fmt: skip
    return finish(
        fig, title, height=340, legend="right",
        xaxis={"title": "frequency (turns over all p numbers)"}, yaxis={"title": "share of power", "tickformat": ".0%"},
    )  # fmt: skip
