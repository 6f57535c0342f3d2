"""Every batched score beside its slow, obvious twin."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from rkcnn_lib.probe import (
    CONTRASTS,
    SCORES,
    Subsets,
    draw_subsets,
    knn_label_consistency,
    projection_contrast,
    separation_score,
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
    "knn_label_consistency": lambda A: slow_knn(A, Y, 4),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("max_elements", [1, 2**25])
def test_batched_score_equals_its_slow_twin_in_any_chunking(score: str, max_elements: int) -> None:
    fast = subset_scores(torch.from_numpy(X), SUBSETS, score, y=Y, k=4, max_elements=max_elements)
    slow = [TWINS[score](X @ SUBSETS.basis(i).double().numpy().T) for i in range(len(SUBSETS))]
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-5, atol=1e-7)


def test_separation_of_the_whole_space_equals_its_slow_twin() -> None:
    assert separation_score(X, Y) == pytest.approx(slow_separation(X, Y))
    everything = Subsets(6, torch.arange(6)[None], torch.zeros(0, 6, 6))
    whole = subset_scores(torch.from_numpy(X), everything, "separation", y=Y)
    assert float(whole) == pytest.approx(slow_separation(X, Y))


def test_separation_with_single_rows_and_without_spread_is_defined() -> None:
    assert separation_score(np.array([[0.0], [1.0]]), np.array([0, 1])) == np.inf
    assert separation_score(np.zeros((4, 2)), np.array([0, 0, 1, 1])) == 0


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


def test_knn_consistency_equals_its_twin_and_stands_beside_chance() -> None:
    result = knn_label_consistency(X, Y, k=4)
    assert result.share == pytest.approx(slow_knn(X, Y, 4))
    assert result.share > result.chance_upper > result.chance_mean
    assert result.chance_mean == pytest.approx(1 / 3, abs=0.03)


def test_knn_consistency_of_noise_is_chance() -> None:
    rng = np.random.RandomState(1)
    results = [
        knn_label_consistency(rng.standard_normal((60, 3)), rng.randint(0, 2, 60), k=3, random_state=s)
        for s in range(60)
    ]
    assert sum(r.share > r.chance_upper for r in results) <= 8


def test_documents_alone_do_not_beat_the_grouped_chance_level() -> None:
    rng = np.random.RandomState(2)
    groups = np.repeat(np.arange(12), 10)
    data = 5 * rng.standard_normal((12, 3))[groups] + rng.standard_normal((120, 3))  # rows know their document only
    labels = np.arange(12)[groups] % 2
    assert knn_label_consistency(data, labels, k=3).share > 0.9
    grouped = knn_label_consistency(data, labels, k=3, groups=groups)
    assert grouped.share <= grouped.chance_upper + 0.05


def test_duplicated_points_count_as_others() -> None:
    data = np.zeros((6, 2))
    assert 0 < knn_label_consistency(data, np.array([0, 1] * 3), k=5).share < 0.5


def test_bad_input_is_refused() -> None:
    data = torch.from_numpy(X)
    with pytest.raises(ValueError, match="needs labels"):
        subset_scores(data, SUBSETS, "separation")
    with pytest.raises(ValueError, match="unknown"):
        subset_scores(data, SUBSETS, "beauty")
    with pytest.raises(ValueError, match="one class"):
        separation_score(X, np.zeros(150))
    with pytest.raises(ValueError, match="150 rows"):
        separation_score(X, Y[:10])
    with pytest.raises(ValueError, match="k=150"):
        knn_label_consistency(X, Y, k=150)


@pytest.mark.parametrize("score", ["kurtosis", "skew", "logcosh"])
def test_a_subset_of_constant_columns_scores_nothing_whatever_their_value(score):
    X = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    X[:, :4], X[:, 4:8] = 7.0, 0.0
    subsets = draw_subsets(12, 3, 60, random_state=0)
    scores = subset_scores(X, subsets, score)
    constant = (subsets.indices < 8).all(1)
    assert constant.any() and torch.isfinite(scores).all()
    assert (scores[: subsets.n_coordinate][constant] == 0).all()
