"""Paired comparisons of arms over seeds: intervals, tests, and the report's one rule from differences to a word.

Arms are compared seed by seed, because a seed fixes data order, held-out rows and the fill for all arms.
The unit of replication is the seed (and the document, where seeds share them); tokens and latents within a run are not
independent and never counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

MIN_SEEDS_FOR_VERDICT = 5
ALPHA = 1 - 0.95
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

    Differences that are all equal give that one number as interval, and p is 0, or 1 if they are all zero. One gives an
    infinite interval and p = 1. ValueError for none, or any that is not finite.
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

    What is special about a document is special in all seeds that are judged on it. Both are resampled by the delete-one
    jackknife, each seed left out with all its documents and each document with all its seeds, and the two variances are
    added (the noise of single entries counts twice, so the interval is rather too wide; Owen 2007, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1:386-411). Student's t, Satterthwaite's degrees of freedom; infinite for
    one seed or one document.
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


def holm(p_values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p-values (m,) and levels (m,) of Holm's step-down procedure (1979, Scand. J. Statistics 6:65-70).

    Rejecting where the adjusted p is at most 5 % keeps the chance of any false rejection there. The levels are of the
    contrasts' intervals: 1 - 0.05 / m for the smallest p, 1 - 0.05 / (m - 1) for the next, and so on as long as the
    steps reject. From the first step that does not, all remaining contrasts keep that step's level, or an interval
    could exclude zero although its adjusted p is above 5 %.
    """
    p, left = np.asarray(p_values), np.arange(len(p_values), 0, -1)
    order = np.argsort(p, kind="stable")
    n_rejected = int(np.logical_and.accumulate(p[order] <= ALPHA / left).sum())
    adjusted, levels = np.empty(len(p)), np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * left))
    levels[order] = 1 - ALPHA / np.maximum(left, left[min(n_rejected, len(p) - 1)])
    return adjusted, levels


def holm_intervals(differences: Sequence[np.ndarray], margins: Sequence[float]) -> list[PairedInterval]:
    """Interval of each of several vectors of paired differences (n_seeds,), p Holm-adjusted within them.

    p is that of a difference which is exactly the margin (one a vector, 0 or more) nearest to the mean, ``2 P(T >
    ||mean| - margin| / error)``: what must be excluded to call an arm better, equivalent or worse.

    Each is the paired-t interval at the level of :func:`holm`. (1) By itself it covers its true difference with
    at least 95 %. (2) It excludes the nearest margin exactly where Holm's adjusted p is at most 5 %, so the chance that
    any interval excludes it wrongly is at most 5 %. (3) They are *not* a joint confidence region: that all of them
    cover at once has no better guarantee than 1 - 0.05 m. All this under normal differences that are independent
    between seeds.
    """
    moved = [d - np.copysign(margin, d.mean()) for d, margin in zip(differences, margins, strict=True)]
    adjusted = zip(differences, *holm([paired_interval(d).p for d in moved]), strict=True)
    return [paired_interval(d, level)._replace(p=float(p)) for d, p, level in adjusted]


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

    ``differences`` has columns hypothesis, measure, seed, difference (arm minus baseline, the sign turned so that
    positive is better), ``deltas`` by measure the smallest difference that matters, in its units, 0 or more. Returns
    hypothesis, measure, word, difference (mean over seeds), low and high (t interval at the measure's Holm level), p
    (of a difference that is the nearest margin, Holm-adjusted over the hypothesis's measures), delta, n_seeds.
    """
    if differences.duplicated(["hypothesis", "measure", "seed"]).any():
        raise ValueError("a seed has two differences on the same measure of a hypothesis: it would count twice")
    rows = []
    for hypothesis, measures in differences.groupby("hypothesis", sort=False):
        names, parts = zip(*measures.groupby("measure", sort=False)["difference"], strict=True)
        margins = [deltas[name] for name in names]
        intervals = holm_intervals([part.to_numpy(float) for part in parts], margins)
        for name, part, delta, found in zip(names, parts, margins, intervals, strict=True):
            word = verdict_word(found.low, found.high, delta, len(part))
            about = {"hypothesis": hypothesis, "measure": name, "word": word}
            rows.append(about | found._asdict() | {"delta": delta, "n_seeds": len(part)})
    return pd.DataFrame(rows)


class TokensToQuality(NamedTuple):
    """Tokens at which an arm reaches what random starts reach at full budget, as a share of that budget."""

    ratio: float  # below 1: the arm is cheaper; where ``bound`` is not "=" the limit to which the budgets tell
    bound: str  # "=" between two budgets; "<=" already reached at the smallest one; ">" not reached at the largest


def tokens_to_quality(
    curve_arm: Mapping[int, float], curve_random: Mapping[int, float], *, mining_tokens: float = 0.0
) -> TokensToQuality:
    """Compare how many tokens an arm needs for the quality, more being better, that the random arm has at full budget.

    The curves are {tokens: value} of the same budgets: separate runs at 1/8, 1/4, 1/2 and 1 of the full one, each with
    a learning rate that decays to its own end. Between the first budget that reaches the value and the one before, the
    value is taken as linear in the logarithm of tokens; beyond the budgets nothing is extrapolated. ``mining_tokens``
    is what mining cost, its seconds times the tokens that training sees in a second, and is added to the arm's.
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
