"""Figures of activations and weights themselves: norms by position, variance by dimension, spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.display import chosen, finish, log_axis, scale_buttons
from rkcnn_lib.figures.inputs import checked, checked_arrays
from rkcnn_lib.figures.lines import MANY, band
from rkcnn_lib.figures.style import CHANCE_LINE, SEQUENTIAL, escape, faint, style_of


def norms_by_position(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Norms of activations by position in the context: the median and the middle 80 %.

    Columns position, q10, median, q90 (norms in activation units).
    """
    columns = ["position", "q10", "median", "q90"]
    table = checked(table, columns, columns, "norms_by_position").sort_values("position")
    colour = style_of("datapoint").colour
    middle = band(table["position"], table["q10"], table["q90"], faint(colour), "10 % to 90 % of tokens", legend=True)
    median = go.Scatter(
        x=table["position"].to_numpy(np.float32),
        y=table["median"].to_numpy(np.float32),
        customdata=table[["q10", "q90"]].to_numpy(np.float32),
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 4},
        name="median",
        hovertemplate="position %{x}<br>median norm %{y:.4g}"
        "<br>80 % of tokens from %{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
    )
    fig = go.Figure([middle, median])
    wide = table["q10"].min() > 0 and table["q90"].max() > 20 * table["q10"].min()
    scale_buttons(fig, "yaxis", "log" if wide else "linear")
    x_axis, y_axis = {"title": "position in the context (tokens)"}, {"title": "norm (activation units)"}
    return finish(fig, title, height=380, legend="right", xaxis=x_axis, yaxis=y_axis)


def variance_by_dimension(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Share of the variance of each dimension, sorted, and its running sum; the colour is the excess kurtosis.

    Columns dimension, share (of the total variance, [0, 1]), kurtosis (excess).
    """
    columns = ["dimension", "share", "kurtosis"]
    table = checked(table, columns, ["share", "kurtosis"], "variance_by_dimension")
    table = table.sort_values("share", ascending=False, ignore_index=True)
    rank = np.arange(1, len(table) + 1)
    names = [escape(name) for name in table["dimension"]]
    dots = go.Scattergl if len(table) > MANY else go.Scatter
    shares = dots(
        x=rank,
        y=table["share"].to_numpy(np.float32),
        mode="markers",
        marker={
            "color": np.log10(1 + np.clip(table["kurtosis"].to_numpy(), 0, None)).astype(np.float32),
            "colorscale": SEQUENTIAL,
            "size": 6,
            "colorbar": {"title": {"text": "log₁₀(1 +<br>kurtosis)"}, "thickness": 12},
        },
        customdata=np.stack([names, table["kurtosis"].round(2).astype(str)], axis=1),
        hovertemplate="dimension %{customdata[0]} (rank %{x})<br>%{y:.3%} of the variance"
        "<br>excess kurtosis %{customdata[1]}<extra></extra>",
    )
    sums = go.Scatter(
        x=rank,
        y=table["share"].cumsum().to_numpy(np.float32),
        mode="lines",
        line={"color": style_of("datapoint").colour, "width": 2},
        hovertemplate="the first %{x} dimensions carry %{y:.1%} of the variance<extra></extra>",
    )
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.62, 0.38])
    fig.add_traces([shares, sums], rows=[1, 2], cols=[1, 1])
    fig.update_xaxes(log_axis([1, len(table)]))
    fig.update_xaxes(title="rank of the dimension", row=2, col=1)
    fig.update_yaxes(title="share", type="log", row=1, col=1)
    fig.update_yaxes(title="running sum", tickformat=".0%", range=[0, 1.03], row=2, col=1)
    return finish(fig, title, height=480)


def spectrum(eigenvalues: Mapping[str, Any], title: str | None = None) -> go.Figure:
    """Eigenvalue spectra of covariances, as shares of their totals, and their running sums.

    Arrays (d,) of eigenvalues by layer or source, in any order, none negative beyond rounding, not all zero.
    """
    arrays = checked_arrays(eigenvalues, "spectrum", ndim=1)
    shares, sums = [], []
    for name, values in arrays.items():
        if values.min() < -1e-4 * np.abs(values).max() or values.max() <= 0:
            raise ValueError(f"spectrum, {name!r}: eigenvalues of a covariance are not negative, nor all zero")
        values = np.sort(np.clip(values, 0, None))[::-1]
        share = values / values.sum()
        effective = 1 / float((share**2).sum())
        shown, rank = escape(name), np.arange(1, len(share) + 1)
        kept = share > 1e-12  # a logarithm needs values above zero: what is rounding error is left out
        line = {
            "mode": "lines",
            "line": {"color": style_of(name).colour, "width": 2},
            "name": f"{shown} (participation ratio {effective:.1f} of {len(share)})",
            "legendgroup": shown,
        }
        hover = f"<b>{shown}</b><br>component %{{x}}: %{{y:.3%}}<extra></extra>"
        shares.append(go.Scatter(x=rank[kept], y=share[kept].astype(np.float32), hovertemplate=hover, **line))
        hover = f"<b>{shown}</b><br>the first %{{x}} carry %{{y:.1%}}<extra></extra>"
        sums.append(go.Scatter(x=rank, y=share.cumsum().astype(np.float32), hovertemplate=hover, **line))
    fig = chosen(
        [
            ("share of the variance", shares, {"yaxis.title.text": "share of the variance", "yaxis.type": "log"}),
            ("running sum", sums, {"yaxis.title.text": "running sum of the shares", "yaxis.type": "linear"}),
        ]
    )
    x_axis = log_axis([1, max(len(values) for values in arrays.values())]) | {"title": "principal component"}
    return finish(fig, title, height=400, legend="right", xaxis=x_axis)


def frequency_power(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Bars of the share of power at each frequency, key frequencies in another colour, above a line of chance.

    Columns frequency, value (share of the non-constant power), is_key (bool), chance_upper (95 % point of the
    strongest frequency's share in shuffled weights; one value).
    """
    columns = ["frequency", "value", "is_key", "chance_upper"]
    table = checked(table, columns, ["frequency", "value", "chance_upper"], "frequency_power")
    is_key = table["is_key"].astype(bool)
    bars = [
        go.Bar(
            x=part["frequency"],
            y=part["value"],
            name=name,
            marker={"color": style_of(arm).colour},
            hovertemplate="frequency %{x}: %{y:.2%} of the power<extra></extra>",
        )
        for name, part, arm in (
            ("key frequencies", table[is_key], "mined"),
            ("others", table[~is_key], "random"),
        )
    ]
    chance = go.Scatter(
        x=[table["frequency"].min() - 0.5, table["frequency"].max() + 0.5],
        y=[table["chance_upper"].iloc[0]] * 2,
        mode="lines",
        name="chance: 95 % point of the strongest",
        line={"color": CHANCE_LINE, "dash": "dash"},
        hovertemplate="strongest of all frequencies in shuffled weights, 95 % point: %{y:.2%}<extra></extra>",
    )
    x_axis, y_axis = {"title": "frequency (turns over all p numbers)"}, {"title": "share of power", "tickformat": ".0%"}
    return finish(go.Figure([*bars, chance]), title, height=340, legend="right", xaxis=x_axis, yaxis=y_axis)
