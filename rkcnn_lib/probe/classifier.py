"""RandomKCNNClassifier: an ensemble of k conditional nearest neighbour classifiers on the best random subsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rkcnn_lib.probe.inputs import check_labels, check_parameters, check_random_state, estimator_rows
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.tensors import MAX_ELEMENTS, chunks, whole


def kcnn_posterior(distances: torch.Tensor) -> torch.Tensor:
    """Posterior ``P(c|x) = d_k(x|c)^-1 / sum_l d_k(x|l)^-1`` of distances (..., L) (Gweon, Schonlau & Steiner 2019).

    Classes at distance zero share all of the probability, which is the limit of the formula.
    """
    nearest = distances.amin(-1, keepdim=True)
    # Scaled by the nearest class before inverting, so that tiny distances cannot overflow.
    inverse = torch.where(nearest > 0, nearest / distances, (distances == 0).to(distances.dtype))
    return inverse / inverse.sum(-1, keepdim=True)


@dataclass(eq=False, repr=False)
class RandomKCNNClassifier(ClassifierMixin, BaseEstimator):
    """Random k Conditional Nearest Neighbor classifier (RkCNN).

    h random subsets of m features are drawn and scored by the separation ``S = BV / WV`` of the classes; on each of the
    r best a kCNN classifier gives a posterior; the posteriors are averaged with each subset's share of the scores as
    its weight. Lu & Gweon 2025, PeerJ Computer Science 11:e2497; kCNN: Gweon, Schonlau & Steiner 2019, PeerJ CS 5:e194.

    After `fit`: classes_ (L,), subsets_, scores_ (h,) of all subsets, selected_ and weights_ (r,), best first, sum 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> RandomKCNNClassifier().fit(X, y).score(X, y) > 0.95
    True
    """

    n_subsets: int = 200
    """h."""
    n_selected: int | None = None
    """r, at most h // 3, which None means."""
    subset_size: int | None = None
    """m; None is round(sqrt(d))."""
    k: int = 5
    """Neighbour within each class; a class of fewer rows uses its last."""
    ensemble: bool = True
    """Average the posteriors of k' = 1..k instead of using k alone."""
    subsets: str = "coordinate"
    """"coordinate" or "rotated"."""
    random_state: int | np.random.RandomState | None = 0

    def fit(self, X: Any, y: Any) -> RandomKCNNClassifier:
        """Choose and weight subsets for X (n, d) with labels y (n,).

        ValueError for bad parameters, NaN or infinite values, labels of another length, of one class or all different.
        """
        check_parameters(self.get_params(deep=False))
        limit = self.n_subsets // 3
        r = limit if self.n_selected is None else whole("n_selected", self.n_selected, 1, limit)
        rows = estimator_rows(self, X).double().cpu()
        if y is None:
            raise ValueError("RandomKCNNClassifier requires y to be passed, but the target y is None")
        self.classes_, codes = np.unique(check_labels(y, len(rows)), return_inverse=True)
        d = rows.shape[1]
        m = max(1, round(d**0.5)) if self.subset_size is None else self.subset_size
        rng = check_random_state(self.random_state)
        self.subsets_ = draw_subsets(d, m, self.n_subsets, self.subsets, rng)
        self._scale = float(rows.abs().max()) or 1.0  # distances are compared only: squares of 1e300 would overflow
        self._rows = rows / self._scale
        self._rows_of = _rows_by_class(codes)
        self._most = min(self.k, np.bincount(codes).max())  # beyond it no class has another neighbour
        self.scores_ = subset_scores(self._rows, self.subsets_, "separation", y=codes).numpy()
        self.selected_ = np.argsort(-self.scores_, kind="stable")[:r]
        self.weights_ = _shares(self.scores_[self.selected_])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior probabilities, (n, L), rows summing to 1, columns in the order of `classes_`."""
        check_is_fitted(self)
        rows = estimator_rows(self, X, reset=False).double().cpu() / self._scale
        rows = rows.clamp(-1e100, 1e100)  # farther than that nobody is near
        total = torch.zeros(len(rows), len(self.classes_), dtype=torch.float64)
        for subset, weight in zip(self.selected_, self.weights_, strict=True):
            train = self.subsets_.restrict(self._rows, int(subset))
            query = self.subsets_.restrict(rows, int(subset))
            for part in chunks(len(rows), max(len(train), self._most * len(self.classes_)), MAX_ELEMENTS // 4):
                total[part] += weight * self._posterior(query[part], train)
        return (total / total.sum(1, keepdim=True)).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, (n,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _posterior(self, query: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
        """Posterior (n, L) on one subset, averaged over k' = 1..k in the ensemble."""
        # Exact differences: the quick route by matrix products gives a point a distance to itself that is not 0.
        distance = torch.cdist(query, train, compute_mode="donot_use_mm_for_euclid_dist")
        most = self._most
        nearest = distance.new_empty(len(query), most, len(self.classes_))
        for classes, rows in self._rows_of:
            near = distance[:, rows].topk(min(most, rows.shape[1]), dim=2, largest=False).values.mT  # (n, <= most, c)
            nearest[:, : near.shape[1], classes] = near
            nearest[:, near.shape[1] :, classes] = near[:, -1:]
        per_k = kcnn_posterior(nearest)
        if not self.ensemble:
            return per_k[:, -1]
        return (per_k.sum(1) + (self.k - most) * per_k[:, -1]) / self.k


def _rows_by_class(codes: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Classes of one size and their rows (c, size), for each size: so hundreds of classes take few steps."""
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    groups = []
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        rows = order[starts[same][:, None] + np.arange(size)]
        groups.append((torch.from_numpy(same), torch.from_numpy(rows)))
    return groups


def _shares(scores: np.ndarray) -> np.ndarray:
    """Shares of the total; infinite scores take all of it, and all-zero scores share alike."""
    if np.isinf(scores).any():
        scores = np.isinf(scores).astype(float)
    elif scores.sum() <= 0:
        scores = np.ones_like(scores)
    return scores / scores.sum()
