"""Every batched score beside its slow, obvious twin."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from rkcnn_lib import tensors
from rkcnn_lib.probe import (
    CONTRASTS,
    SCORES,
    Subsets,
    draw_subsets,
    projection_contrast,
    scores,
    subset_scores,
)

RNG = np.random.RandomState(0)
Y = RNG.randint(0, 3, 150)
X = (RNG.laplace(size=(150, 6)) @ RNG.standard_normal((6, 6)) + 2 * np.eye(6)[Y]).astype(np.float64)
SUBSETS = draw_subsets(6, 3, 30)  # 20 coordinate, 10 rotated


def slow_separation(A: np.ndarray, y: np.ndarray) -> float:
    classes, mean = np.unique(y), A.mean(0)
    between = within = 0.0
    for c in classes:
        rows = A[y == c]
        between += ((rows.mean(0) - mean) ** 2).sum() / (len(classes) - 1)
        for row in rows:
            within += ((row - rows.mean(0)) ** 2).sum() / ((len(rows) - 1) * len(classes))
    return between / within


def slow_projection(A: np.ndarray) -> np.ndarray:
    return A @ np.linalg.eigh(np.cov(A.T))[1][:, -1]


def slow_logcosh(p: np.ndarray) -> float:
    gaussian = scipy.integrate.quad(lambda v: np.log(np.cosh(v)) * scipy.stats.norm.pdf(v), -12, 12)[0]
    return gaussian - np.log(np.cosh((p - p.mean()) / p.std())).mean()


def slow_variance_ratio(A: np.ndarray) -> float:
    values = np.linalg.eigvalsh(np.cov(A.T))
    return values[-1] / values.sum()


def slow_knn(A: np.ndarray, y: np.ndarray, k: int) -> float:
    hits = []
    for i in range(len(A)):
        distance = ((A - A[i]) ** 2).sum(1)
        others = [j for j in np.argsort(distance, kind="stable") if j != i][:k]
        hits.append(np.mean(y[others] == y[i]))
    return float(np.mean(hits))


TWINS = {
    "kurtosis": lambda A: scipy.stats.kurtosis(slow_projection(A)),
    "skew": lambda A: abs(scipy.stats.skew(slow_projection(A))),
    "logcosh": lambda A: slow_logcosh(slow_projection(A)),
    "coordinate_kurtosis": lambda A: scipy.stats.kurtosis(A, axis=0).mean(),
    "variance_ratio": slow_variance_ratio,
    "separation": lambda A: slow_separation(A, Y),
    "knn_label_consistency": lambda A: slow_knn(A, Y, 10),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("max_elements", [1, 2**25])
def test_batched_score_equals_its_slow_twin_in_any_chunking(score: str, max_elements: int, monkeypatch) -> None:
    monkeypatch.setattr(tensors, "MAX_ELEMENTS", max_elements)
    monkeypatch.setattr(scores, "CACHE_ELEMENTS", max_elements)
    fast = subset_scores(torch.from_numpy(X), SUBSETS, score, y=Y)
    slow = [TWINS[score](X @ SUBSETS.basis(i).double().numpy().T) for i in range(len(SUBSETS))]
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-5, atol=1e-7)


def test_separation_with_single_rows_and_without_spread_is_defined() -> None:
    one = Subsets(1, torch.zeros(1, 1, dtype=torch.long), torch.zeros(0, 1, 1))
    for rows, y, separation in (([[0.0], [1.0]], [0, 1], np.inf), ([[0.0]] * 4, [0, 0, 1, 1], 0)):
        assert float(subset_scores(torch.tensor(rows), one, "separation", y=np.array(y))) == separation


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_contrasts_ignore_scale_and_are_zero_for_noise_and_constants(contrast: str) -> None:
    P = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    P[:, 2] = 1.0
    value = projection_contrast(P, torch.eye(3), contrast)
    assert value.abs().max() < 0.1 and value[2] == 0
    for scale in (1e-15, 1e15):
        torch.testing.assert_close(projection_contrast(P * scale, torch.eye(3), contrast), value, atol=1e-4, rtol=0)


def test_scores_in_half_a_million_float32_rows_do_not_drift() -> None:
    p = torch.randn(500_000, 1, generator=torch.Generator().manual_seed(0)) ** 3 + 100
    expected = scipy.stats.kurtosis(p.double().numpy()[:, 0])
    assert float(projection_contrast(p, torch.ones(1, 1))) == pytest.approx(expected, rel=1e-3)


def test_duplicated_points_count_as_others() -> None:
    share = subset_scores(torch.zeros(6, 3), draw_subsets(3, 2, 3), "knn_label_consistency", y=np.array([0, 1] * 3))
    assert (share == 0.4).all()  # two of the five others


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        subset_scores(torch.from_numpy(X), SUBSETS, "beauty")


@pytest.mark.parametrize("score", ["kurtosis", "skew", "logcosh"])
def test_a_subset_of_constant_columns_scores_nothing_whatever_their_value(score):
    X = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    X[:, :4], X[:, 4:8] = 7.0, 0.0
    subsets = draw_subsets(12, 3, 60, random_state=0)
    found = subset_scores(X, subsets, score)
    constant = (subsets.indices < 8).all(1)
    assert constant.any() and torch.isfinite(found).all()
    assert (found[: subsets.n_coordinate][constant] == 0).all()
