from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.probe import RkCNNMiner, miner
from tests.probe.planted import sparse_world


@pytest.fixture
def few_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    """19 null data sets give a threshold of 5 % as exactly as 99 do, for a fifth of the work."""
    monkeypatch.setattr("rkcnn_lib.probe.nulls.N_SURROGATES", 19)


SMALL = {"n_subsets": 24, "n_directions": 6, "n_stages": 1}


@parametrize_with_checks([RkCNNMiner(n_subsets=12, n_directions=4, null=None)])
def test_is_a_scikit_learn_transformer(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # constant columns
        check(estimator)


def test_calibrated_search_keeps_features_and_drops_the_rest() -> None:
    X, truth = sparse_world(20, 16, 0.03, 6000, 2)
    miner = RkCNNMiner(n_subsets=120, n_directions=40, full_null_size=0).fit(X)
    assert miner.null_mode_ == "rescored"
    assert recovery_rate(miner.directions_, truth) >= 0.9
    assert (miner.scores_ > miner.threshold_).all()
    assert ((miner.directions_ @ truth.T).amax(1) > 0.8).float().mean() > 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("few_surrogates")
@pytest.mark.parametrize(
    ("null", "heavy", "full_null_size"),
    [("gaussian", False, 0), ("elliptical", True, 0)],
)
def test_noise_is_kept_in_few_runs(null: str, heavy: bool, full_null_size: float) -> None:
    kept = 0
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(400, 5, generator=g) @ torch.randn(5, 5, generator=g)
        if heavy:
            X = X * (0.5 * torch.randn(400, 1, generator=g)).exp()
        miner = RkCNNMiner(**SMALL, null=null, random_state=seed, full_null_size=full_null_size)
        kept += miner.fit(X).n_kept_ > 0
    assert kept <= 8  # 5 % of 60 is 3; nine or more would happen in 0.4 % of test suites


@pytest.mark.slow
@pytest.mark.usefixtures("few_surrogates")
def test_full_search_on_surrogates_keeps_noise_in_few_runs() -> None:
    tiny = {"n_subsets": 12, "n_directions": 4, "n_stages": 1, "null": "gaussian"}
    data = [torch.randn(100, 4, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    miners = [RkCNNMiner(**tiny, random_state=s).fit(X) for s, X in enumerate(data)]
    assert all(m.null_mode_ == "full" for m in miners)
    assert sum(m.n_kept_ > 0 for m in miners) <= 3


@pytest.mark.slow
def test_permuted_labels_keep_noise_in_few_runs_even_within_documents() -> None:
    kept = {True: 0, False: 0}
    for seed in range(20):
        rng = np.random.RandomState(seed)
        groups = np.repeat(np.arange(20), 8)
        X = 3 * rng.standard_normal((20, 5))[groups] + rng.standard_normal((160, 5))
        y = rng.permutation(np.arange(20) % 2)[groups]  # a label of the document, which X knows nothing of
        for grouped in kept:
            miner = RkCNNMiner(n_subsets=12, n_directions=4, random_state=seed, full_null_size=0)
            kept[grouped] += miner.fit(X, y, groups=groups if grouped else None).n_kept_ > 0
    assert kept[True] <= 4
    assert kept[False] > 10  # what grouping is for


def test_labels_lead_to_fishers_direction() -> None:
    rng = np.random.RandomState(0)
    y = rng.randint(0, 2, 2000)
    mixing = rng.standard_normal((12, 12))
    delta = rng.standard_normal(12)
    X = rng.standard_normal((2000, 12)) @ mixing + 2 * y[:, None] * delta
    miner = RkCNNMiner(n_subsets=60, n_directions=20, full_null_size=0).fit(X, y)
    assert miner.score_ == "separation" and miner.n_kept_ == 1 and miner.targets_.tolist() == [1]
    assert miner.directions_[0] @ delta / np.linalg.norm(delta) > 0.95
    scores = miner.transform(X)[:, 0]
    assert scores[y == 1].mean() > scores[y == 0].mean()


def test_same_seed_same_directions_and_another_seed_other_subsets() -> None:
    X, _ = sparse_world(20, 16, 0.05, 2000, 3)
    a, b = (RkCNNMiner(n_subsets=60, n_directions=20, random_state=5, full_null_size=0).fit(X) for _ in range(2))
    assert torch.equal(a.directions_, b.directions_) and a.threshold_ == b.threshold_
    c = clone(a).set_params(random_state=6).fit(X)
    assert not torch.equal(a.subsets_.indices, c.subsets_.indices)


def test_kind_and_precision_come_back_as_they_went_in() -> None:
    X, _ = sparse_world(10, 8, 0.1, 1000, 4)
    kind = {"n_subsets": 30, "n_directions": 10, "null": None}
    tensor, array = RkCNNMiner(**kind).fit(X), RkCNNMiner(**kind).fit(X.numpy())
    assert isinstance(tensor.directions_, torch.Tensor) and isinstance(array.filters_, np.ndarray)
    np.testing.assert_allclose(tensor.directions_.numpy(), array.directions_, atol=1e-6)
    for given in ((X * 100).int(), X.half(), (X * 100).int().numpy(), X.numpy().astype(np.float16)):
        miner = RkCNNMiner(**kind).fit(given)
        assert str(miner.directions_.dtype).endswith("float32") and miner.n_kept_ > 0
    assert RkCNNMiner(**kind).fit(X.double().numpy()).directions_.dtype == np.float64
    np.testing.assert_allclose(
        array.transform(X.numpy()), (X.numpy() - X.numpy().mean(0)) @ array.filters_.T, atol=1e-5
    )
    torch.testing.assert_close(tensor.transform(X), torch.from_numpy(array.transform(X.numpy())), atol=1e-4, rtol=0)


def test_directions_are_unit_signed_to_the_right_and_not_copies() -> None:
    X, _ = sparse_world(30, 16, 0.05, 4000, 5)
    miner = RkCNNMiner(n_subsets=90, n_directions=30, score="kurtosis", null=None).fit(
        -X
    )  # all features point the other way
    torch.testing.assert_close(miner.directions_.norm(dim=1), torch.ones(miner.n_kept_))
    P = miner.transform(-X)
    assert ((P**3).mean(0) > 0).all()
    C = miner.directions_ @ miner.directions_.T - 2 * torch.eye(miner.n_kept_)
    assert C.max() <= 0.9 + 1e-5
    assert (np.diff(miner.scores_) <= 0).all()


def test_scale_and_offset_do_not_matter() -> None:
    X, _ = sparse_world(10, 8, 0.1, 2000, 6)
    kind = {"n_subsets": 30, "n_directions": 10, "null": None}
    plain = RkCNNMiner(**kind).fit(X.double()).directions_
    for moved in (X.double() * 1e-9, X.double() * 1e12, X.double() + 1000):
        torch.testing.assert_close(RkCNNMiner(**kind).fit(moved).directions_, plain, atol=2e-3, rtol=0)


@pytest.mark.parametrize("score", ["kurtosis", "logcosh", "skew", "coordinate_kurtosis", "variance_ratio"])
def test_outlier_dimensions_and_tokens_never_give_nan(score: str) -> None:
    X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    X[:, 0] *= 1e4
    X[7] *= 1e5
    X[8] = X.mean(0)
    miner = RkCNNMiner(n_subsets=30, n_directions=10, score=score, null=None).fit(X)
    assert torch.isfinite(miner.directions_).all() and np.isfinite(miner.scores_).all() and miner.n_kept_ > 0


def test_few_coordinates_are_made_up_by_rotated_subsets_and_counted() -> None:
    X, _ = sparse_world(8, 5, 0.1, 500, 0)
    miner = RkCNNMiner(n_subsets=60, subset_size=2, n_directions=20, null=None).fit(X)
    assert (miner.subsets_.n_coordinate, miner.subsets_.n_rotated) == (10, 50)
    assert [row["drawn"] for row in miner.funnel_] == [60] * 6


def test_more_directions_than_a_third_of_the_subsets_are_cut_with_a_warning() -> None:
    X, _ = sparse_world(20, 16, 0.05, 800, 0)
    with pytest.warns(UserWarning, match="cut to 10"):
        miner = RkCNNMiner(n_subsets=30, n_directions=30, null=None).fit(X)
    assert miner.n_kept_ <= 10 and miner.n_directions == 30


def test_constant_columns_are_left_out_with_a_warning() -> None:
    X, _ = sparse_world(8, 8, 0.1, 500, 0)
    X[:, [2, 5]] = 3.0
    with pytest.warns(UserWarning, match="2 constant columns"):
        miner = RkCNNMiner(n_subsets=15, n_directions=5, null=None).fit(X)
    assert miner.directions_[:, [2, 5]].abs().sum() == 0
    assert not set(miner.subsets_.indices.flatten().tolist()) & {2, 5}
    with pytest.raises(ValueError, match="only 6 columns vary"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RkCNNMiner(n_subsets=15, n_directions=5, subset_size=7).fit(X)


BAD = np.random.RandomState(0).standard_normal((20, 4))


@pytest.mark.parametrize(
    ("parameters", "X", "y", "message"),
    [
        ({}, np.where(np.eye(20, 4) > 0, np.nan, BAD), None, "NaN"),
        ({}, torch.full((20, 4), torch.inf), None, "infinite"),
        ({}, np.zeros((0, 4)), None, "0 sample"),
        ({}, torch.zeros(0, 4), None, "shape"),
        ({}, torch.zeros(5), None, "shape"),
        ({"subset_size": 4}, BAD[:3], None, "fewer than subset_size"),
        ({}, np.ones((20, 4)), None, "only 0 columns"),
        ({}, BAD, np.zeros(20), "one class"),
        ({}, BAD, np.arange(19) % 2, "20 rows"),
        ({"score": "separation"}, BAD, None, "needs labels"),
        ({"lift": False}, BAD, np.arange(20) % 2, "without labels"),
        ({"null": "cauchy"}, BAD, None, "unknown"),
        ({"score": "beauty"}, BAD, None, "unknown"),
        ({"n_subsets": 2}, BAD, None, "at least 3"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_input_gives_a_clear_error(parameters: dict[str, Any], X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RkCNNMiner(**{"n_subsets": 9, "n_directions": 3, **parameters}).fit(X, y)


def test_score_is_a_parameter_and_a_method() -> None:
    miner = RkCNNMiner(n_subsets=30, n_directions=10, score="skew", null=None)
    assert miner.get_params()["score"] == "skew" and "score='skew'" in repr(miner)
    X, _ = sparse_world(10, 8, 0.1, 1000, 4)
    assert miner.fit(X).score(X) == pytest.approx(miner.scores_.mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["kurtosis", "neighbours"])
def test_the_number_of_threads_hardly_matters(score: str) -> None:
    X, _ = sparse_world(48, 24, 0.03, 9000, 7)  # clear enough for any processor's rounding
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(RkCNNMiner(n_subsets=240, n_directions=80, score=score, null=None).fit(X).directions_)
    finally:
        torch.set_num_threads(threads)
    cosines = match(*found).cosines
    assert (cosines >= 0.999).mean() >= 0.99 and len(cosines) >= 40


def test_no_more_rows_are_used_than_allowed_and_labels_stay_with_them(monkeypatch) -> None:
    X, _ = sparse_world(8, 6, 0.1, 3000, 8)
    y = (X[:, 0] > X[:, 0].median()).numpy().astype(int)
    all_rows = RkCNNMiner(n_subsets=30, n_directions=10, null=None).fit(X, y)
    monkeypatch.setattr(miner, "MAX_ROWS", 500)
    few = RkCNNMiner(n_subsets=30, n_directions=10, null=None).fit(X, y)
    assert not torch.equal(few.mean_, all_rows.mean_) and few.n_kept_ == all_rows.n_kept_ == 1
    assert float(few.directions_[0] @ all_rows.directions_[0]) > 0.95
