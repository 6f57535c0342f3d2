"""From numbers per arm and seed to a hypothesis's verdict, by the one rule of the report."""

from __future__ import annotations

from typing import Any

from rkcnn_lib.measure.statistics import compare_arms, hypothesis_verdict

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
        }
        for contrast in found
    ]
