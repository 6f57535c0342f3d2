"""Paired comparisons of arms over seeds: intervals, tests, and the report's one rule from differences to a word.

Arms are compared seed by seed, because a seed fixes data order, held-out rows and the fill for all arms.
The unit of replication is the seed (and the document, where seeds share them); tokens and latents within a run are not
independent and never counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

MIN_SEEDS_FOR_VERDICT = 5
BETTER, EQUIVALENT, WORSE, UNDECIDED = "better", "equivalent", "worse", "undecided"


class MeanInterval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


class PairedInterval(NamedTuple):
    """Mean difference of a paired comparison, its t interval and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p: float


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> MeanInterval:
    """Mean of independent ``values`` (n,), one per seed, with Student's t interval; see `paired_interval`."""
    return MeanInterval(*paired_interval(values, level)[:3])


def paired_interval(differences: Sequence[float] | np.ndarray, level: float = 0.95) -> PairedInterval:
    """Mean of paired ``differences`` (n_seeds,) with its t interval at ``level`` and the t-test's p.

    Differences that are all equal have no spread to judge by: the interval is that one number, and p is 0, or 1 if they
    are all zero. One difference gives an infinite interval and p = 1. ValueError for none, or any that is not finite.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"one finite number per seed is needed, a vector (n,), got {d.tolist()}")
    n, mean = len(d), float(d.mean())
    if n == 1:
        return PairedInterval(mean, -math.inf, math.inf, 1.0)
    # Rounding leaves equal differences a spread of a few ulp, which would pass for precision.
    if np.ptp(d) <= 1e-12 * np.abs(d).max():
        return PairedInterval(mean, mean, mean, float(mean == 0))
    error = float(d.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return PairedInterval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def seed_document_interval(differences: np.ndarray) -> MeanInterval:
    """Mean of paired differences (n_seeds, n_documents), finite, with a 95 % interval over seeds *and* documents.

    Seeds that are judged on the same documents are not independent evidence: what is special about a document is
    special in all of them. Both are resampled by the delete-one jackknife, each seed left out with all its documents
    and each document with all its seeds, and the two variances are added (their overlap, the noise of single entries,
    is counted twice, so the interval is rather too wide; Owen 2007, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1:386-411). Student's t with Satterthwaite's degrees of freedom. One seed or one document: infinite.
    """
    d = np.asarray(differences, dtype=np.float64)
    sizes, mean = np.array(d.shape), float(d.mean())
    if sizes.min() == 1:
        return MeanInterval(mean, -math.inf, math.inf)
    # the delete-one jackknife of a mean of rows, or of columns, is their variance over their number
    variances = np.array([d.mean(1).var(ddof=1), d.mean(0).var(ddof=1)]) / sizes
    total = variances.sum()
    freedom = total**2 / (variances**2 / (sizes - 1)).sum() if total > 0 else 1
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return MeanInterval(mean, mean - half, mean + half)


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of the sign-flip (one-sample permutation) test that ``differences`` are symmetric about 0.

    Exact over all 2 ** n sign patterns up to 16 seeds, from 65,536 random patterns (never 0) beyond. At n seeds it
    cannot go below 2 ** (1 - n): 0.0625 at 5, 0.002 at 10.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) == 1:
        return 1.0
    drawn: dict[str, Any] = {"random_state": 0}  # under its newer name, rng, scipy draws other patterns
    return float(
        stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=2**16, vectorized=True, **drawn
        ).pvalue
    )


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values, (m,), in the order given.

    Rejecting where the adjusted p is at most alpha keeps the chance of any false rejection at alpha, whatever the
    dependence (Holm 1979, Scandinavian Journal of Statistics 6:65-70).
    """
    p = np.asarray(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def holm_levels(p_values: Sequence[float] | np.ndarray, level: float = 0.95) -> np.ndarray:
    """Confidence level (m,) of each contrast's interval under Holm's procedure, in the order given.

    With alpha = 1 - level, the contrast with the smallest p gets 1 - alpha / m, the next 1 - alpha / (m - 1), and so on
    as long as the steps reject. From the first step that does not, all remaining contrasts keep that step's level, or
    an interval could exclude zero although its adjusted p is above alpha.
    """
    p = np.asarray(p_values)
    alpha, m = 1 - level, len(p)
    levels = np.empty(m)
    for step, index in enumerate(np.argsort(p, kind="stable")):
        share = alpha / (m - step)
        if p[index] > share:
            levels[p >= p[index]] = 1 - share
            break
        levels[index] = 1 - share
    return levels


def holm_intervals(
    differences: Sequence[np.ndarray], level: float = 0.95, margins: Sequence[float] | None = None
) -> list[PairedInterval]:
    """Interval of each of several vectors of paired differences (n_seeds,), p Holm-adjusted within them.

    p is that of no difference; with ``margins`` (one a vector, 0 or more), that of a difference which is exactly the
    margin nearest to the mean, ``2 P(T > ||mean| - margin| / error)``: what must be excluded to call an arm better,
    equivalent or worse.

    Each is the paired-t interval at the level of :func:`holm_levels`. (1) By itself it covers its true difference with
    at least ``level``. (2) It excludes zero (or the nearest margin) exactly where Holm's adjusted p is at most
    1 - level, so the chance that any interval excludes it wrongly is at most 1 - level. (3) They are *not* a joint
    confidence region: that all of them cover at once has no better guarantee than 1 - m (1 - level). All this under
    normal differences that are independent between seeds.
    """
    margins = margins or [0.0] * len(differences)
    moved = [d - np.copysign(margin, d.mean()) for d, margin in zip(differences, margins, strict=True)]
    p_values = [paired_interval(d, level).p for d in moved]
    return [
        paired_interval(d, own_level)._replace(p=float(p))
        for d, p, own_level in zip(differences, holm(p_values), holm_levels(p_values, level), strict=True)
    ]


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


def verdict_table(differences: pd.DataFrame, deltas: Mapping[str, float]) -> pd.DataFrame:
    """Judge hypotheses, each on several measures.

    The chance that any word of a hypothesis is wrong, better or worse where the true difference is within the margin,
    equivalent where it is not, is at most 5 %, whatever the dependence of the measures: see `holm_intervals`.

    Parameters
    ----------
    differences : DataFrame with columns hypothesis, measure, seed, difference
        One row a seed, arm minus baseline, the sign turned so that positive is better.
    deltas : {measure: float}
        The smallest difference that matters, in units of the measure, 0 or more.

    Returns
    -------
    DataFrame
        hypothesis, measure, word, difference (mean over seeds), low and high (t interval at the measure's Holm level),
        p (of a difference that is the nearest margin, Holm-adjusted over the hypothesis's measures), delta, n_seeds.
    """
    if differences.duplicated(["hypothesis", "measure", "seed"]).any():
        raise ValueError("a seed has two differences on the same measure of a hypothesis: it would count twice")
    rows = []
    for hypothesis, measures in differences.groupby("hypothesis", sort=False):
        by_measure = {
            str(name): part["difference"].to_numpy(float) for name, part in measures.groupby("measure", sort=False)
        }
        intervals = holm_intervals(list(by_measure.values()), margins=[deltas[name] for name in by_measure])
        for (name, d), (difference, low, high, p) in zip(by_measure.items(), intervals, strict=True):
            word = verdict_word(low, high, deltas[name], len(d))
            rows.append([hypothesis, name, word, difference, low, high, p, deltas[name], len(d)])
    return pd.DataFrame(
        rows, columns=["hypothesis", "measure", "word", "difference", "low", "high", "p", "delta", "n_seeds"]
    )


class TokensToQuality(NamedTuple):
    """Tokens at which an arm reaches what random starts reach at full budget, as a share of that budget."""

    ratio: float
    """Below 1: the arm is cheaper. Where ``bound`` is not "=" this is the limit to which the budgets tell."""
    bound: str
    """"=" between two budgets; "<=" already reached at the smallest one; ">" not reached at the largest."""


def tokens_to_quality(
    curve_arm: Mapping[int, float], curve_random: Mapping[int, float], *, mining_tokens: float = 0.0
) -> TokensToQuality:
    """Compare how many tokens an arm needs for the quality, more being better, that the random arm has at full budget.

    The curves are {tokens: value} of the same budgets: separate runs at 1/8, 1/4, 1/2 and 1 of the full one, each with
    a learning rate that decays to its own end; an intermediate value of one long run, whose rate is still high, would
    not do. Between the first budget that reaches the value and the one before, the value is taken as linear in the
    logarithm of tokens; beyond the budgets nothing is extrapolated. ``mining_tokens`` is what mining cost, its seconds
    times the tokens that training sees in a second, and is added to the arm's.
    """
    full, budgets = max(curve_random), sorted(curve_arm)
    short = [curve_random[full] - curve_arm[budget] for budget in budgets]  # of the value; reached at 0
    first = next((i for i, by in enumerate(short) if by <= 0), None)
    if first is None:
        tokens, bound = float(full), ">"
    elif first == 0:
        tokens, bound = float(budgets[0]), "<="
    else:
        before, after = short[first - 1], short[first]
        part = before / (before - after)
        tokens, bound = budgets[first - 1] * (budgets[first] / budgets[first - 1]) ** part, "="
    return TokensToQuality((tokens + mining_tokens) / full, bound)
