from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.probe import RkCNNMiner, distinct
from rkcnn_lib.worlds import SyntheticSparseDataGenerator, ToyModel
from tests.probe.planted import sparse_world


@pytest.mark.slow
def test_recovers_features_in_superposition_and_coordinate_subsets_do_not() -> None:
    X, truth = sparse_world(64, 32, 0.02, 8000, 0)
    miner = RkCNNMiner(null=None).fit(X)
    assert recovery_rate(miner.directions_, truth) >= 0.95  # chance: 0, no random unit vector in R^32 comes near 0.9
    baseline = RkCNNMiner(lift=False, score="kurtosis", null=None).fit(X)
    assert recovery_rate(baseline.directions_, truth) == 0
    assert recovery_rate(normalize(torch.randn(200, 32), dim=1), truth) == 0


@pytest.mark.slow
@pytest.mark.parametrize("score", ["kurtosis", "neighbours"])
def test_nearly_all_of_256_features_in_64_dimensions_are_found(score: str) -> None:
    X, truth = sparse_world(256, 64, 0.01, 8000, 1)
    found = RkCNNMiner(n_subsets=1152, n_directions=384, score=score, null=None).fit(X).directions_
    assert len(found) <= 384 and recovery_rate(found, truth) >= 0.98


@pytest.mark.slow
def test_heavy_superposition_is_seen_by_neighbours_where_contrasts_are_blind() -> None:
    model = ToyModel(40, 10, 0.05, random_state=0)
    model.train(800, progress=False)
    X = SyntheticSparseDataGenerator(40, 0.05, random_state=1).sample(5000) @ model.W
    truth = normalize(model.W[model.W.norm(dim=1) > 0.5], dim=1)
    assert len(truth) >= 35
    options = {"n_subsets": 180, "n_directions": 60, "null": None}
    assert recovery_rate(RkCNNMiner(score="neighbours", **options).fit(X).directions_, truth) >= 0.95
    assert recovery_rate(RkCNNMiner(score="kurtosis", **options).fit(X).directions_, truth) < 0.8
    assert recovery_rate(normalize(torch.randn(60, 10, generator=torch.Generator().manual_seed(0)), dim=1), truth) < 0.2


def test_merging_keeps_the_best_of_near_copies_and_both_signs() -> None:
    D = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0]]), dim=1)
    kept = distinct(D, torch.tensor([1.0, 2.0, 3.0, 0.5]))
    assert kept.tolist() == [2, 1, 3]
