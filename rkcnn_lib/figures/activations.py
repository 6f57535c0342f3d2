"""Figures of activations themselves: norms by position, variance by dimension, spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.controls import Choices, finish, log_axis, scale_buttons
from rkcnn_lib.figures.inputs import checked, checked_arrays
from rkcnn_lib.figures.parts import band
from rkcnn_lib.figures.style import escape, faint, style_of

MANY = 4000  # points from which WebGL draws


def norms_by_position(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Norms of activations by position in the context: the median and the middle 80 %.

    Parameters
    ----------
    table : DataFrame
        Columns position, q10, median, q90 (norms in activation units).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["position", "q10", "median", "q90"]
    table = checked(table, columns, columns, "norms_by_position").sort_values("position")
    style = style_of("datapoint")
    fig = go.Figure(
        [
            band(
                table["position"], table["q10"], table["q90"], faint(style.colour),
                name="10 % to 90 % of tokens", legend=True,
            ),
            go.Scatter(
                x=table["position"].to_numpy(np.float32),
                y=table["median"].to_numpy(np.float32),
                customdata=table[["q10", "q90"]].to_numpy(np.float32),
                mode="lines+markers",
                line={"color": style.colour, "width": 2},
                marker={"size": 4},
                name="median",
                hovertemplate="position %{x}<br>median norm %{y:.4g}"
                "<br>80 % of tokens from %{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
            ),
        ]
    )  # fmt: skip
    wide = table["q10"].min() > 0 and table["q90"].max() > 20 * table["q10"].min()
    scale_buttons(fig, "yaxis", "log" if wide else "linear")
    return finish(
        fig,
        title,
        height=380,
        legend="right",
        xaxis={"title": "position in the context (tokens)"},
        yaxis={"title": "norm (activation units)"},
    )


def variance_by_dimension(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Share of the variance of each dimension, sorted, and its running sum; the colour is the excess kurtosis.

    Parameters
    ----------
    table : DataFrame
        Columns dimension, share (of the total variance, [0, 1]), kurtosis (excess).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    columns = ["dimension", "share", "kurtosis"]
    table = checked(table, columns, ["share", "kurtosis"], "variance_by_dimension")
    table = table.sort_values("share", ascending=False, ignore_index=True)
    rank = np.arange(1, len(table) + 1)
    tint = np.log10(1 + np.clip(table["kurtosis"].to_numpy(), 0, None)).astype(np.float32)
    names = [escape(name) for name in table["dimension"]]
    kind = go.Scattergl if len(table) > MANY else go.Scatter
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.62, 0.38])
    fig.add_trace(
        kind(
            x=rank,
            y=table["share"].to_numpy(np.float32),
            mode="markers",
            marker={
                "color": tint,
                "colorscale": "Cividis",
                "size": 6,
                "colorbar": {"title": {"text": "log₁₀(1 +<br>kurtosis)"}, "thickness": 12},
            },
            customdata=np.stack([names, table["kurtosis"].round(2).astype(str)], axis=1),
            hovertemplate="dimension %{customdata[0]} (rank %{x})<br>%{y:.3%} of the variance"
            "<br>excess kurtosis %{customdata[1]}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    fig.add_trace(
        go.Scatter(
            x=rank,
            y=table["share"].cumsum().to_numpy(np.float32),
            mode="lines",
            line={"color": style_of("datapoint").colour, "width": 2},
            hovertemplate="the first %{x} dimensions carry %{y:.1%} of the variance<extra></extra>",
        ),
        row=2,
        col=1,
    )
    fig.update_xaxes(log_axis([1, len(table)]))
    fig.update_xaxes(title="rank of the dimension", row=2, col=1)
    fig.update_yaxes(title="share", type="log", row=1, col=1)
    fig.update_yaxes(title="running sum", tickformat=".0%", range=[0, 1.03], row=2, col=1)
    return finish(fig, title, height=480)


def spectrum(eigenvalues: Mapping[str, Any], title: str | None = None) -> go.Figure:
    """Eigenvalue spectra of covariances, as shares of their totals, and their running sums.

    Parameters
    ----------
    eigenvalues : mapping of str to array (d,)
        Eigenvalues by layer or source, in any order, none negative beyond rounding.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given, an array is empty or holds a clearly negative value, or all are zero.
    """
    arrays = checked_arrays(eigenvalues, "spectrum", ndim=1)
    longest = max(len(values) for values in arrays.values())
    shares, sums = [], []
    for name, values in arrays.items():
        if values.min() < -1e-4 * np.abs(values).max() or values.max() <= 0:
            raise ValueError(f"spectrum, {name!r}: eigenvalues of a covariance are not negative, nor all zero")
        values = np.sort(np.clip(values, 0, None))[::-1]
        share = values / values.sum()
        effective = 1 / float((share**2).sum())
        style, shown, rank = style_of(name), escape(name), np.arange(1, len(share) + 1)
        # A logarithm needs values above zero: what is rounding error is left out.
        kept = share > 1e-12
        common = {"mode": "lines", "line": {"color": style.colour, "width": 2}}
        common |= {"name": f"{shown} (participation ratio {effective:.1f} of {len(share)})", "legendgroup": shown}
        shares.append(
            go.Scatter(
                x=rank[kept], y=share[kept].astype(np.float32), **common,
                hovertemplate=f"<b>{shown}</b><br>component %{{x}}: %{{y:.3%}}<extra></extra>",
            )
        )  # fmt: skip
        sums.append(
            go.Scatter(
                x=rank, y=share.cumsum().astype(np.float32), **common,
                hovertemplate=f"<b>{shown}</b><br>the first %{{x}} carry %{{y:.1%}}<extra></extra>",
            )
        )  # fmt: skip
    fig = go.Figure()
    choices = Choices(fig)
    choices.add("share of the variance", shares, {"yaxis.title.text": "share of the variance", "yaxis.type": "log"})
    choices.add("running sum", sums, {"yaxis.title.text": "running sum of the shares", "yaxis.type": "linear"})
    choices.close()
    return finish(
        fig, title, height=400, legend="right", xaxis=log_axis([1, longest]) | {"title": "principal component"}
    )
