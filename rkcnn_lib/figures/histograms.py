"""Histograms: of cosines, of scores, of how often latents fire; points and bars that show a distribution whole."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rkcnn_lib.figures.display import add_slider, as_array, checked, chosen, finish, log_axis, scale_buttons
from rkcnn_lib.figures.lines import MANY
from rkcnn_lib.figures.style import GREY, SEQUENTIAL, arm_order, escape, faint, named, style_of

COSINES = np.linspace(-1, 1, 81)  # edges of bins


def steps(x: Any, y: Any, name: str, hover: str, fill: float = 0.18, **trace: Any) -> go.Scatter:
    """The form: a step line over the edges of bins ``x``, filled with opacity ``fill``; ``y`` ends with 0."""
    colour = style_of(name).colour
    looks = {"mode": "lines", "line": {"color": colour, "width": 1.8, "shape": "hv"}, "fill": "tozeroy"}
    return go.Scatter(looks | named(name, f"<br>{hover}") | trace, x=x, y=y, fillcolor=faint(colour, fill))


def _shares(values: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """The share and the count of ``values`` in each bin, as plain lists: frames are made of them."""
    counts = np.append(np.histogram(values, edges)[0], 0)
    shares = (counts / len(values)).round(6).tolist()
    return {"x": edges.round(8).tolist(), "y": shares, "customdata": counts.tolist()}


HOVER = "from %{x:.3g}<br>%{y:.2%} (%{customdata})"  # of `_shares`


def cosine_histograms(frames: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Histograms of signed cosines by group, with a slider over the frames (for instance training steps).

    Arrays (n,) in [-1, 1] by frame and group; each frame holds the same groups (mined, learned, random).
    """
    data = {
        name: [{"type": "scatter"} | _shares(as_array(values).clip(-1, 1), COSINES) for values in frame.values()]
        for name, frame in frames.items()
    }
    fig = go.Figure()
    last = list(frames)[-1]
    for group, shares in zip(frames[last], data[last], strict=True):
        meta = {"rkcnn_bins": "cosine", "group": escape(group)}  # for pages: a click lists the bin's latents
        fig.add_trace(steps(name=group, hover=HOVER, meta=meta, **shares))
    add_slider(fig, data, active=len(data) - 1)
    highest = max(max(shares["y"]) for frame in data.values() for shares in frame)
    x_axis = {"title": "signed cosine", "range": [-1.02, 1.02]}
    y_axis = {"title": "share of the group", "range": [0, highest * 1.06]}
    return finish(fig, height=380, legend="right", xaxis=x_axis, yaxis=y_axis)


def score_distribution(scores: Mapping[str, Any]) -> go.Figure:
    """Histograms of scores by group, for instance "data" and "surrogate": arrays (n,), in the scores' unit."""
    arrays = {name: as_array(values) for name, values in scores.items()}
    pooled = np.concatenate([*arrays.values()])
    log = pooled.min() > 0 and pooled.max() > 50 * np.median(pooled)
    edges = np.geomspace(pooled.min(), pooled.max() * 1.001, 61) if log else np.histogram_bin_edges(pooled, 60)
    fig = go.Figure([steps(name=name, hover=HOVER, **_shares(values, edges)) for name, values in arrays.items()])
    scale_buttons(fig, "yaxis", "linear")
    x_axis = (log_axis(pooled) if log else {}) | {"title": "score"}
    return finish(fig, height=400, legend="right", xaxis=x_axis, yaxis={"title": "share of the group"})


