"""What a model would say next, under several runs of one prompt."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import finish
from rkcnn_lib.figures.inputs import checked, in_order
from rkcnn_lib.figures.parts import rows_axis
from rkcnn_lib.figures.style import escape, style_of


def next_tokens(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """A row a token: its probability of coming next in each run.

    Parameters
    ----------
    table : DataFrame
        Columns token, run, probability ([0, 1]); tokens and runs in the order they are to be shown.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty, lacks a column, or a probability lies outside [0, 1].
    """
    table = checked(table, ["token", "run", "probability"], ["probability"], "next_tokens")
    if table["probability"].min() < 0 or table["probability"].max() > 1 + 1e-6:
        raise ValueError("next_tokens: probabilities lie in [0, 1]")
    tokens, runs = ([str(name) for name in in_order(table[column])] for column in ("token", "run"))
    fig = go.Figure()
    for i, run in enumerate(runs):
        part, style, shown = table[table["run"].astype(str) == run], style_of(run), escape(run)
        shift = 0.18 * (i - (len(runs) - 1) / 2)  # equal probabilities stay visible
        fig.add_trace(
            go.Scatter(
                x=[round(float(p), 5) for p in part["probability"]],
                y=[tokens.index(str(token)) + shift for token in part["token"]], mode="markers", name=shown,
                marker={"color": style.colour, "symbol": style.marker, "size": 11},
                text=[escape(token) for token in part["token"]],
                hovertemplate=f"<b>{shown}</b>: “%{{text}}” %{{x:.1%}}<extra></extra>",
            )
        )  # fmt: skip
    return finish(
        fig,
        title,
        height=90 + 34 * len(tokens),
        legend="top",
        xaxis={"title": "probability of coming next", "range": [-0.02, 1.02], "tickformat": ".0%"},
        yaxis=rows_axis(tokens),
    )
