"""The titles of 04's figures: what came out, in words and numbers.

They stand apart from what computes, so that another wording throws nothing away.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rkcnn_lib.studies.cells import MINED, UNMINED


def frozen_title(frozen: pd.DataFrame) -> str:
    """Return the finding of the frozen-dictionary figure."""
    k = frozen["k"].max()
    means = frozen[frozen["k"] == k].groupby("arm")["value"].mean().sort_values()
    return (
        f"Before training, {means.index[-1]} codes best at k = {k} (EV {means.iloc[-1]:.3f}); "
        f"{MINED} {means[MINED]:.3f}, {UNMINED} {means[UNMINED]:.3f}"
    )


def metrics_title(metrics: pd.DataFrame) -> str:
    """Return the finding of the figure of trained SAEs."""
    means = metrics[metrics["metric"] == "explained_variance"].groupby("arm")["value"].mean().sort_values()
    return f"After training, explained variance runs from {means.iloc[0]:.3f} ({means.index[0]}) to {means.iloc[-1]:.3f} ({means.index[-1]})"  # noqa: E501


def history_title(history: pd.DataFrame) -> str:
    """Return what a start buys at the first logged step of training, and what is left of it at the last."""
    loss = history[history["metric"] == "loss"].groupby(["step", "arm"])["value"].mean().unstack()
    first, last = loss.iloc[0], loss.iloc[-1]
    told = [f"{arm} {first[arm]:.3g} and {last[arm]:.3g}" for arm in (MINED, UNMINED)]
    return f"Training loss at steps {loss.index[0]} and {loss.index[-1]}: {', '.join(told)}"


def dead_title(curves: pd.DataFrame) -> str:
    """Return how many latents have not fired after a tenth and after all of the held-out tokens."""
    most = curves["tokens"].max()
    shares = curves.groupby(["arm", "tokens"])["share"].mean()
    told = []
    for arm in (MINED, UNMINED):
        of_arm = shares[arm]
        tenth = of_arm[of_arm.index >= most / 10].iloc[0]
        told.append(f"{arm} {tenth:.0%} and {of_arm.iloc[-1]:.0%}")
    return f"Latents that have not fired after a tenth and after all of {most:,} tokens: {', '.join(told)}"


def density_title(densities: dict[str, np.ndarray]) -> str:
    """Return how often the median latent fires of those that fire at all."""
    live = {arm: densities[arm][densities[arm] > 0] for arm in (MINED, UNMINED)}
    told = [f"{arm} {np.median(rates) if len(rates) else np.nan:.2%}" for arm, rates in live.items()]
    return f"Tokens on which the median live latent fires: {', '.join(told)}"


def moved_title(frames: dict[str, dict[str, np.ndarray]]) -> str:
    """Return the finding of the figure of how far latents moved."""
    last = list(frames.values())[-1]
    medians = {group: np.median(values) if len(values) else float("nan") for group, values in last.items()}
    return f"Median cosine with the start: mined {medians['mined']:.2f}, random fill {medians['random fill']:.2f}"


def recovery_title(truth: pd.DataFrame) -> str:
    """Return the finding of the figure against the truth."""
    means = truth[truth["metric"] == "recovery_rate"].groupby("arm")["value"].mean()
    return f"True directions recovered at cosine 0.9: {MINED} {means[MINED]:.0%}, {UNMINED} {means[UNMINED]:.0%}"


def along_title(along: pd.DataFrame) -> str:
    """Return how the older PWMCC goes from the start to the end of training, beside chance."""
    steps = along.groupby(["step", "arm"])[["value", "chance_mean"]].mean()
    first, last = steps.xs(along["step"].min()), steps.xs(along["step"].max())
    told = [
        f"from {first['value'][arm]:.2f} to {last['value'][arm]:.2f} for {arm} (chance {last['chance_mean'][arm]:.2f})"
        for arm in (MINED, UNMINED)
    ]
    return f"While they train, the agreement of seeds goes {', '.join(told)}"