def density(densities: Mapping[str, Any]) -> go.Figure:
    """Histograms of how often latents fire, on a log axis, with those that never fire in a panel of their own.

    Arrays (n_latents,) by arm: the share of tokens on which each latent fires, [0, 1]; 0 means that it never fired.
    """
    arrays = {name: as_array(values) for name, values in densities.items()}
    live = {name: np.log10(values[values > 0]) for name, values in arrays.items()}
    floor = min((powers.min() for powers in live.values() if powers.size), default=-1.0)
    edges = np.linspace(min(np.floor(floor * 2) / 2, -0.5), 0, 61)
    fig = make_subplots(rows=1, cols=2, column_widths=[0.2, 0.8], horizontal_spacing=0.1)
    for position, name in enumerate(arm_order(list(arrays))):
        n_latents, n_dead = len(arrays[name]), int((arrays[name] == 0).sum())
        # for pages: a click lists the bin's latents
        never_meta, meta = ({"rkcnn_bins": bins, "arm": escape(name)} for bins in ("never", "rate"))
        looks = {"marker": {"color": style_of(name).colour}, "showlegend": False, "meta": never_meta}
        told = named(name, f"<br>{n_dead} of {n_latents} latents never fire (%{{y:.2%}})")
        never = go.Bar(looks | told, x=[position], y=[n_dead / n_latents])
        shares = np.append(np.histogram(live[name], edges)[0] / n_latents, 0.0)
        hover = "fires on %{customdata:.2g} of the tokens<br>%{y:.2%} of its latents in this bin"
        rates = steps(edges, shares, name, hover, fill=0.1, customdata=10.0**edges, meta=meta)
        fig.add_traces([never, rates], rows=[1, 1], cols=[1, 2])
    decades = np.arange(np.ceil(edges[0]), 0.5)
    powers = {"tickvals": decades, "ticktext": [f"10<sup>{int(power)}</sup>" for power in decades]}
    fig.update_xaxes(title="never fire", showticklabels=False, ticks="", row=1, col=1)
    fig.update_yaxes(title="share of the dictionary", row=1, col=1)
    fig.update_xaxes(title="share of tokens on which a latent fires", **powers, row=1, col=2)
    fig.update_yaxes(title="share in each bin", row=1, col=2)
    fig.update_yaxes(tickformat=".0%", rangemode="tozero")
    return finish(fig, height=400, legend="right")


def latent_map(table: pd.DataFrame) -> go.Figure:
    """A point a latent: how often it fires (log axis; those that never do in a strip) and its cosine to its start.

    Columns group, latent, rate ([0, 1]), cosine ([-1, 1]), card (its id, which pages open on a click).
    """
    table = checked(table, ["group", "latent", "rate", "cosine", "card"], ["rate", "cosine"])
    fig = make_subplots(rows=1, cols=2, column_widths=[0.16, 0.84], horizontal_spacing=0.03, shared_yaxes=True)
    groups = arm_order(table["group"].astype(str).unique().tolist())
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
    style, told = style_of(group), named(group, ", %{text}<br>cosine to its start %{y:.2f}")
    looks = {"mode": "markers", "showlegend": legend}
    looks["marker"] = {"color": style.colour, "symbol": style.marker, "size": 7, "opacity": 0.6}
    rates = ["never fires" if rate == 0 else f"fires on {100 * rate:.3g} % of tokens" for rate in part["rate"]]
    text = [f"latent {n}<br>{rate}" for n, rate in zip(part["latent"], rates, strict=True)]
    x, y = [float(f"{value:.4g}") for value in x], part["cosine"].round(4).tolist()
    return go.Scatter(looks | told, x=x, y=y, text=text, customdata=part["card"].tolist())


