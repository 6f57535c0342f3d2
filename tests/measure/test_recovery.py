"""Recovery metrics: one-to-one, signed, and worth no more than chance for random directions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from rkcnn_lib.measure import recovery
from rkcnn_lib.measure.recovery import (
    chance,
    match,
    matched_cosine,
    mmcs,
    precision,
    recovery_rate,
)

PENTAGON = np.stack([np.cos(2 * np.pi * np.arange(5) / 5), np.sin(2 * np.pi * np.arange(5) / 5)], axis=1)


def directions(n: int, d: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("metric", [mmcs, matched_cosine, recovery_rate, precision])
def test_the_truth_in_any_order_scores_one(metric):
    truth = directions(6, 4)
    assert metric(truth[::-1].copy(), truth) == pytest.approx(1)


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 4), (3, 5), (5, 3)])
def test_matching_equals_trying_every_assignment(n_a, n_b):
    A, B = directions(n_a, 3, 1), directions(n_b, 3, 2)
    C = A @ B.T if n_a <= n_b else (A @ B.T).T
    best = max(sum(C[i, j] for i, j in enumerate(p)) for p in permutations(range(C.shape[1]), len(C)))
    matching = match(A, B)
    assert matching.cosines.sum() == pytest.approx(best)
    assert len(set(matching.columns)) == len(matching.rows) == min(n_a, n_b)
    assert np.allclose((A @ B.T)[matching.rows, matching.columns], matching.cosines)


@pytest.mark.parametrize(("n_a", "n_b"), [(700, 700), (700, 500), (500, 700)])
@pytest.mark.parametrize("spectrum", [0.0, 1.0])
def test_large_sets_are_matched_as_well_among_their_nearest(monkeypatch, n_a, n_b, spectrum):
    scales = np.arange(1, 65.0) ** -spectrum
    A, B = directions(n_a, 64, 1) * scales, directions(n_b, 64, 2) * scales
    best = match(A, B).cosines.mean()
    monkeypatch.setattr(recovery, "EXACT_UP_TO", 100)
    found = match(A, B)
    assert len(found.rows) == len(set(found.columns)) == min(n_a, n_b)
    assert best - 1e-4 < found.cosines.mean() < best + 1e-9


def test_large_sets_that_crowd_are_matched_completely_and_never_better_than_the_best(monkeypatch):
    centres, rng = directions(8, 32), np.random.default_rng(3)
    A, B = (centres[rng.choice(8, 400, p=p)] + 0.3 * directions(400, 32, 4) for p in ([1 / 8] * 8, [0.65] + [0.05] * 7))
    best = match(A, B).cosines.mean()
    monkeypatch.setattr(recovery, "EXACT_UP_TO", 100)
    found = match(A, B)
    assert len(set(found.columns)) == len(found.rows) == 400
    assert best - 0.06 < found.cosines.mean() <= best + 1e-9


def test_sign_counts():
    truth = directions(3, 8)
    assert mmcs(-truth, truth) < 0.9 and recovery_rate(-truth, truth) == 0
    assert matched_cosine(-truth[:1], truth[:1]) == pytest.approx(-1)


def test_one_direction_cannot_stand_for_two_features():
    truth = np.array([[1.0, 0.0], [np.cos(0.1), np.sin(0.1)]])
    copies = truth[[0, 0]]
    assert recovery_rate(copies[:1], truth) == 0.5 and mmcs(copies[:1], truth) > 0.99
    # ten copies of one feature do not recover the other
    truth = np.eye(2)
    assert recovery_rate(truth[[0] * 10], truth) == 0.5 and precision(truth[[0] * 10], truth) == 0.1


def test_features_left_over_count_as_zero_and_empty_answers_score_zero():
    truth = np.eye(4)
    assert matched_cosine(truth[:1], truth) == 0.25 and precision(truth[:1], truth) == 1
    for metric in (mmcs, matched_cosine, recovery_rate, precision):
        assert metric(np.empty((0, 4)), truth) == 0


def test_threshold_is_inclusive_and_moves_the_rate():
    truth = np.array([[1.0, 0.0]])
    found = np.array([[0.8, 0.6]])
    assert recovery_rate(found, truth) == 0 and recovery_rate(found, truth, threshold=0.8) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_and_numpy_of_any_float_type_agree(dtype):
    A, B = torch.tensor(directions(5, 6, 1), dtype=dtype), torch.tensor(directions(5, 6, 2), dtype=dtype)
    assert matched_cosine(A.requires_grad_(True), B) == matched_cosine(A.detach().double().numpy(), B.double().numpy())


def test_lengths_do_not_matter():
    A, B = directions(5, 6, 1), directions(5, 6, 2)
    assert matched_cosine(3 * A, 0.1 * B) == pytest.approx(matched_cosine(A, B))


def test_chance_against_a_pentagon_is_the_reference_figure():
    mean, upper = chance("matched_cosine", 5, 5, 2, n_draws=3000, truth=PENTAGON)
    assert mean == pytest.approx(0.716, abs=0.01) and upper == pytest.approx(0.907, abs=0.015)


def test_chance_of_twenty_directions_in_five_dimensions_is_the_reference_figure():
    mean, upper = chance("matched_cosine", 20, 20, 5, n_draws=1500)
    assert mean == pytest.approx(0.678, abs=0.005) and upper == pytest.approx(0.739, abs=0.008)


def test_chance_of_large_dictionaries_is_the_reference_figure():
    """Random dictionaries of 1024 in 128 dimensions: 0.272 signed and matched, 0.298 unsigned maximum."""
    assert chance("matched_cosine", 1024, 1024, 128, n_draws=1).mean == pytest.approx(0.272, abs=0.003)
    unsigned = chance(lambda a, b: float(np.abs(a @ b.T).max(0).mean()), 1024, 1024, 128, n_draws=1)
    assert unsigned.mean == pytest.approx(0.298, abs=0.003)


@pytest.mark.slow
def test_one_random_direction_in_the_plane_matches_the_closed_form():
    """A cosine with a uniform angle has mean 0 and 95 % point cos(0.05 pi); it passes 0.9 at rate acos(0.9) / pi."""
    mean, upper = chance("matched_cosine", 1, 1, 2, n_draws=4000)
    assert mean == pytest.approx(0, abs=0.04) and upper == pytest.approx(np.cos(0.05 * np.pi), abs=0.004)
    rate = chance("recovery_rate", 1, 1, 2, n_draws=4000, threshold=0.9)
    assert rate.mean == pytest.approx(np.arccos(0.9) / np.pi, abs=0.015)


def test_chance_can_be_drawn_with_the_covariance_of_data():
    rng = np.random.default_rng(0)
    rows = np.zeros((500, 30))
    rows[:, :4] = rng.standard_normal((500, 4))
    plain, within = (chance("matched_cosine", 20, 20, 30, n_draws=20, spread=some) for some in (None, rows))
    four = chance("matched_cosine", 20, 20, 4, n_draws=20)
    assert within.mean == pytest.approx(four.mean, abs=0.03) and plain.mean < 0.5 < within.mean
    isotropic = chance("matched_cosine", 20, 20, 30, n_draws=20, spread=rng.standard_normal((5000, 30)))
    assert isotropic.mean == pytest.approx(plain.mean, abs=0.02)
    with pytest.raises(ValueError, match="spread must have shape"):
        chance("mmcs", 2, 2, 3, spread=rows)


def test_random_directions_exceed_the_upper_point_one_time_in_twenty():
    upper = chance("matched_cosine", 6, 6, 4, n_draws=2000).upper
    above = [matched_cosine(directions(6, 4, s), directions(6, 4, 10_000 + s)) > upper for s in range(1000)]
    assert 0.03 < np.mean(above) < 0.075


def test_chance_is_reproducible():
    assert chance("mmcs", 3, 3, 3, 20) == chance(mmcs, 3, 3, 3, 20) != chance("mmcs", 3, 3, 3, 20, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmcs(np.eye(2), np.empty((0, 2))), "truth has shape"),
        (lambda: matched_cosine(np.zeros((2, 2)), np.eye(2)), "zero row, number 0"),
        (lambda: matched_cosine(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]])), "zero row, number 1"),
        (lambda: matched_cosine(np.eye(2), np.eye(3)), "directions has 2 columns and truth 3"),
        (lambda: matched_cosine(np.ones(2), np.eye(2)), r"directions has shape \(2,\)"),
        (lambda: matched_cosine(np.array([[np.nan, 1.0]]), np.eye(2)), "directions holds NaN"),
        (lambda: recovery_rate(np.eye(2), np.eye(2), threshold=90), "threshold"),
        (lambda: chance("cosine", 2, 2, 2), "metric=.cosine. is unknown"),
        (lambda: chance("mmcs", 0, 2, 2), "n_a=0"),
        (lambda: chance("mmcs", 5, 4, 2, truth=PENTAGON), "truth must have shape"),
    ],
)
def test_misuse_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
