"""From numbers per arm and seed to a hypothesis's verdict, by the one rule of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.measure.statistics import compare_arms, hypothesis_verdict, paired_interval

Values = dict[str, dict[int, float]]  # {arm: {seed: value}}


def judge(
    hypothesis: str,
    values: Values,
    arm: str,
    baselines: tuple[str, ...],
    *,
    metric: str,
    delta: float,
    lower_is_better: bool = False,
    bound: float | None = None,
) -> list[dict[str, Any]]:
    """Return the contrasts declared beforehand for one hypothesis, Holm-adjusted, each with its verdict.

    Parameters
    ----------
    hypothesis : str
        What is claimed, in words.
    values : dict
        {arm: {seed: value}}; arms are paired by seed.
    arm, baselines : str, tuple of str
        The contrasts are ``arm - baseline`` for each baseline. One that was not run leaves the hypothesis
        *inconclusive*, whatever the others say.
    metric, delta, lower_is_better
        What is compared, the margin an advantage must exceed, and the direction of better. Differences are
        signed so that positive means ``arm`` is better.
    bound : float, optional
        What no arm can surpass, such as 0 dead latents. A contrast then says how much room its baseline leaves: where
        that is less than the margin, the hypothesis could not have been supported.
    """
    present = [(arm, baseline) for baseline in baselines if baseline in values]
    found = compare_arms(values, present, metric=metric, delta=delta, lower_is_better=lower_is_better)
    overall = hypothesis_verdict(found) if len(found) == len(baselines) else "inconclusive"
    return [
        {
            "hypothesis": hypothesis,
            "contrast": f"{contrast.arm} - {contrast.baseline}",
            "metric": metric,
            "difference": contrast.difference,
            "low": contrast.low,
            "high": contrast.high,
            "p": contrast.p,
            "p_sign_flip": contrast.p_sign_flip,
            "n_seeds": contrast.n_seeds,
            "delta": contrast.delta,
            "contrast_verdict": contrast.verdict,
            "verdict": overall,
            "own": _mean(values[arm]),
            "baseline": _mean(values[contrast.baseline]),
            "room": None if bound is None else abs(bound - _mean(values[contrast.baseline])),
        }
        for contrast in found
    ]


def _mean(by_seed: dict[int, float]) -> float:
    return float(np.mean(list(by_seed.values())))


def strongest_other(values: Values, arm: str, *, lower_is_better: bool = False) -> dict[str, Any] | None:
    """Return which other arm is best by its mean, and how ``arm`` stands against it; None where there is no other.

    The best of several was not declared beforehand, so its interval holds for all of them at once: the paired-t
    interval at Bonferroni's level for their number.

    Returns
    -------
    dict
        strongest (its name), value and its own (means over seeds), difference (positive: ``arm`` is better), low, high,
        n_others and n_seeds.
    """
    others = [name for name in values if name != arm]
    if not others:
        return None
    means = {name: _mean(values[name]) for name in (arm, *others)}
    best = (min if lower_is_better else max)(others, key=means.__getitem__)
    seeds = sorted(set(values[arm]) & set(values[best]))
    differences = np.array([values[arm][s] - values[best][s] for s in seeds]) * (-1 if lower_is_better else 1)
    found = paired_interval(differences, level=1 - 0.05 / len(others))
    return {
        "strongest": best, "value": means[best], "own": means[arm], "difference": found.difference,
        "low": found.low, "high": found.high, "n_others": len(others), "n_seeds": len(seeds),
    }  # fmt: skip


EXACT_SEEDS = 11  # up to so many seeds all patterns of signs are tried; beyond, as many at random
SIGN_DRAWS = 2**EXACT_SEEDS


def sign_flips(differences: pd.DataFrame) -> np.ndarray:
    """Return what the means of paired differences are when coins turn the seeds round.

    A seed's sign is flipped in all rows together, which keeps what the rows (layers, settings) of a seed share. The
    first pattern is the one observed.

    Parameters
    ----------
    differences : DataFrame (n_rows, n_seeds)
        Nothing missing.

    Returns
    -------
    ndarray (n_patterns, n_rows)
        All 2 ** n_seeds patterns, or :data:`SIGN_DRAWS` random ones (fixed seed) beyond :data:`EXACT_SEEDS` seeds.
    """
    d = differences.to_numpy(float)
    n = d.shape[1]
    if n <= EXACT_SEEDS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(SIGN_DRAWS, n))
        signs[0] = 1.0
    return signs @ d.T / n


def best_of(differences: pd.DataFrame) -> dict[str, Any]:
    """Return the best row's mean beside what the best of as many rows gives when coins turn the seeds round.

    Returns
    -------
    dict
        best (the row's label), value, chance_mean, chance_upper (95 % point of the best under :func:`sign_flips`) and
        p, the share of patterns whose best is at least as good: exact, and never below 2 ** -n_seeds.
    """
    flipped = sign_flips(differences).max(axis=1)
    means = differences.mean(axis=1)
    value = float(means.max())
    return {
        "best": means.idxmax(),
        "value": value,
        "chance_mean": float(flipped.mean()),
        "chance_upper": float(np.quantile(flipped, 0.95, method="higher")),
        "p": float((flipped >= value - 1e-12).mean()),
    }


def seed_differences(
    metrics: pd.DataFrame, metric: str, arm: str, baseline: str, lower_is_better: bool, rows: list[str]
) -> pd.DataFrame:
    """Return (arm - baseline), positive meaning better, with a row for each combination of ``rows``, a column a seed.

    Combinations for which a seed lacks one of the two arms are left out.
    """
    found = metrics[(metrics["metric"] == metric) & metrics["arm"].isin([arm, baseline])]
    table = found.pivot_table(index=rows, columns=["arm", "seed"], values="value")
    if not {arm, baseline} <= set(table.columns.get_level_values(0)):
        return pd.DataFrame()
    difference = (table[arm] - table[baseline]).dropna()
    return -difference if lower_is_better else difference


def verdict_title(table: pd.DataFrame) -> str:
    """Return all verdicts in one line, hypotheses of the same verdict together."""
    unique = table.drop_duplicates("hypothesis")
    groups = unique.groupby("verdict", sort=False)["hypothesis"].agg(", ".join)
    return "; ".join(f"{verdict}: {hypotheses}" for verdict, hypotheses in groups.items())
