"""The report's one rule from paired differences to a word: an interval against the margin that matters."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from rkcnn_lib.measure.statistics import MIN_SEEDS_FOR_VERDICT, holm_intervals
from rkcnn_lib.tensors import number

BETTER, EQUIVALENT, WORSE, UNDECIDED, NOT_APPLIED = "better", "equivalent", "worse", "undecided", "not applied"
COLUMNS = ["hypothesis", "measure", "seed", "difference"]


def verdict_word(low: float, high: float, delta: float, n_seeds: int) -> str:
    """Word for an interval [low, high] of a difference whose positive values are better, against a margin delta >= 0.

    "better": wholly above delta; "worse": wholly below -delta; "equivalent": wholly within [-delta, delta];
    "undecided": anything else, and always below 5 seeds.
    """
    if n_seeds < MIN_SEEDS_FOR_VERDICT:
        return UNDECIDED
    if low > delta:
        return BETTER
    if high < -delta:
        return WORSE
    return EQUIVALENT if -delta <= low and high <= delta else UNDECIDED


def verdict_table(
    differences: pd.DataFrame,
    delta: float | Mapping[str, float],
    *,
    not_applied: Collection[str] = (),
    level: float = 0.95,
) -> pd.DataFrame:
    """Judge hypotheses, each on several measures.

    The chance that a hypothesis is called better or worse on any measure on which arms do not differ is at most
    1 - level, whatever the dependence of the measures: see `holm_intervals`. An interval covers its own difference with
    at least ``level``, so an equivalence is wrong with at most (1 - level) / 2 on its measure.

    Parameters
    ----------
    differences : DataFrame with columns hypothesis, measure, seed, difference
        One row a seed, arm minus baseline, the sign turned so that positive is better.
    delta : float or {measure: float}
        The smallest difference that matters, in units of the measure, 0 or more.
    not_applied : collection of str
        Hypotheses whose funnel shows that the treatment was not applied: their word is "not applied", no verdict.
    level : float
        Confidence of a hypothesis's intervals, in (0, 1).

    Returns
    -------
    DataFrame
        hypothesis, measure, word, difference (mean over seeds), low and high (t interval at the measure's Holm level),
        p (two-sided t-test of no difference, Holm-adjusted over the measures of the hypothesis), delta, n_seeds.

    Raises
    ------
    ValueError
        On missing columns or margins, two differences of a seed, values that are not finite.
    """
    if missing := set(COLUMNS) - set(differences.columns):
        raise ValueError(f"differences lacks the columns {sorted(missing)}")
    if differences.duplicated(COLUMNS[:3]).any():
        raise ValueError("a seed has two differences on the same measure of a hypothesis: it would count twice")
    margins = {name: _margin(delta, name) for name in differences["measure"].unique()}
    rows = []
    for hypothesis, measures in differences.groupby("hypothesis", sort=False):
        by_measure = {
            name: part["difference"].to_numpy(float) for name, part in measures.groupby("measure", sort=False)
        }
        intervals = holm_intervals(list(by_measure.values()), level)
        for (name, d), (difference, low, high, p) in zip(by_measure.items(), intervals, strict=True):
            word = NOT_APPLIED if hypothesis in not_applied else verdict_word(low, high, margins[name], len(d))
            rows.append([hypothesis, name, word, difference, low, high, p, margins[name], len(d)])
    return pd.DataFrame(
        rows, columns=["hypothesis", "measure", "word", "difference", "low", "high", "p", "delta", "n_seeds"]
    )


def _margin(delta: float | Mapping[str, float], measure: str) -> float:
    if isinstance(delta, Mapping):
        if measure not in delta:
            raise ValueError(f"delta has no margin for {measure!r}; it has {', '.join(map(repr, delta))}")
        delta = delta[measure]
    return number("delta", delta, "[0, inf)")
