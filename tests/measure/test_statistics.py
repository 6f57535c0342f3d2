"""Intervals and tests over seeds: they cover what they promise to cover, also where many are looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rkcnn_lib.measure.statistics import (
    holm,
    holm_intervals,
    mean_interval,
    paired_interval,
    seed_document_interval,
)


def against_one_baseline(rng: np.random.Generator, n_seeds: int, *effects: float) -> list[np.ndarray]:
    """Differences (n_seeds,) of arms with these effects from one baseline, whose noise they share."""
    baseline = rng.normal(scale=0.3, size=n_seeds)
    return [effect + rng.normal(scale=0.3, size=n_seeds) - baseline for effect in effects]


def test_interval_and_p_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=7)
    ours, theirs = paired_interval(a - b, 0.9), stats.ttest_rel(a, b)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert mean_interval(a - b, 0.9) == pytest.approx(ours[:3])


def test_equal_differences_give_no_nan():
    assert paired_interval([0.0] * 5) == (0, 0, 0, 1)
    interval = paired_interval([0.1 + 0.2] * 4 + [0.3])  # equal up to rounding
    assert interval.low == interval.high == interval.difference and interval.p == 0
    assert paired_interval([0.5]) == (0.5, -math.inf, math.inf, 1)


def test_intervals_cover_the_truth_at_their_level():
    draws = np.random.default_rng(0).normal(0.3, 1, size=(2000, 5))
    covered = [(i := paired_interval(d, 0.9)).low <= 0.3 <= i.high for d in draws]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def simulated(rng: np.random.Generator, n_seeds: int = 6, n_documents: int = 40, **sd: float) -> np.ndarray:
    """Differences (n_seeds, n_documents) with mean 0.3: a seed's own, a document's own in all seeds, and noise."""
    seeds, documents = rng.normal(size=(n_seeds, 1)), rng.normal(size=(1, n_documents))
    noise = rng.normal(size=(n_seeds, n_documents))
    return 0.3 + sd["seed"] * seeds + sd["document"] * documents + sd["noise"] * noise


@pytest.mark.parametrize(
    "sd",
    [
        {"seed": 0.02, "document": 1.0, "noise": 0.3},
        {"seed": 0.3, "document": 1.0, "noise": 0.3},
        {"seed": 0.3, "document": 0.0, "noise": 0.0},
        {"seed": 0.0, "document": 0.0, "noise": 1.0},
    ],
    ids=["documents", "both", "seeds", "noise"],
)
def test_intervals_over_seeds_and_documents_cover_the_truth_whatever_varies(sd):
    rng = np.random.default_rng(0)
    intervals = [seed_document_interval(simulated(rng, **sd)) for _ in range(600)]
    assert np.mean([i.low <= 0.3 <= i.high for i in intervals]) >= 0.925


def test_seeds_alone_do_not_cover_the_truth_when_they_share_documents():
    rng = np.random.default_rng(0)
    drawn = [simulated(rng, seed=0.02, document=1.0, noise=0.3) for _ in range(300)]
    alone = [mean_interval(d.mean(1)) for d in drawn]
    assert np.mean([i.low <= 0.3 <= i.high for i in alone]) < 0.7


def test_documents_that_agree_leave_the_interval_over_seeds_and_few_of_either_leave_none():
    d = np.repeat(np.random.default_rng(0).normal(size=(6, 1)), 5, axis=1)
    assert seed_document_interval(d) == pytest.approx(mean_interval(d[:, 0]))
    assert seed_document_interval(np.full((3, 4), 0.25)) == (0.25, 0.25, 0.25)
    for few in (d[:1], d[:, :1]):
        assert seed_document_interval(few)[1:] == (-math.inf, math.inf)


def test_holm_matches_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005])[0] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9])[0] == pytest.approx([1, 1])


def test_levels_step_down_and_stop_where_holm_stops():
    assert holm([0.001, 0.9, 0.01])[1] == pytest.approx([1 - 0.05 / 3, 0.95, 1 - 0.05 / 2])
    # 0.03 > 0.05 / 2 ends the procedure, so 0.04 is not judged at the level 0.95
    assert holm([0.04, 0.03])[1] == pytest.approx([0.975, 0.975])


def test_an_interval_excludes_zero_exactly_where_holm_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        for interval in holm_intervals(against_one_baseline(rng, 5, 0.3, 0.2, 0.0), [0.0] * 3):
            assert (interval.low > 0 or interval.high < 0) == (interval.p <= 0.05)


def test_holm_keeps_the_familywise_error_under_the_null():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        wrong += any(found.p <= 0.05 for found in holm_intervals(against_one_baseline(rng, 6, 0, 0, 0), [0.0] * 3))
    assert wrong <= 32  # 5 % of 400, and 2.7 standard errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "one finite number per seed"),
        (lambda: mean_interval([1.0, math.nan]), "one finite number per seed"),
    ],
)
def test_misuse_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
