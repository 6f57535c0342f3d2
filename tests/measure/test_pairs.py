"""Statistics of pairs of seeds: shared seeds are not taken as new data."""

from __future__ import annotations

import numpy as np

from rkcnn_lib.measure.stability import bootstrap_pairs, jackknife_pairs
from rkcnn_lib.measure.statistics import mean_interval


def pairs_of(values):
    """h(i, j) = (v_i + v_j) / 2: then U is the mean of v and the pseudo-values are v themselves."""
    v = np.asarray(values, dtype=float)
    return (v[:, None] + v[None, :]) / 2


def test_jackknife_of_averages_gives_back_the_values():
    values = np.random.default_rng(0).standard_normal(7)
    np.testing.assert_allclose(jackknife_pairs(pairs_of(values)), values)


def test_jackknife_mean_is_the_mean_over_pairs():
    h = np.random.default_rng(1).random((6, 6))
    h = h + h.T
    np.testing.assert_allclose(jackknife_pairs(h).mean(), h[np.triu_indices(6, 1)].mean())


def test_jackknife_intervals_of_pairs_cover_the_truth_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        x = rng.standard_normal((6, 3))
        low, high = mean_interval(jackknife_pairs(x @ x.T))[1:]
        covered += low <= 0 <= high  # the expected product of independent vectors is 0
    assert covered >= 0.9 * 400


def test_bootstrap_equals_its_slow_twin():
    h = np.random.default_rng(3).random((6, 6))
    h = h + h.T
    rng, means = np.random.default_rng(0), []
    for counts in rng.multinomial(6, np.full(6, 1 / 6), size=500):
        drawn = np.repeat(np.arange(6), counts)
        values = [h[a, b] for a in drawn for b in drawn if a != b]
        means += [np.mean(values)] if values else []
    np.testing.assert_allclose(bootstrap_pairs(h, n_draws=500), np.quantile(means, [0.025, 0.975]))


def test_bootstrap_intervals_hold_the_truth_nearly_as_often_as_they_say_with_many_seeds_and_less_with_few():
    def covered(n_seeds: int) -> float:
        rng, hits = np.random.default_rng(4), 0
        for _ in range(200):
            low, high = bootstrap_pairs(pairs_of(rng.standard_normal(n_seeds)), n_draws=400)
            hits += low <= 0 <= high
        return hits / 200

    assert covered(30) >= 0.9
    assert 0.6 <= covered(5) <= 0.92
