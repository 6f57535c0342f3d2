"""Whatever is given to the room: the answer for the plain array, or a refusal that names the argument."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.probe import (
    RandomKCNNClassifier,
    RkCNNMiner,
    draw_subsets,
    mine,
    permute_labels,
    surrogate,
)
from rkcnn_lib.probe.inputs import CHECKS
from tests.odd_inputs import assert_refused, forms, no_matrices

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.RandomState(0)
Y = np.arange(60) % 3
X = np.round(20 * RNG.standard_normal((60, 5)) + 30 * np.eye(5)[Y])
SMALL = {"n_subsets": 12, "n_directions": 4, "null": None, "n_stages": 2}
FITTED, CLASSIFIER = RkCNNMiner(**SMALL).fit(X), RandomKCNNClassifier(n_subsets=12).fit(X, Y)
ROWS = {
    "RkCNNMiner.fit": lambda X: RkCNNMiner(**SMALL).fit(X).directions_,
    "RkCNNMiner.fit with labels": lambda X: RkCNNMiner(**SMALL).fit(X, Y).directions_,
    "RkCNNMiner.transform": FITTED.transform,
    "RandomKCNNClassifier.fit": lambda X: RandomKCNNClassifier(n_subsets=12).fit(X, Y).scores_,
    "RandomKCNNClassifier.predict": CLASSIFIER.predict,
    "RandomKCNNClassifier.predict_proba": CLASSIFIER.predict_proba,
    "mine kmeans": lambda X: mine("kmeans", X, 4),
    "mine pca": lambda X: mine("pca", X, 4),
    "mine rkcnn": lambda X: mine("rkcnn", X, 4, n_stages=1),
    "surrogate": lambda X: surrogate(X).mean(0),
}
SCALE_FREE = set(ROWS) - {"RkCNNMiner.transform", "RandomKCNNClassifier.predict", "RandomKCNNClassifier.predict_proba",
                          "surrogate"}  # fmt: skip


def numbers(answer: Any) -> np.ndarray:
    return np.asarray(answer.detach().double() if isinstance(answer, torch.Tensor) else answer, dtype=float)


@pytest.mark.parametrize("name", ROWS)
def test_the_same_numbers_in_any_form_give_the_same_answer(name: str) -> None:
    plain = numbers(ROWS[name](X))
    for form, given in forms(X).items():
        # What is drawn in float32 is another draw than in float64; it has X's mean all the same.
        close = 15 if name == "surrogate" else 0.5 if name == "RkCNNMiner.transform" and "16" in form else 2e-4
        np.testing.assert_allclose(numbers(ROWS[name](given)), plain, atol=close, err_msg=form)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_no_matrix_of_numbers_is_refused_by_name(name: str) -> None:
    for what, given in (no_matrices(X) | {"no rows": X[:0], "no rows, tensor": torch.tensor(X[:0])}).items():
        assert_refused(lambda given=given: ROWS[name](given), "X", f"{name}: {what}")


@pytest.mark.parametrize("scale", [1e300, 1e-300, 2.0**1016, 1e30])
@pytest.mark.parametrize("name", sorted(SCALE_FREE))
def test_enormous_and_tiny_numbers_give_the_same_answer(name: str, scale: float) -> None:
    np.testing.assert_allclose(numbers(ROWS[name](X * scale)), numbers(ROWS[name](X)), atol=1e-6)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_enormous_and_tiny_rows_are_classified_and_drawn_as_others(scale: float) -> None:
    classifier = RandomKCNNClassifier(n_subsets=12).fit(X * scale, Y)
    np.testing.assert_allclose(classifier.predict_proba(X * scale), CLASSIFIER.predict_proba(X))
    np.testing.assert_allclose(surrogate(torch.tensor(X * scale)) / scale, surrogate(torch.tensor(X)), rtol=1e-6)
    assert RkCNNMiner(**SMALL).fit(X * scale).score(X * scale) == pytest.approx(FITTED.score(X), rel=1e-4)


def test_booleans_count_as_zero_and_one() -> None:
    for name, call in ROWS.items():
        if name != "surrogate":
            expected, found = call((X > 0).astype(float)), call(X > 0)
            np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-6, err_msg=name)


def test_rows_that_cannot_be_mined_are_refused_by_name() -> None:
    for name in ("RkCNNMiner.fit", "mine kmeans", "mine pca", "mine rkcnn"):
        for given in (X[:1], torch.tensor(X[:1]), X[:1].tolist(), np.ones((60, 5))):
            assert_refused(lambda given=given, name=name: ROWS[name](given), "X|columns", name)
    for call in (FITTED.transform, CLASSIFIER.predict):
        for given in (X[:, :3], torch.tensor(X[:, :3])):
            assert_refused(lambda given=given, call=call: call(given), "X", "another width")


def test_one_column_and_constant_columns_give_an_answer() -> None:
    for given in (X[:, :1], np.column_stack([X, np.full(60, 7.0)])):
        for name in ("RkCNNMiner.fit", "mine kmeans", "mine pca", "RandomKCNNClassifier.fit"):
            assert np.isfinite(numbers(ROWS[name](given))).all(), name


LABELLED = {
    "RkCNNMiner.fit": lambda y: RkCNNMiner(**SMALL).fit(X, y).directions_,
    "RandomKCNNClassifier.fit": lambda y: RandomKCNNClassifier(n_subsets=12).fit(X, y).predict_proba(X),
}
SAME_LABELS = {
    "words": np.array(["a", "b", "c"])[Y], "objects": np.array(["a", "b", "c"], dtype=object)[Y], "floats": Y * 1.0,
    "list": Y.tolist(), "upside down in memory": Y[::-1].copy()[::-1], "Series": pd.Series(Y), "column": Y[:, None],
    "tensor": torch.tensor(Y), "bfloat16": torch.tensor(Y).bfloat16(), "categories": pd.Series(Y).astype("category"),
    "requires_grad": torch.tensor(Y * 1.0).requires_grad_(),
}  # fmt: skip
NO_LABELS = {
    "NaN": np.where(Y == 1, np.nan, Y), "missing": np.where(Y == 1, None, Y), "NaN tensor": torch.tensor(Y / 0.0),
    "words and numbers": np.array(["a", 1, 2], dtype=object)[Y], "all the same": np.zeros(60), "too few": Y[:-1],
    "two columns": np.stack([Y, Y], axis=1), "a number": 3, "a DataFrame": pd.DataFrame({"a": Y, "b": Y}),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_any_kind_mean_the_same_and_what_are_none_is_refused_by_name(name: str) -> None:
    plain = numbers(LABELLED[name](Y))
    for form, given in SAME_LABELS.items():
        np.testing.assert_allclose(numbers(LABELLED[name](given)), plain, atol=1e-9, err_msg=form)
    for what, given in NO_LABELS.items():
        assert_refused(lambda given=given: LABELLED[name](given), "y", f"{name}: {what}")


def test_labels_that_are_all_different_are_refused_at_once() -> None:
    rows = np.random.RandomState(1).standard_normal((400, 6))
    for estimator in (RkCNNMiner(), RandomKCNNClassifier()):
        for y in (np.arange(400), rows[:, 0], np.arange(400).astype(str)):
            assert_refused(lambda y=y, estimator=estimator: estimator.fit(rows, y), "y|label", "all different")


def test_groups_that_do_not_fit_are_refused_by_name() -> None:
    for groups in (np.arange(59), np.where(Y == 1, np.nan, Y), np.where(Y == 1, None, "a"), np.zeros((60, 2))):
        assert_refused(lambda groups=groups: RkCNNMiner(**SMALL).fit(X, Y, groups), "groups", "groups")
        assert_refused(lambda groups=groups: permute_labels(Y, groups), "groups", "groups")


def test_many_classes_and_more_neighbours_than_rows_equal_the_slow_formula() -> None:
    y = np.array([0] * 30 + [1] * 20 + [2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
    for k, ensemble in itertools.product((1, 3, 40), (True, False)):
        model = RandomKCNNClassifier(n_subsets=3, n_selected=1, k=k, ensemble=ensemble, subset_size=5).fit(X, y)
        query = X[:7] + 0.5
        distance = np.linalg.norm(query[:, None] - X[None], axis=2)
        near = np.stack([np.sort(distance[:, y == c], axis=1)[:, np.minimum(np.arange(k), (y == c).sum() - 1)]
                         for c in range(7)], axis=2)  # fmt: skip
        posterior = (1 / near) / (1 / near).sum(2, keepdims=True)
        np.testing.assert_allclose(model.predict_proba(query), posterior.mean(1) if ensemble else posterior[:, -1])
    k = 10**12  # no array is that long
    assert RandomKCNNClassifier(n_subsets=12, k=k).fit(X, Y).predict(X).shape == (60,)


WHOLE = (0, -1, 2.5, 3.0, True, "3", None, float("nan"), float("inf"), np.array([3]))
SWITCH = ("no", 0, 1, None, "True")
NAME = ("beauty", 3, None, ["kurtosis"])
BAD_VALUES = {
    "lift": SWITCH, "ensemble": SWITCH,
    "subsets": NAME, "score": NAME, "select": NAME, "rule": NAME, "null": NAME[:2],
    "merge_cosine": (0.0, -0.5, 1.5, float("nan"), "0.9", None, True),
    "full_null_size": (-1.0, float("nan"), "many", None),
    "subset_size": (*WHOLE[:6], 9), "n_selected": (*WHOLE[:6], 5), "n_refinements": WHOLE[1:],
    "n_shifts": WHOLE[1:], "n_neighbours": (*WHOLE, 1), "n_subsets": (*WHOLE, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_every_parameter_is_checked_by_type_and_range_and_named(name: str) -> None:
    """`merge_cosine` nan or 1.5 and `lift="no"` were taken."""
    miner, classifier = RkCNNMiner(**SMALL).get_params(), RandomKCNNClassifier(n_subsets=12).get_params()
    for value in BAD_VALUES.get(name, WHOLE):
        if name in miner:
            fit = RkCNNMiner(**SMALL | {name: value}).fit
            assert_refused(lambda fit=fit: fit(X), name, f"RkCNNMiner {value!r}")
        if name in classifier:
            fit = RandomKCNNClassifier(**{"n_subsets": 12, name: value}).fit
            assert_refused(lambda fit=fit: fit(X, Y), name, f"RandomKCNNClassifier {value!r}")
        if name in miner and name not in {"n_directions", "subset_size"}:
            assert_refused(lambda value=value: mine("rkcnn", X, 4, **{name: value}), name, f"mine {value!r}")


def test_numbers_of_numpy_are_taken_as_those_of_python() -> None:
    given = {"n_subsets": np.int64(12), "n_directions": np.int32(4), "null": None, "lift": np.bool_(True),
             "merge_cosine": np.float32(0.9), "random_state": np.int64(0), "n_stages": np.uint8(2)}  # fmt: skip
    np.testing.assert_array_equal(RkCNNMiner(**given).fit(X).directions_, FITTED.directions_)


@pytest.mark.parametrize("seed", ["a", 1.5, -1, 2**32, True, np.random.default_rng(0), [1, 2], np.array([1])])
def test_seeds_that_are_none_are_refused_by_name(seed: Any) -> None:
    for call in (
        lambda: RkCNNMiner(**SMALL, random_state=seed).fit(X),
        lambda: RandomKCNNClassifier(random_state=seed).fit(X, Y),
        lambda: mine("kmeans", X, 4, random_state=seed),
        lambda: draw_subsets(5, 2, 4, random_state=seed),
        lambda: permute_labels(Y, random_state=seed),
        lambda: surrogate(torch.tensor(X), random_state=seed),
    ):
        assert_refused(call, "random_state", repr(seed))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("n_directions", lambda: mine("pca", X, 0)),
        ("n_directions", lambda: mine("pca", X, 2.5)),
        ("n_directions", lambda: mine("pca", X, True)),
        ("method", lambda: mine(["pca"], X, 3)),
        ("kind", lambda: draw_subsets(5, 2, 4, "round")),
        ("subset_size", lambda: draw_subsets(5, 6, 4)),
        ("n_subsets", lambda: draw_subsets(5, 2, 0)),
        ("d", lambda: draw_subsets(2.5, 2, 4)),
        ("kind", lambda: surrogate(torch.tensor(X), "cauchy")),
    ],
)
def test_other_arguments_out_of_their_range_are_refused_by_name(argument: str, call: Any) -> None:
    assert_refused(call, argument, argument)


def test_more_directions_than_rows_give_what_there_is() -> None:
    for method in ("random", "datapoint", "kmeans", "pca", "rkcnn"):
        D = mine(method, X[:8], 30)
        assert 0 < len(D) <= 30 and np.isfinite(D).all(), method
