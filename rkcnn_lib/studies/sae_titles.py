"""The titles of 04's figures: what came out, in words and numbers.

They stand apart from what computes, so that another wording throws nothing away.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rkcnn_lib.vocabulary import MINED, UNMINED


def frozen_title(frozen: pd.DataFrame) -> str:
    """Return the finding of the frozen-dictionary figure."""
    k = frozen["k"].min()
    means = frozen[frozen["k"] == k].groupby("arm")["value"].mean().sort_values(ascending=False)
    return f"Before training, explained variance at k = {k}: " + ", ".join(
        f"{arm} {ev:.3f}" for arm, ev in means.items()
    )


def metrics_title(metrics: pd.DataFrame) -> str:
    """Return the finding of the figure of trained SAEs."""
    means = metrics[metrics["metric"] == "explained_variance"].groupby("arm")["value"].mean().sort_values()
    return f"After training, explained variance runs from {means.iloc[0]:.3f} ({means.index[0]}) to {means.iloc[-1]:.3f} ({means.index[-1]})"  # noqa: E501


def advantage_title(ahead: pd.DataFrame) -> str:
    """Return what the advantage in explained variance is after the smallest and the largest budget, by rival."""
    means = (
        ahead[ahead["metric"] == "explained_variance"]
        .groupby(["arm", "tokens"], sort=False)["value"]
        .mean()
        .unstack()
        .sort_index(axis=1)
    )
    told = [f"{first:+.4f} to {last:+.4f} over {rival}" for rival, first, last in means.iloc[:, [0, -1]].itertuples()]
    return f"With training the advantage in explained variance goes from {', '.join(told)}"


def density_title(densities: dict[str, np.ndarray]) -> str:
    """Return how often the median latent fires of those that fire at all."""
    live = {arm: densities[arm][densities[arm] > 0] for arm in (MINED, UNMINED)}
    told = [f"{arm} {np.median(rates) if len(rates) else np.nan:.2%}" for arm, rates in live.items()]
    return f"Tokens on which the median live latent fires: {', '.join(told)}"


def moved_title(frames: dict[str, dict[str, np.ndarray]]) -> str:
    """Return the finding of the figure of how far latents moved."""
    last = list(frames.values())[-1]
    medians = {group: np.median(values) if len(values) else float("nan") for group, values in last.items()}
    return "Median cosine with the start: " + ", ".join(f"{group} {median:.2f}" for group, median in medians.items())


def recovery_title(truth: pd.DataFrame) -> str:
    """Return the finding of the figure against the truth."""
    means = truth[truth["metric"] == "recovery_rate"].groupby("arm")["value"].mean()
    return f"True directions recovered at cosine 0.9: {MINED} {means[MINED]:.0%}, {UNMINED} {means[UNMINED]:.0%}"


def budget_title(budgets: pd.DataFrame) -> str:
    """Return by how much the last doubling of the training still moves random's explained variance."""
    of_random = budgets[(budgets["metric"] == "explained_variance") & (budgets["arm"] == UNMINED)]
    means = of_random.groupby("tokens")["value"].mean()
    if len(means) < 2:
        return "One length of training: whether it was long enough is not known"
    return f"From {means.index[-2]:,} to {means.index[-1]:,} tokens {UNMINED} still gains {means.diff().iloc[-1]:.4f}"
