from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.utils.estimator_checks import parametrize_with_checks

from rkcnn_lib.probe import RandomKCNNClassifier, kcnn_posterior


@parametrize_with_checks([RandomKCNNClassifier(n_subsets=12)])
def test_is_a_scikit_learn_classifier(estimator: Any, check: Any) -> None:
    check(estimator)


def slow_posterior(train: np.ndarray, y: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    inverse = []
    for c in np.unique(y):
        distance = np.sort(np.linalg.norm(train[y == c] - x, axis=1))
        inverse.append(1 / distance[min(k, len(distance)) - 1])
    return np.array(inverse) / np.sum(inverse)


@pytest.mark.parametrize("ensemble", [True, False])
def test_posterior_equals_its_slow_twin(ensemble: bool) -> None:
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1, 2], [20, 15, 3])  # one class has fewer rows than k
    X = rng.standard_normal((38, 6)) + np.eye(6)[y]
    query = rng.standard_normal((7, 6))
    model = RandomKCNNClassifier(n_subsets=15, k=4, ensemble=ensemble).fit(X, y)
    expected = np.zeros((7, 3))
    for subset, weight in zip(model.selected_, model.weights_, strict=True):
        columns = model.subsets_.indices[subset].numpy()
        for i, row in enumerate(query):
            ks = range(1, 5) if ensemble else [4]
            one = np.mean([slow_posterior(X[:, columns], y, row[columns], k) for k in ks], axis=0)
            expected[i] += weight * one
    np.testing.assert_allclose(model.predict_proba(query), expected, rtol=1e-6)


def test_weights_are_shares_of_the_best_scores() -> None:
    rng = np.random.RandomState(0)
    y = np.arange(200) % 2
    X = rng.standard_normal((200, 10))
    X[:, 0] += 4 * y
    model = RandomKCNNClassifier(n_subsets=60, subset_size=2).fit(X, y)
    assert len(model.selected_) == 20 and model.weights_.sum() == pytest.approx(1)
    assert model.scores_[model.selected_].min() >= np.delete(model.scores_, model.selected_).max()
    np.testing.assert_allclose(model.weights_, model.scores_[model.selected_] / model.scores_[model.selected_].sum())


def test_selection_beats_the_same_ensemble_without_it_among_noise_features() -> None:
    rng = np.random.RandomState(1)
    y = np.arange(400) % 2
    X = rng.standard_normal((400, 60))
    X[:, :3] += 1.5 * y[:, None]
    model = RandomKCNNClassifier(n_subsets=300, n_selected=30).fit(X[:200], y[:200])
    selected = model.score(X[200:], y[200:])
    model.selected_, model.weights_ = np.arange(30), np.full(30, 1 / 30)
    assert selected > 0.85 > model.score(X[200:], y[200:]) - 0.05
    assert selected > model.score(X[200:], y[200:])


def test_zero_and_tiny_distances_share_the_probability() -> None:
    given = torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1e-300, 1e-300, 1.0], [1.0, 3.0, 3.0]]).double()
    given[2, :2] = 1e-300
    expected = [[0.5, 0, 0.5], [1, 0, 0], [0.5, 0.5, 0], [0.6, 0.2, 0.2]]
    np.testing.assert_allclose(kcnn_posterior(given).numpy(), expected, atol=1e-12)


def test_training_rows_and_duplicates_give_finite_probabilities() -> None:
    X = np.repeat(np.eye(4), 5, axis=0)
    y = np.repeat([0, 1, 0, 1], 5)
    P = RandomKCNNClassifier(n_subsets=9).fit(X, y).predict_proba(X)
    assert np.isfinite(P).all() and P.sum(1) == pytest.approx(1)


def test_noise_is_classified_at_chance() -> None:
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((1200, 8)), rng.randint(0, 2, 1200)
    score = RandomKCNNClassifier(n_subsets=30).fit(X[:600], y[:600]).score(X[600:], y[600:])
    assert abs(score - 0.5) < 0.07


def test_bad_parameters_are_refused() -> None:
    X, y = np.random.RandomState(0).standard_normal((20, 4)), np.arange(20) % 2
    for bad in ({"k": 0}, {"n_selected": 70}, {"subset_size": 9}, {"n_subsets": 2}):
        with pytest.raises(ValueError, match="given"):
            RandomKCNNClassifier(**bad).fit(X, y)
    with pytest.raises(ValueError, match="class"):
        RandomKCNNClassifier().fit(X, np.zeros(20))


def test_tensors_are_taken_and_enormous_numbers_classified() -> None:
    X, y = load_iris(return_X_y=True)
    plain = RandomKCNNClassifier().fit(X, y)
    tensors = RandomKCNNClassifier().fit(torch.as_tensor(X), torch.as_tensor(y))
    np.testing.assert_array_equal(tensors.predict_proba(torch.as_tensor(X)), plain.predict_proba(X))
    huge = RandomKCNNClassifier().fit(X * 1e300, y)
    assert huge.score(X * 1e300, y) == plain.score(X, y) > 0.95
    assert np.isfinite(plain.predict_proba(np.full((1, 4), 1e300))).all()
