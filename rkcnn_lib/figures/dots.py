"""The dot plot of arms or miners: a dot a seed, the mean with its interval, the chance band of each row."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from rkcnn_lib.figures.controls import Choices, finish
from rkcnn_lib.figures.inputs import in_order, metrics_of
from rkcnn_lib.figures.parts import box, mean_with_interval, number, rows_axis, seed_dots, summary, window
from rkcnn_lib.figures.style import ARM_COLOURS, CHANCE_FILL, escape, label, short, style_of

CHANCE = "chance: mean to 95 % point"


def arm_order(names: list[str]) -> list[str]:
    """Known arms in the order of the palette (rivals first, then RkCNN), then the others as they came."""
    known = [name for name in ARM_COLOURS if name in names]
    return known + [name for name in names if name not in known]


def dot_plot(table: pd.DataFrame, column: str, title: str | None) -> go.Figure:
    """Draw a checked table (``column``, seed, value, maybe metric, chance_mean, chance_upper) as a dot plot."""
    arms = arm_order([str(name) for name in in_order(table[column])])
    fig = go.Figure()
    choices = Choices(fig)
    any_chance = False
    for metric, part in metrics_of(table):
        traces: list[go.Scatter] = []
        ends: list[float] = []
        chance_ends: list[float] = []
        for row, arm in enumerate(arms):
            here = part[part[column].astype(str) == arm]
            if here.empty:
                continue
            chance = _chance(here)
            if chance:
                traces.append(box(*chance, row, 0.42, CHANCE_FILL, CHANCE, legend=not chance_ends))
                chance_ends += chance
            traces += _row(row, arm, here, chance)
            ends += summary(here["value"].to_numpy())[1:]
        any_chance |= bool(chance_ends)
        axis = window(part["value"], ends, chance_ends)
        name = label(metric or "value")
        choices.add(short(metric or "value"), traces, {"xaxis.title.text": name, "xaxis.range": axis})
    choices.close()
    return finish(fig, title, height=100 + 46 * len(arms), legend="top" if any_chance else None, yaxis=rows_axis(arms))


def _chance(rows: pd.DataFrame) -> tuple[float, float] | None:
    if not {"chance_mean", "chance_upper"} <= set(rows.columns):
        return None
    means = rows[["chance_mean", "chance_upper"]].apply(pd.to_numeric, errors="coerce").dropna().mean()
    if means.isna().any():
        return None
    return float(means["chance_mean"]), float(means["chance_upper"])


def _row(row: int, arm: str, here: pd.DataFrame, chance: tuple[float, float] | None) -> list[go.Scatter]:
    style, values = style_of(arm), here["value"].to_numpy()
    beside = f"<br>chance {number(chance[0])}, 95 % point {number(chance[1])}" if chance else ""
    seeds = here["seed"] if "seed" in here else ["?"] * len(here)
    texts = [
        f"<b>{escape(arm)}</b>, seed {escape(s)}<br>{number(v)}{beside}" for s, v in zip(seeds, values, strict=True)
    ]
    return [
        seed_dots(row, values, texts, style),
        mean_with_interval(row + 0.12, values, style, arm, f"<b>{escape(arm)}</b>{beside}"),
    ]
