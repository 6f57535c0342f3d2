"""Histograms: of cosines, of scores, of how often latents fire; points and bars that show a distribution whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.display import (
    add_slider,
    as_array,
    checked,
    checked_arrays,
    chosen,
    finish,
    in_order,
    log_axis,
    scale_buttons,
)
from rkcnn_lib.figures.lines import MANY
from rkcnn_lib.figures.style import (
    CHANCE_LINE,
    SEQUENTIAL,
    arm_order,
    escape,
    faint,
    style_of,
)

COSINES = np.linspace(-1, 1, 81)  # edges of bins


def steps(x: Any, y: Any, name: str, colour: str, fill: str, hover: str, **trace: Any) -> go.Scatter:
    """The form: a filled step line over the edges of bins ``x``; ``y`` ends with 0."""
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": 1.8, "shape": "hv"},
        fill="tozeroy",
        fillcolor=fill,
        name=escape(name),
        legendgroup=escape(name),
        hovertemplate=f"<b>{escape(name)}</b><br>{hover}<extra></extra>",
        **trace,
    )


def _shares(values: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """The share and the count of ``values`` in each bin, as plain lists: frames are made of them."""
    counts = np.histogram(values, edges)[0]
    return {
        "x": [round(float(edge), 8) for edge in edges],
        "y": [round(float(share), 6) for share in (*counts / len(values), 0.0)],
        "customdata": [int(count) for count in (*counts, 0)],
    }


HOVER = "from %{x:.3g}<br>%{y:.2%} (%{customdata})"  # of `_shares`


def cosine_histograms(frames: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Histograms of signed cosines by group, with a slider over the frames (for instance training steps).

    Arrays (n,) in [-1, 1] by frame and group; each frame holds the same groups (mined, learned, random).
    """
    if not frames or not all(frames.values()):
        raise ValueError("cosine_histograms: nothing was given, so there is nothing to draw")
    groups = in_order(group for frame in frames.values() for group in frame)
    data: dict[str, list[dict[str, Any]]] = {}
    for name, frame in frames.items():
        if set(frame) != set(groups):
            raise ValueError(f"cosine_histograms, {name!r}: has groups {list(frame)}, others have {groups}")
        data[str(name)] = []
        for group in groups:
            values = as_array(frame[group], f"cosine_histograms, {name!r}, {group!r}", ndim=1)
            if np.abs(values).max() > 1 + 1e-4:
                raise ValueError(f"cosine_histograms, {name!r}, {group!r}: cosines must lie in [-1, 1]")
            data[str(name)].append({"type": "scatter"} | _shares(np.clip(values, -1, 1), COSINES))
    fig = go.Figure()
    for group, shares in zip(groups, list(data.values())[-1], strict=True):
        colour = style_of(group).colour
        meta = {"rkcnn_bins": "cosine", "group": escape(group)}  # for pages: a click lists the bin's latents
        fig.add_trace(steps(name=group, colour=colour, fill=faint(colour), hover=HOVER, meta=meta, **shares))
    add_slider(fig, data, active=len(data) - 1)
    highest = max(max(shares["y"]) for frame in data.values() for shares in frame)
    return finish(
        fig,
        height=380,
        legend="right",
        xaxis={"title": "signed cosine", "range": [-1.02, 1.02]},
        yaxis={"title": "share of the group", "range": [0, highest * 1.06]},
    )


def score_distribution(scores: Mapping[str, Any]) -> go.Figure:
    """Histograms of scores by group, for instance "data" and "surrogate": arrays (n,), in the scores' unit."""
    arrays = checked_arrays(scores, "score_distribution", ndim=1)
    pooled = np.concatenate([*arrays.values()])
    log = pooled.min() > 0 and pooled.max() > 50 * np.median(pooled)
    edges = np.geomspace(pooled.min(), pooled.max() * 1.001, 61) if log else np.histogram_bin_edges(pooled, 60)
    fig = go.Figure()
    for name, values in arrays.items():
        colour = style_of(name).colour
        fig.add_trace(steps(name=name, colour=colour, fill=faint(colour), hover=HOVER, **_shares(values, edges)))
    scale_buttons(fig, "yaxis", "linear")
    x_axis = (log_axis(pooled) if log else {}) | {"title": "score"}
    return finish(fig, height=400, legend="right", xaxis=x_axis, yaxis={"title": "share of the group"})


