"""Planted worlds: the properties the generators promise, and a large dictionary that stays sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchmarks.planted import lu_gweon_classes
from rkcnn_lib.worlds.toy import (
    PlantedDictionary,
    SyntheticClusteredDataGenerator,
    SyntheticSparseDataGenerator,
)

N = 20_000


def test_each_feature_fires_at_its_own_rate_and_is_uniform_when_active():
    p = np.array([0.02, 0.1, 0.5, 1.0])
    X = SyntheticSparseDataGenerator(4, p).sample(N)
    assert X.shape == (N, 4) and X.dtype == torch.float32
    active = X > 0
    assert np.allclose(active.float().mean(0), p, atol=0.015)
    values = X[:, 2][active[:, 2]]
    assert X.min() >= 0 and X.max() <= 1
    assert values.mean() == pytest.approx(0.5, abs=0.02) and values.var() == pytest.approx(1 / 12, abs=0.005)


def test_exactly_k_features_are_active_and_all_equally_often():
    generator = SyntheticSparseDataGenerator(20, k_active=2)
    active = generator.sample(N) != 0
    assert (active.sum(1) == 2).all()
    assert np.allclose(active.float().mean(0), 0.1, atol=0.01)


def test_instances_have_their_own_rates_and_rows():
    X = SyntheticSparseDataGenerator(3, [[0.1], [0.5]]).sample(N)
    assert X.shape == (2, N, 3)
    assert np.allclose((X != 0).float().mean(1), [[0.1] * 3, [0.5] * 3], atol=0.015)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: SyntheticSparseDataGenerator(6, 0.3, random_state=seed).sample,
        lambda seed: lambda n: SyntheticClusteredDataGenerator(6, 2, random_state=seed).sample(n)[0],
        lambda seed: lambda n: PlantedDictionary(40, 8, mean_active=2, random_state=seed).sample(n)[0],
    ],
)
def test_seeds_reproduce_rows_and_differ_from_each_other(make):
    assert torch.equal(make(1)(50), make(1)(50))
    assert not torch.equal(make(1)(50), make(2)(50))


def test_each_call_draws_fresh_rows():
    generator = SyntheticSparseDataGenerator(6, 0.5)
    assert not torch.equal(generator.sample(50), generator.sample(50))


def test_structure_moves_activity_into_the_own_topic_and_keeps_the_overall_rate():
    generator = SyntheticClusteredDataGenerator(8, 4, p=0.1, structure=0.5)
    X, topics = generator.sample(2 * N)
    active = (X != 0).numpy()
    for topic in range(4):
        measured = active[topics.numpy() == topic].mean(0)
        own = generator.feature_topics == topic
        assert np.allclose(measured[own], 0.25, atol=0.02) and np.allclose(measured[~own], 0.05, atol=0.01)
    assert np.allclose(active.mean(0), 0.1, atol=0.01)


def test_topics_mean_nothing_without_structure_and_everything_with_full_structure():
    X, topics = SyntheticClusteredDataGenerator(8, 4, p=0.1, structure=0).sample(N)
    rates = np.stack([(X[topics == t] != 0).float().mean(0) for t in range(4)])
    assert np.ptp(rates, axis=0).max() < 0.04
    X, topics = SyntheticClusteredDataGenerator(8, 4, p=0.1, structure=1).sample(N)
    rows, features = np.nonzero(X.numpy())
    assert (features % 4 == topics.numpy()[rows]).all()


def test_planted_activations_are_codes_times_directions():
    world = PlantedDictionary(50, 12, mean_active=3)
    X, codes = world.sample(40_000)  # three blocks
    assert X.shape == (40_000, 12) and codes.shape == (40_000, 50)
    assert torch.allclose(world.directions.norm(dim=1), torch.ones(50))
    assert np.allclose(codes @ world.directions.numpy(), X, atol=1e-4)
    assert codes.data.min() >= 0.5 and codes.data.max() <= 1.5


@pytest.mark.parametrize("mean_active", [2, 6])
def test_planted_features_fire_at_the_stated_rates(mean_active):
    world = PlantedDictionary(31, 4, mean_active=mean_active)
    _, codes = world.sample(60_000)
    counts = np.bincount(codes.indices, minlength=31)
    error = (counts - 60_000 * world.rates) / np.sqrt(60_000 * world.rates * (1 - world.rates))
    assert np.abs(error).max() < 4.5
    assert world.rates.sum() == pytest.approx(mean_active)
    assert (np.diff(world.rates) <= 0).all() and world.rates.max() <= 0.5


def test_zipf_rates_follow_the_rank():
    rates = PlantedDictionary(1000, 4, mean_active=1).rates
    assert rates[0] / rates[9] == pytest.approx(10) and rates[9] / rates[99] == pytest.approx(10)


def test_noise_has_the_stated_scale():
    X, codes = (world := PlantedDictionary(30, 4, mean_active=2, noise=0.3)).sample(N)
    assert (X - torch.from_numpy(codes @ world.directions.numpy())).std() == pytest.approx(0.3, rel=0.02)


def test_lu_gweon_classes_differ_in_the_informative_columns_only():
    X, y = lu_gweon_classes(N, 30)
    assert X.shape == (N, 50) and np.bincount(y).tolist() == [N // 2, N // 2]
    gap = X[y == 0].mean(0) - X[y == 1].mean(0)
    expected = np.r_[np.tile([1.0, -1.0], 10), np.zeros(30)]
    assert np.allclose(gap, expected, atol=0.07)
    # The best possible rule, which knows the means, errs as often as the docstring says.
    assert ((X @ expected < 0) != (y == 1)).mean() == pytest.approx(norm.cdf(-np.sqrt(20) / 2), abs=0.004)


def test_lu_gweon_classes_without_shift_are_noise():
    X, y = lu_gweon_classes(N, 0, shift=0.0, n_classes=3)
    assert np.abs(X[y == 0].mean(0) - X[y == 2].mean(0)).max() < 0.07


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SyntheticSparseDataGenerator(0), "n_features"),
        (lambda: SyntheticSparseDataGenerator(3, 1.5), "probability"),
        (lambda: SyntheticSparseDataGenerator(3, float("nan")), "p holds NaN"),
        (lambda: SyntheticSparseDataGenerator(3, [0.1, 0.2]), "shape"),
        (lambda: SyntheticSparseDataGenerator(3, k_active=4), "k_active"),
        (lambda: SyntheticSparseDataGenerator(2).sample(0), "n=0"),
        (lambda: SyntheticClusteredDataGenerator(3, 4), "n_topics"),
        (lambda: SyntheticClusteredDataGenerator(8, 4, structure=1.2), "structure"),
        (lambda: SyntheticClusteredDataGenerator(8, 4, p=0.5), "own topic"),
        (lambda: PlantedDictionary(0, 4), "n_features"),
        (lambda: PlantedDictionary(10, 4, mean_active=6), "mean_active"),
        (lambda: lu_gweon_classes(10, -1), "n_noise"),
        (lambda: lu_gweon_classes(10, 5, n_classes=1), "classes"),
        (lambda: lu_gweon_classes(10, 5, n_informative=1), "n_informative"),
    ],
)
def test_misuse_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
