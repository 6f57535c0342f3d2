"""Local neighbours: equal to an obvious loop, find features in superposition, and nothing in noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib import tensors
from rkcnn_lib.measure import matched_cosine, recovery_rate
from rkcnn_lib.probe import RkCNNMiner, mine
from rkcnn_lib.probe.inputs import SearchOptions
from rkcnn_lib.probe.neighbours import NeighbourLift, concentration, draw_anchors, mean_shift, pseudo_classes, unit
from rkcnn_lib.probe.nulls import surrogate
from rkcnn_lib.probe.subsets import draw_subsets


def superposed(n=4000, n_features=12, d=4, n_active=2, seed=0):
    """Exactly two of twelve one-sided features active in four dimensions; directions kept apart."""
    rng = np.random.default_rng(seed)
    W = normalize(torch.from_numpy(rng.standard_normal((n_features, d))).float(), dim=1)
    for _ in range(300):  # push the directions apart, as a trained toy model does
        close = W @ W.T - 2 * torch.eye(n_features)
        W = normalize(W - 0.1 * torch.softmax(20 * close, dim=1) @ W, dim=1)
    codes = torch.zeros(n, n_features)
    active = torch.from_numpy(rng.random((n, n_features)).argsort(1)[:, :n_active])
    codes.scatter_(1, active, torch.from_numpy(rng.random((n, n_active))).float())
    return codes @ W, W


@pytest.mark.parametrize("kind", ["coordinate", "rotated"])
def test_pseudo_classes_equal_the_obvious_loop(kind, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_ELEMENTS", 2000)
    T = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    subsets = draw_subsets(7, 3, 9, kind, random_state=0)
    anchors = torch.arange(9) * 11
    found, means, scores = pseudo_classes(T, subsets, anchors, k=6)
    for i in range(9):
        basis = subsets.basis(i).double()
        inside = T.double() @ basis.T
        order = ((inside - inside[anchors[i]]) ** 2).sum(1).argsort()[:6]
        outside = T[order].double() - inside[order] @ basis
        centre = outside.mean(0)
        within = np.mean([float(((row - centre) ** 2).sum()) for row in outside])
        assert set(found[i].tolist()) == set(order.tolist())
        torch.testing.assert_close(means[i], T[order].mean(0))
        assert float(scores[i]) == pytest.approx(float((centre**2).sum()) / within, rel=1e-3)


def test_features_in_superposition_are_found_and_the_score_helps():
    X, W = superposed()
    options = {"n_directions": 24, "n_subsets": 300, "score": "neighbours", "random_state": 0}
    mined, bottom = mine("rkcnn", X, **options), mine("rkcnn_worst", X, **options)
    assert recovery_rate(mined, W) >= 0.9
    assert matched_cosine(mined, W) > matched_cosine(bottom, W)


@pytest.mark.slow
def test_noise_passes_the_null_in_few_of_forty_runs(monkeypatch):
    monkeypatch.setattr("rkcnn_lib.probe.nulls.N_SURROGATES", 19)  # as exact a threshold of 5 % as 99 give
    kept = 0
    for seed in range(40):
        X = surrogate(superposed(n=1200, seed=seed)[0], "gaussian", random_state=seed)
        miner = RkCNNMiner(60, None, 20, score="neighbours", null="gaussian", full_null_size=0, random_state=seed)
        kept += miner.fit(X).n_kept_ > 0
    assert kept <= 6  # 5 % expected; P(more than 6 of 40) is 0.003


def test_the_calibrated_miner_keeps_features():
    X, W = superposed()
    miner = RkCNNMiner(300, None, 24, score="neighbours", null="gaussian", full_null_size=0, random_state=0).fit(X)
    assert miner.n_kept_ >= 4
    best = (miner.directions_ @ W.T).amax(1)
    assert float((best >= 0.9).float().mean()) >= 0.7


def test_the_same_seed_gives_the_same_directions():
    X, _ = superposed(n=800)
    first, second = (mine("rkcnn", X, 12, score="neighbours", random_state=3) for _ in range(2))
    assert torch.equal(first, second)


def test_mean_shift_moves_towards_the_cluster():
    rows = normalize(torch.tensor([[1.0, 0.0]]) + 0.01 * torch.randn(50, 2), dim=1)
    moved = mean_shift(rows, normalize(torch.tensor([[1.0, 0.5]]), dim=1), k=50, n_steps=1)
    assert float(moved[0, 0]) > 0.999
    around = torch.cat([rows, -rows, torch.eye(2), -torch.eye(2)])  # rows are seen from their median: here 0
    assert float(concentration(around, moved, k=50)[0]) > 0.99


def test_anchors_are_drawn_where_something_is_left():
    T = torch.zeros(100, 3)
    T[7] = 1.0
    assert set(draw_anchors(T, 5, np.random.RandomState(0)).tolist()) == {7}
    assert len(draw_anchors(T * 0, 5, np.random.RandomState(0))) == 5


def test_the_lift_cannot_be_switched_off():
    with pytest.raises(ValueError, match="lift of its own"):
        RkCNNMiner(score="neighbours", lift=False).fit(torch.randn(100, 5))


def test_rows_of_a_rare_feature_lie_on_one_ray_from_the_origin():
    X, W = superposed(n=3000, n_active=1)
    X = X[(X @ W.T).argmax(1) < 3]  # whose directions do not cancel in the mean
    around = torch.cat([X, torch.zeros(2 * len(X), 4)]) + 5.0  # most rows hold no feature, at a place far from zero
    seen = NeighbourLift(around, SearchOptions(3)).rows[: len(X)]
    assert (seen @ W.T).max(1).values.quantile(0.01) > 0.999
    assert (unit(around - around.mean(0))[: len(X)] @ W.T).max(1).values.quantile(0.2) < 0.99  # not from the mean
    mined = mine("rkcnn", around, n_directions=6, n_subsets=240, score="neighbours")
    assert recovery_rate(mined, W[:3], 0.999) == 1.0


def test_a_row_without_length_has_no_direction():
    X = torch.tensor([[3.0, 4.0], [1e-9, 0.0], [0.0, 0.0]])
    assert torch.equal(unit(X), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))