def variance_by_dimension(table: pd.DataFrame) -> go.Figure:
    """Share of the variance of each dimension, sorted, and its running sum; the colour is the excess kurtosis.

    Columns dimension, share (of the total variance, [0, 1]), kurtosis (excess).
    """
    table = checked(table, ["dimension", "share", "kurtosis"], ["share", "kurtosis"])
    table = table.sort_values("share", ascending=False, ignore_index=True)
    rank, share, kurtosis = np.arange(1, len(table) + 1), table["share"], table["kurtosis"]
    dots = go.Scattergl if len(table) > MANY else go.Scatter
    marker = {"size": 6, "color": np.log10(1 + np.clip(kurtosis.to_numpy(), 0, None)).astype(np.float32)}
    marker |= {"colorscale": SEQUENTIAL, "colorbar": {"title": {"text": "log₁₀(1 +<br>kurtosis)"}, "thickness": 12}}
    told = np.stack([table["dimension"].map(escape), kurtosis.round(2).astype(str)], axis=1)
    hover = (
        "dimension %{customdata[0]} (rank %{x})<br>%{y:.3%} of the variance"
        "<br>excess kurtosis %{customdata[1]}<extra></extra>"
    )
    looks = {"mode": "markers", "marker": marker, "hovertemplate": hover}
    shares = dots(looks, x=rank, y=share.to_numpy(np.float32), customdata=told)
    hover = "the first %{x} dimensions carry %{y:.1%} of the variance<extra></extra>"
    looks = {"mode": "lines", "line": {"color": style_of("datapoint").colour, "width": 2}, "hovertemplate": hover}
    sums = go.Scatter(looks, x=rank, y=share.cumsum().to_numpy(np.float32))
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
    table = checked(table, ["frequency", "value", "is_key", "chance_upper"], ["frequency", "value", "chance_upper"])
    is_key, fig = table["is_key"].astype(bool), go.Figure()
    for name, part, arm in (("key frequencies", table[is_key], "mined"), ("others", table[~is_key], "random")):
        looks = {"name": name, "marker": {"color": style_of(arm).colour}}
        hover = "frequency %{x}: %{y:.2%} of the power<extra></extra>"
        fig.add_bar(x=part["frequency"], y=part["value"], hovertemplate=hover, **looks)
    ends, chance = [table["frequency"].min() - 0.5, table["frequency"].max() + 0.5], table["chance_upper"].iloc[0]
    looks = {"mode": "lines", "line": {"color": GREY, "dash": "dash"}, "name": "chance: 95 % point of the strongest"}
    hover = "strongest of all frequencies in shuffled weights, 95 % point: %{y:.2%}<extra></extra>"
    fig.add_scatter(x=ends, y=[chance, chance], hovertemplate=hover, **looks)
    x_axis, y_axis = {"title": "frequency (turns over all p numbers)"}, {"title": "share of power", "tickformat": ".0%"}
    return finish(fig, height=340, legend="right", xaxis=x_axis, yaxis=y_axis)


def spectrum(eigenvalues: Mapping[str, Any]) -> go.Figure:
    """Eigenvalue spectra of covariances, as shares of their totals, and their running sums.

    Arrays (d,) of eigenvalues by layer or source, in any order, none negative beyond rounding, not all zero.
    """
    shares, sums, longest = [], [], 1
    for name, values in eigenvalues.items():
        values = np.sort(as_array(values).clip(0, None))[::-1]
        share = values / values.sum()
        shown, rank, longest = escape(name), np.arange(1, len(share) + 1), max(longest, len(share))
        kept = share > 1e-12  # a logarithm needs values above zero: what is rounding error is left out
        told = f"{shown} (participation ratio {1 / (share**2).sum():.1f} of {len(share)})"
        line = {"mode": "lines", "line": {"color": style_of(name).colour, "width": 2}, "name": told}
        line["legendgroup"] = shown
        hover = f"<b>{shown}</b><br>component %{{x}}: %{{y:.3%}}<extra></extra>"
        shares.append(go.Scatter(line, x=rank[kept], y=share[kept].astype(np.float32), hovertemplate=hover))
        hover = f"<b>{shown}</b><br>the first %{{x}} carry %{{y:.1%}}<extra></extra>"
        sums.append(go.Scatter(line, x=rank, y=share.cumsum().astype(np.float32), hovertemplate=hover))
    choices = [
        ("share of the variance", shares, {"yaxis.title.text": "share of the variance", "yaxis.type": "log"}),
        ("running sum", sums, {"yaxis.title.text": "running sum of the shares", "yaxis.type": "linear"}),
    ]
    x_axis = log_axis([1, longest]) | {"title": "principal component"}
    return finish(chosen(choices), height=400, legend="right", xaxis=x_axis)
