"""Histograms: of cosines, of scores, of how often latents fire; and a point a latent of what they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.display import add_slider, finish, log_axis, scale_buttons
from rkcnn_lib.figures.inputs import as_array, checked, checked_arrays, in_order
from rkcnn_lib.figures.style import CHANCE_FILL, CHANCE_LINE, NEUTRAL, arm_order, escape, faint, number, style_of

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


def cosine_histograms(frames: Mapping[str, Mapping[str, Any]], title: str | None = None) -> go.Figure:
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
        title,
        height=380,
        legend="right",
        xaxis={"title": "signed cosine", "range": [-1.02, 1.02]},
        yaxis={"title": "share of the group", "range": [0, highest * 1.06]},
    )


def score_distribution(
    scores: Mapping[str, Any],
    threshold: float | None = None,
    null_maxima: Any | None = None,
    title: str | None = None,
) -> go.Figure:
    """Histograms of scores with the maxima that surrogate data reach and the threshold drawn from them.

    Arrays (n,) of scores by group, for instance "data" and "surrogate". In the scores' unit: ``threshold``, which a
    direction must beat, and ``null_maxima`` (n_draws,), the largest score of each surrogate search.
    """
    arrays = checked_arrays(scores, "score_distribution", ndim=1)
    looks = {name: (style_of(name).colour, faint(style_of(name).colour)) for name in arrays}
    if null_maxima is not None:
        maxima = as_array(null_maxima, "score_distribution, null_maxima", ndim=1)
        name = f"largest of each null search ({len(maxima)} draws)"
        arrays[name], looks[name] = maxima, (CHANCE_LINE, CHANCE_FILL)
    pooled = np.concatenate([*arrays.values()])
    log = pooled.min() > 0 and pooled.max() > 50 * np.median(pooled)
    edges = np.geomspace(pooled.min(), pooled.max() * 1.001, 61) if log else np.histogram_bin_edges(pooled, 60)
    shares = {name: _shares(values, edges) for name, values in arrays.items()}
    fig = go.Figure([steps(name=name, **shares[name], hover=HOVER, colour=c, fill=f) for name, (c, f) in looks.items()])
    if threshold is not None:
        top = max(max(share["y"]) for share in shares.values())
        fig.add_trace(
            go.Scatter(
                x=[threshold, threshold],
                y=[0, top],
                mode="lines",
                name=f"threshold {number(threshold)}",
                line={"color": NEUTRAL, "width": 2, "dash": "dash"},
                hovertemplate=f"threshold {number(threshold)}<extra></extra>",
            )
        )
    scale_buttons(fig, "yaxis", "linear")
    x_axis = (log_axis(pooled) if log else {}) | {"title": "score"}
    return finish(fig, title, height=400, legend="right", xaxis=x_axis, yaxis={"title": "share of the group"})


def density(densities: Mapping[str, Any], title: str | None = None) -> go.Figure:
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
    return finish(fig, title, height=400, legend="right")


def latent_map(table: pd.DataFrame, title: str | None = None) -> go.Figure:
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
    return finish(fig, title, height=440, legend="top")


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
