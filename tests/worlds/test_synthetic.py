"""Planted worlds: the properties the generators promise, and a large dictionary that stays sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchmarks.planted import lu_gweon_classes
from rkcnn_lib.worlds.toy.planted import PlantedDictionary
from rkcnn_lib.worlds.toy.synthetic import (
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


def test_signed_features_are_symmetric():
    X = SyntheticSparseDataGenerator(3, 0.5, signed=True).sample(N)
    active = X[X != 0]
    assert -1 <= active.min() < -0.9 and 0.9 < active.max() <= 1
    assert (active > 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_exactly_k_features_are_active_and_all_equally_often():
    generator = SyntheticSparseDataGenerator(20, k_active=2)
    active = generator.sample(N) != 0
    assert (active.sum(1) == 2).all()
    assert np.allclose(active.float().mean(0), 0.1, atol=0.01)
    assert generator.probabilities.tolist() == pytest.approx([0.1] * 20)


def test_correlated_pairs_cooccur_with_independent_values():
    X = SyntheticSparseDataGenerator(5, 0.2, correlated_pairs=2).sample(N)
    active = X != 0
    assert torch.equal(active[:, 0], active[:, 1]) and torch.equal(active[:, 2], active[:, 3])
    assert np.allclose(active.float().mean(0), 0.2, atol=0.015)
    both = X[active[:, 0], :2]
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.06
    assert abs(np.corrcoef(active[:, [0, 2]].T)[0, 1]) < 0.03  # the pairs are independent of each other


def test_anticorrelated_pairs_never_cooccur_and_keep_their_rates():
    p = [0.3, 0.3, 0.6, 0.4, 0.2]  # the pair (2, 3) sums to exactly 1
    X = SyntheticSparseDataGenerator(5, p, correlated_pairs=1, anticorrelated_pairs=1).sample(N)
    active = X != 0
    assert not (active[:, 2] & active[:, 3]).any()
    assert np.allclose(active.float().mean(0), p, atol=0.015)


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


def test_loss_matches_a_loop_with_importance_weights():
    generator = SyntheticSparseDataGenerator(3, 0.5, importance=[1.0, 0.5, 0.0])
    x, x_hat = generator.sample(7), torch.rand(7, 3)
    slow = sum(w * (x[i, j] - x_hat[i, j]) ** 2 for i in range(7) for j, w in enumerate([1.0, 0.5, 0.0])) / 7
    assert generator.loss(x, x_hat) == pytest.approx(float(slow), rel=1e-5)


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
    world = PlantedDictionary(50, 12, mean_active=3, children=1)
    X, codes = world.sample(40_000)  # three blocks
    assert X.shape == (40_000, 12) and codes.shape == (40_000, 50)
    assert torch.allclose(world.directions.norm(dim=1), torch.ones(50))
    assert np.allclose(codes @ world.directions.numpy(), X, atol=1e-4)
    assert codes.data.min() >= 0.5 and codes.data.max() <= 1.5


@pytest.mark.parametrize("options", [{}, {"children": 2}, {"n_topics": 3, "structure": 0.6, "max_rate": 0.3}])
def test_planted_features_fire_at_the_stated_rates(options):
    world = PlantedDictionary(31, 4, mean_active=2, **options)
    _, codes = world.sample(60_000)
    counts = np.bincount(codes.indices, minlength=31)
    error = (counts - 60_000 * world.rates) / np.sqrt(60_000 * world.rates * (1 - world.rates))
    assert np.abs(error).max() < 4.5
    roots = world.rates[world.parents < 0]
    assert roots.sum() == pytest.approx(2) and (np.diff(roots) <= 0).all() and roots.max() <= 0.5


def test_zipf_rates_follow_the_rank():
    rates = PlantedDictionary(1000, 4, mean_active=1, zipf=1.0).rates
    assert rates[0] / rates[9] == pytest.approx(10) and rates[9] / rates[99] == pytest.approx(10)
    assert np.ptp(PlantedDictionary(1000, 4, zipf=0).rates) == pytest.approx(0)


def test_children_fire_only_with_their_root():
    world = PlantedDictionary(32, 4, mean_active=2, children=2, child_rate=0.4)
    active = world.sample(20_000)[1].toarray() > 0
    children = np.flatnonzero(world.parents >= 0)
    assert len(children) == 22
    for child in children:
        root = active[:, world.parents[child]]
        assert not (active[:, child] & ~root).any()
    assert active[:, 10][active[:, 0]].mean() == pytest.approx(0.4, abs=0.03)


def test_topics_make_roots_of_one_topic_fire_together():
    def phi(structure):
        world = PlantedDictionary(12, 4, mean_active=1.2, zipf=0, n_topics=4, structure=structure)
        active = world.sample(40_000)[1].toarray() > 0
        return np.corrcoef(active.T)

    correlated = phi(0.8)
    assert correlated[0, 4] > 0.15 and correlated[0, 1] < 0
    assert np.abs(phi(0.0) - np.eye(12)).max() < 0.03


def test_stream_yields_the_rows_of_sample_in_bounded_blocks():
    blocks = list(PlantedDictionary(30, 4, mean_active=2).stream(20_000))
    X, codes = PlantedDictionary(30, 4, mean_active=2).sample(20_000)
    assert max(len(block) for block, _ in blocks) <= 16384
    assert torch.equal(torch.cat([block for block, _ in blocks]), X)
    assert sum(block_codes.nnz for _, block_codes in blocks) == codes.nnz


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
        (lambda: SyntheticSparseDataGenerator(4, k_active=2, correlated_pairs=1), "exclude"),
        (lambda: SyntheticSparseDataGenerator(3, correlated_pairs=1, anticorrelated_pairs=1), "pairs need 4"),
        (lambda: SyntheticSparseDataGenerator(2, [0.1, 0.2], correlated_pairs=1), "same probability"),
        (lambda: SyntheticSparseDataGenerator(2, 0.6, anticorrelated_pairs=1), "at most 1"),
        (lambda: SyntheticSparseDataGenerator(2, importance=-1.0), "importance"),
        (lambda: SyntheticSparseDataGenerator(2, importance=[1.0] * 3), "importance"),
        (lambda: SyntheticSparseDataGenerator(2).sample(0), "n=0"),
        (lambda: SyntheticSparseDataGenerator(2).loss(torch.ones(3, 2), torch.ones(4, 2)), "x_hat"),
        (lambda: SyntheticClusteredDataGenerator(3, 4), "n_topics"),
        (lambda: SyntheticClusteredDataGenerator(8, 4, structure=1.2), "structure"),
        (lambda: SyntheticClusteredDataGenerator(8, 4, p=0.5), "own topic"),
        (lambda: PlantedDictionary(0, 4), "n_features"),
        (lambda: PlantedDictionary(10, 4, mean_active=6), "mean_active"),
        (lambda: PlantedDictionary(10, 4, mean_active=1, max_rate=1.0), "max_rate"),
        (lambda: PlantedDictionary(10, 4, mean_active=1, child_rate=0.0), "child_rate"),
        (lambda: lu_gweon_classes(10, -1), "n_noise"),
        (lambda: lu_gweon_classes(10, 5, n_classes=1), "classes"),
        (lambda: lu_gweon_classes(10, 5, n_informative=1), "n_informative"),
    ],
)
def test_misuse_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
