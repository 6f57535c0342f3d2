from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch.nn.functional import normalize

from rkcnn_lib.probe import CONTRASTS, ascend, fisher_lift, scores, whiten
from rkcnn_lib.probe.lift import ledoit_wolf_shrinkage as shrinkage_of
from tests.probe.planted import sparse_world


def test_shrinkage_equals_scikit_learns() -> None:
    X = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 20)
    assert shrinkage_of(X, *scores.covariance(X)) == pytest.approx(ledoit_wolf_shrinkage(X.double().numpy()), rel=1e-5)


def test_whitened_data_are_white_and_deficient_data_stay_finite() -> None:
    X = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    X = X @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    Z = whiten(X, shrinkage=0.0).apply(X)
    torch.testing.assert_close(Z.T @ Z / len(Z), torch.eye(8), atol=1e-3, rtol=0)
    flat = torch.cat([X[:5], X[:5]], dim=1)  # five rows in sixteen dimensions, half of them copies
    assert torch.isfinite(whiten(flat, shrinkage=0.0).apply(flat)).all()


def test_filters_and_patterns_are_inverse_readings_of_one_direction() -> None:
    X, directions = sparse_world(6, 6, 0.2, 5000, 0)
    white = whiten(X, shrinkage=0.0)
    U = white.from_patterns(directions)
    torch.testing.assert_close(white.patterns(U), directions.double(), atol=1e-5, rtol=0)
    filters = white.filters(U)
    torch.testing.assert_close(white.from_filters(filters), U, atol=1e-5, rtol=0)
    crosstalk = normalize(filters @ directions.double().T, dim=1)  # a filter must ignore the other features
    assert crosstalk.diagonal().min() > 0.97
    assert (normalize(directions @ directions.T, dim=1).diagonal()).min() < 0.95


@pytest.mark.parametrize("contrast", ["kurtosis", "logcosh"])
def test_ascent_finds_independent_features_from_random_starts(contrast: str) -> None:
    X, directions = sparse_world(12, 12, 0.1, 8000, 1)
    white = whiten(X)
    starts = torch.randn(100, 12, generator=torch.Generator().manual_seed(2))
    found = white.patterns(ascend(white.apply(X), starts, contrast, max_steps=50)).float()
    best = (found @ directions.T).abs().amax(0)
    assert (best > 0.9).all(), best


@pytest.mark.parametrize("contrast", ["kurtosis", "logcosh"])
def test_heavy_shrinkage_does_not_draw_every_start_into_the_shrunk_directions(contrast: str) -> None:
    X, directions = sparse_world(12, 12, 0.1, 8000, 1)
    white = whiten(X, shrinkage=0.3)
    held = ascend(white.apply(X), white.from_patterns(directions).float(), contrast)
    assert ((white.patterns(held).float() * directions).sum(1) > 0.75).float().mean() > 0.9


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_ascent_is_finite_and_unit_on_awkward_data(contrast: str) -> None:
    outliers = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    outliers[:, 0] *= 1e4
    outliers[3] = 1e6
    for X in (outliers, torch.zeros(20, 10), outliers[:3]):
        white = whiten(X)
        U = ascend(white.apply(X), torch.eye(10), contrast)
        torch.testing.assert_close(U.norm(dim=1), torch.ones(10))
        assert torch.isfinite(white.patterns(U)).all()


def test_ascent_does_not_depend_on_chunks_or_companions(monkeypatch) -> None:
    X, _ = sparse_world(12, 8, 0.1, 1000, 1)
    Z = whiten(X).apply(X)
    starts = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    together = ascend(Z, starts, max_steps=4)  # few steps: rounding must not decide between two basins
    torch.testing.assert_close(ascend(Z, starts[4:5], max_steps=4), together[4:5], atol=1e-3, rtol=0)
    monkeypatch.setattr(scores, "CACHE_ELEMENTS", 1)
    torch.testing.assert_close(ascend(Z, starts, max_steps=4), together, atol=1e-3, rtol=0)


def test_fisher_recovers_the_planted_difference_in_correlated_noise() -> None:
    rng = np.random.RandomState(0)
    mixing = rng.standard_normal((8, 8))
    y = rng.randint(0, 2, 20000)
    delta = np.eye(8)[0] * 1.5
    X = torch.as_tensor(rng.standard_normal((20000, 8)) @ mixing + y[:, None] * delta, dtype=torch.float32)
    targets, filters, patterns = fisher_lift(X, y)
    expected = np.linalg.solve(mixing.T @ mixing, delta)
    assert targets.tolist() == [1] and normalize(patterns, dim=1)[0, 0] > 0.98
    assert filters[0].numpy() @ expected / np.linalg.norm(expected) > 0.99
    assert filters[0, 0] < 0.9  # what reads a feature out is not what it writes


def test_three_classes_give_one_direction_each_against_the_rest() -> None:
    y = np.arange(3000) % 3
    X = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(3)[y]
    targets, _, patterns = fisher_lift(X, y)
    expected = normalize(torch.eye(3) - 1 / 3, dim=1).double()
    assert targets.tolist() == [0, 1, 2] and ((normalize(patterns, dim=1) * expected).sum(1) > 0.99).all()
