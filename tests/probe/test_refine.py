"""Refinement: equal to an obvious loop, sharpens what lies near features, and keeps what codes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.probe import scores
from rkcnn_lib.probe.lift import pursue, refine
from rkcnn_lib.probe.neighbours import distinct
from rkcnn_lib.tensors import default_steps, one_sided_codes
from tests.probe.planted import sparse_world


def code_slowly(x: np.ndarray, D: np.ndarray, n_steps: int) -> np.ndarray:
    code, residual = np.zeros(len(D)), x.copy()
    for _ in range(n_steps):
        inner = D @ residual
        j = inner.argmax()
        value = max(inner[j], 0.0)
        code[j] += value
        residual = residual - value * D[j]
    return code


def test_codes_and_what_they_leave_equal_the_obvious_loop(monkeypatch) -> None:
    monkeypatch.setattr(scores, "CACHE_ELEMENTS", 60)
    X, D = sparse_world(12, 6, 0.2, 50, 0)
    found = one_sided_codes(X, D, D @ D.T, 4)
    codes = torch.zeros(50, 12).scatter_add_(1, found.picked, found.values)
    slow = np.array([code_slowly(x, D.double().numpy(), 4) for x in X.double().numpy()])
    np.testing.assert_allclose(codes.numpy(), slow, atol=1e-5)
    np.testing.assert_allclose(pursue(X, D, 4).numpy(), X.numpy() - slow @ D.numpy(), atol=1e-5)


def test_a_pass_equals_least_squares_on_the_codes(monkeypatch) -> None:
    monkeypatch.setattr(scores, "CACHE_ELEMENTS", 100)
    X, truth = sparse_world(12, 8, 0.1, 400, 1)
    D = normalize(truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    Z = np.array([code_slowly(x, D.double().numpy(), 1) for x in X.double().numpy()])
    solved = np.linalg.lstsq(Z, X.double().numpy(), rcond=None)[0]
    solved /= np.linalg.norm(solved, axis=1, keepdims=True)
    found = refine(X, D, n_passes=1).numpy()
    assert (solved * found).sum(1).min() > 0.9999  # the ridge moves it by less


def test_starts_near_the_features_end_at_them_and_true_ones_stay() -> None:
    X, truth = sparse_world(96, 48, 0.02, 8000, 2)
    near = normalize(truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (near * truth).sum(1).mean() < 0.85
    assert (refine(X, near, 5) * truth).sum(1).median() > 0.98
    assert (refine(X, truth, 5) * truth).sum(1).median() > 0.98
    assert recovery_rate(refine(X, near, 5), truth) > recovery_rate(near, truth) + 0.5


def test_an_offset_common_to_all_rows_is_not_a_feature() -> None:
    X, truth = sparse_world(48, 32, 0.05, 6000, 3)
    moved = refine(X + 0.3, truth, 20)
    assert (moved * truth).sum(1).median() > 0.93


def test_a_direction_that_codes_nothing_stays_and_order_and_type_are_kept() -> None:
    X = torch.rand(200, 3) * torch.tensor([1.0, 1.0, 0.0])
    D = torch.eye(3, dtype=torch.float64)
    D = torch.cat([D, -torch.eye(3, dtype=torch.float64)[2:]])
    found = refine(X, D, 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[2:], D[2:])
    assert torch.equal(refine(X, D, 0), D)


@pytest.mark.parametrize(("d", "steps"), [(2, 1), (64, 4), (128, 8), (768, 8)])
def test_steps_stay_far_fewer_than_dimensions(d: int, steps: int) -> None:
    assert default_steps(d) == steps


def test_distinct_equals_the_greedy_loop_over_any_number_of_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    D = normalize(torch.randn(700, 3, generator=g), dim=1)
    scores = torch.rand(700, generator=g)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(float(D[i] @ D[j]) <= 0.9 for j in kept):
            kept.append(i)
    assert distinct(D, scores).tolist() == kept
    assert distinct(D, scores, limit=5).tolist() == kept[:5]
