"""Figures of latents: their cosines during training, how often they fire, how many never do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.arms import arm_lines
from rkcnn_lib.figures.controls import add_slider, finish, log_axis
from rkcnn_lib.figures.dots import arm_order
from rkcnn_lib.figures.inputs import as_array, checked, checked_arrays, in_order
from rkcnn_lib.figures.parts import steps
from rkcnn_lib.figures.style import escape, faint, style_of

BINS = np.linspace(-1, 1, 81)


def cosine_histograms(frames: Mapping[str, Mapping[str, Any]], title: str | None = None) -> go.Figure:
    """Histograms of signed cosines by group, with a slider over the frames (for instance training steps).

    Parameters
    ----------
    frames : mapping of str to mapping of str to array (n,)
        Cosines in [-1, 1]; each frame holds the same groups (mined, learned, random).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given, groups differ between frames, or a value lies outside [-1, 1].
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
            trace = steps(np.clip(values, -1, 1), BINS, group, style_of(group).colour)
            trace.meta = {"rkcnn_bins": "cosine", "group": escape(group)}  # for pages: a click lists the bin's latents
            data[str(name)].append(trace.to_plotly_json())
    fig = go.Figure([go.Scatter(**trace) for trace in list(data.values())[-1]])
    highest = max(max(trace["y"]) for frame in data.values() for trace in frame)
    moving = {
        name: [{"type": "scatter", "x": t["x"], "y": t["y"], "customdata": t["customdata"]} for t in frame]
        for name, frame in data.items()
    }
    add_slider(fig, moving, active=len(moving) - 1)
    return finish(
        fig,
        title,
        height=380,
        legend="right",
        xaxis={"title": "signed cosine", "range": [-1.02, 1.02]},
        yaxis={"title": "share of the group", "range": [0, highest * 1.06]},
    )