def density(densities: Mapping[str, Any]) -> go.Figure:
    """Histograms of how often latents fire, on a log axis, with those that never fire in a panel of their own.

    Arrays (n_latents,) by arm: the share of tokens on which each latent fires, [0, 1]; 0 means that it never fired.
    """
    arrays = checked_arrays(densities, "density", ndim=1)
    if any(values.min() < 0 or values.max() > 1 for values in arrays.values()):
        raise ValueError("density: firing densities are shares of tokens, in [0, 1]")
    live = {name: np.log10(values[values > 0]) for name, values in arrays.items()}
    floor = min((powers.min() for powers in live.values() if powers.size), default=-1.0)
    edges = np.linspace(min(np.floor(floor * 2) / 2, -0.5), 0, 61)
    fig = make_subplots(rows=1, cols=2, column_widths=[0.2, 0.8], horizontal_spacing=0.1)
    for position, name in enumerate(arm_order(list(arrays))):
        colour, shown, n_latents = style_of(name).colour, escape(name), len(arrays[name])
        n_dead = int((arrays[name] == 0).sum())
        never = go.Bar(
            x=[position],
            y=[n_dead / n_latents],
            marker={"color": colour},
            name=shown,
            legendgroup=shown,
            showlegend=False,
            meta={"rkcnn_bins": "never", "arm": shown},
            hovertemplate=f"<b>{shown}</b><br>{n_dead} of {n_latents} latents never fire (%{{y:.2%}})<extra></extra>",
        )
        counts = np.histogram(live[name], edges)[0]
        hover = "fires on %{customdata:.2g} of the tokens<br>%{y:.2%} of its latents in this bin"
        meta = {"rkcnn_bins": "rate", "arm": shown}  # for pages: a click lists the bin's latents
        shares = np.append(counts / n_latents, 0.0)
        rates = steps(edges, shares, name, colour, faint(colour, 0.1), hover, customdata=10.0**edges, meta=meta)
        fig.add_traces([never, rates], rows=[1, 1], cols=[1, 2])
    decades = np.arange(np.ceil(edges[0]), 0.5)
    fig.update_xaxes(title="never fire", showticklabels=False, ticks="", row=1, col=1)
    fig.update_yaxes(title="share of the dictionary", row=1, col=1)
    fig.update_xaxes(
        title="share of tokens on which a latent fires",
        tickvals=decades,
        ticktext=[f"10<sup>{int(power)}</sup>" for power in decades],
        row=1,
        col=2,
    )
    fig.update_yaxes(title="share in each bin", row=1, col=2)
    fig.update_yaxes(tickformat=".0%", rangemode="tozero")
    return finish(fig, height=400, legend="right")


def latent_map(table: pd.DataFrame) -> go.Figure:
    """A point a latent: how often it fires (log axis; those that never do in a strip) and its cosine to its start.

    Columns group, latent, rate ([0, 1]), cosine ([-1, 1]), card (its id, which pages open on a click).
    """
    table = checked(table, ["group", "latent", "rate", "cosine", "card"], ["rate", "cosine"], "latent_map")
    if table["rate"].min() < 0 or table["rate"].max() > 1 or table["cosine"].abs().max() > 1 + 1e-4:
        raise ValueError("latent_map: rates are shares of tokens, in [0, 1], and cosines lie in [-1, 1]")
    fig = make_subplots(rows=1, cols=2, column_widths=[0.16, 0.84], horizontal_spacing=0.03, shared_yaxes=True)
    groups = arm_order([str(name) for name in in_order(table["group"])])
    for position, group in enumerate(groups):
        part = table[table["group"].astype(str) == group]
        dead, live = part[part["rate"] == 0], part[part["rate"] > 0]
        spread = (dead["latent"].to_numpy() * 0.618) % 1 * 0.7 - 0.35  # sideways, so that they stay apart
        latents = [_latents(dead, position + spread, group, False), _latents(live, live["rate"], group, True)]
        fig.add_traces(latents, rows=[1, 1], cols=[1, 2])
    strip = {"range": [-0.6, len(groups) - 0.4], "showticklabels": False, "ticks": "", "showgrid": False}
    fig.update_xaxes(title="never", zeroline=False, **strip, row=1, col=1)
    fig.update_xaxes(type="log", dtick=1, title="share of tokens on which it fires", row=1, col=2)
    fig.update_yaxes(title="signed cosine to its start", row=1, col=1)
    return finish(fig, height=440, legend="top")


def _latents(part: pd.DataFrame, x: Any, group: str, legend: bool) -> go.Scatter:
    style, shown = style_of(group), escape(group)
    rates = ["never fires" if rate == 0 else f"fires on {100 * rate:.3g} % of tokens" for rate in part["rate"]]
    return go.Scatter(
        x=[float(f"{value:.4g}") for value in x],
        y=part["cosine"].round(4).tolist(),
        mode="markers",
        marker={"color": style.colour, "symbol": style.marker, "size": 7, "opacity": 0.6},
        name=shown,
        legendgroup=shown,
        showlegend=legend,
        customdata=part["card"].tolist(),
        text=[f"latent {n}<br>{rate}" for n, rate in zip(part["latent"], rates, strict=True)],
        hovertemplate=f"<b>{shown}</b>, %{{text}}<br>cosine to its start %{{y:.2f}}<extra></extra>",
    )


def variance_by_dimension(table: pd.DataFrame) -> go.Figure:
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
    return finish(fig, height=480)


def frequency_power(table: pd.DataFrame) -> go.Figure:
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
    return finish(go.Figure([*bars, chance]), height=340, legend="right", xaxis=x_axis, yaxis=y_axis)


def spectrum(eigenvalues: Mapping[str, Any]) -> go.Figure:
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
    return finish(fig, height=400, legend="right", xaxis=x_axis)