def density(densities: Mapping[str, Any], title: str | None = None) -> go.Figure:
    """Histograms of how often latents fire, on a log axis, with those that never fire in a panel of their own.

    Parameters
    ----------
    densities : mapping of str to array (n_latents,)
        Share of tokens on which each latent of an arm fires, [0, 1]; 0 means that it never fired.
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If nothing is given or a value lies outside [0, 1].
    """
    arrays = checked_arrays(densities, "density", ndim=1)
    if any(values.min() < 0 or values.max() > 1 for values in arrays.values()):
        raise ValueError("density: firing densities are shares of tokens, in [0, 1]")
    alive = [np.log10(values[values > 0]) for values in arrays.values()]
    floor = min((part.min() for part in alive if part.size), default=-1.0)
    edges = np.linspace(min(np.floor(floor * 2) / 2, -0.5), 0, 61)
    names = arm_order(list(arrays))
    fig = make_subplots(rows=1, cols=2, column_widths=[0.2, 0.8], horizontal_spacing=0.1)
    for position, name in enumerate(names):
        values, style, shown = arrays[name], style_of(name), escape(name)
        live = np.log10(values[values > 0])
        dead = float((values == 0).mean())
        fig.add_trace(
            go.Bar(
                x=[position], y=[dead], marker={"color": style.colour}, name=shown, legendgroup=shown, showlegend=False,
                meta={"rkcnn_bins": "never", "arm": shown},
                hovertemplate=f"<b>{shown}</b><br>{int((values == 0).sum())} of {len(values)} latents never fire"
                " (%{y:.2%})<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
        counts = np.histogram(live, edges)[0]
        fig.add_trace(
            go.Scatter(
                x=edges, y=np.append(counts / len(values), 0.0), mode="lines", fill="tozeroy",
                line={"color": style.colour, "width": 1.8, "shape": "hv"}, fillcolor=faint(style.colour, 0.1),
                name=shown, legendgroup=shown, customdata=10.0**edges,
                meta={"rkcnn_bins": "rate", "arm": shown},  # for pages: a click lists the bin's latents
                hovertemplate=f"<b>{shown}</b><br>fires on %{{customdata:.2g}} of the tokens"
                "<br>%{y:.2%} of its latents in this bin<extra></extra>",
            ),
            row=1, col=2,
        )  # fmt: skip
    decades = np.arange(np.ceil(edges[0]), 0.5)
    fig.update_xaxes(title="never fire", showticklabels=False, ticks="", row=1, col=1)
    fig.update_yaxes(title="share of the dictionary", tickformat=".0%", rangemode="tozero", row=1, col=1)
    fig.update_xaxes(
        title="share of tokens on which a latent fires",
        tickvals=decades,
        ticktext=[f"10<sup>{int(power)}</sup>" for power in decades],
        row=1,
        col=2,
    )
    fig.update_yaxes(title="share in each bin", tickformat=".0%", rangemode="tozero", row=1, col=2)
    return finish(fig, title, height=400, legend="right")


def latent_map(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """A point a latent: how often it fires (log axis; those that never do in a strip) and its cosine to its start.

    Parameters
    ----------
    table : DataFrame
        Columns group, latent, rate ([0, 1]), cosine ([-1, 1]), card (its id, which pages open on a click).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column, or a value lies outside its range.
    """
    table = checked(table, ["group", "latent", "rate", "cosine", "card"], ["rate", "cosine"], "latent_map")
    if table["rate"].min() < 0 or table["rate"].max() > 1 or table["cosine"].abs().max() > 1 + 1e-4:
        raise ValueError("latent_map: rates are shares of tokens, in [0, 1], and cosines lie in [-1, 1]")
    fig = make_subplots(rows=1, cols=2, column_widths=[0.16, 0.84], horizontal_spacing=0.03, shared_yaxes=True)
    groups = arm_order([str(name) for name in in_order(table["group"])])
    for position, group in enumerate(groups):
        part = table[table["group"].astype(str) == group]
        for column, here in ((1, part[part["rate"] == 0]), (2, part[part["rate"] > 0])):
            _add_latents(fig, here, group, position, column)
    fig.update_xaxes(
        title="never", range=[-0.6, len(groups) - 0.4], showticklabels=False, ticks="", showgrid=False,
        zeroline=False, row=1, col=1,
    )  # fmt: skip
    fig.update_xaxes(type="log", dtick=1, title="share of tokens on which it fires", row=1, col=2)
    fig.update_yaxes(title="signed cosine to its start", row=1, col=1)
    return finish(fig, title, height=440, legend="top")


def _add_latents(fig: go.Figure, part: pd.DataFrame, group: str, position: int, column: int) -> None:
    """Add the latents of a group to one panel; those that never fire are spread sideways so that they stay apart."""
    style, shown = style_of(group), escape(group)
    spread = (part["latent"].to_numpy() * 0.618) % 1 * 0.7 - 0.35
    x = part["rate"].to_numpy() if column == 2 else position + spread
    rates = ["never fires" if rate == 0 else f"fires on {100 * rate:.3g} % of tokens" for rate in part["rate"]]
    fig.add_trace(
        go.Scatter(
            x=[float(f"{value:.4g}") for value in x], y=part["cosine"].round(4).tolist(), mode="markers",
            marker={"color": style.colour, "symbol": style.marker, "size": 7, "opacity": 0.6},
            name=shown, legendgroup=shown, showlegend=column == 2, customdata=part["card"].tolist(),
            text=[f"latent {n}<br>{rate}" for n, rate in zip(part["latent"], rates, strict=True)],
            hovertemplate=f"<b>{shown}</b>, %{{text}}<br>cosine to its start %{{y:.2f}}<extra></extra>",
        ),
        row=1, col=column,
    )  # fmt: skip


def dead_curve(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Share of latents that have not fired yet, against the number of tokens looked at.

    Parameters
    ----------
    table : DataFrame
        Columns arm, seed, tokens, share ([0, 1]).
    title : str, optional
        The finding, in words.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column, or a number of tokens is not positive.
    """
    table = checked(table, ["arm", "seed", "tokens", "share"], ["tokens", "share"], "dead_curve")
    if table["tokens"].min() <= 0:
        raise ValueError("dead_curve: tokens must be positive (the axis is logarithmic)")
    fig = go.Figure(arm_lines(table.assign(value=table["share"]), "tokens"))
    return finish(
        fig,
        title,
        height=400,
        legend="right",
        xaxis=log_axis(table["tokens"]) | {"title": "held-out tokens looked at"},
        yaxis={"title": "latents that have not fired (share)", "tickformat": ".1%", "rangemode": "tozero"},
    )
