"""RandomKCNNClassifier: an ensemble of k conditional nearest neighbour classifiers on the best random subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from rkcnn_lib.probe.moments import MAX_ELEMENTS, chunks
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import draw_subsets


def kcnn_posterior(distances: torch.Tensor) -> torch.Tensor:
    """Posterior ``P(c|x) = d_k(x|c)^-1 / sum_l d_k(x|l)^-1`` (Gweon, Schonlau & Steiner 2019).

    Parameters
    ----------
    distances : torch.Tensor of shape (..., L)
        d_k(x|c) of each class, non-negative. Classes at distance zero share all of the probability, which is
        the limit of the formula.

    Returns
    -------
    torch.Tensor of shape (..., L), rows summing to 1
    """
    nearest = distances.amin(-1, keepdim=True)
    # Scaled by the nearest class before inverting, so that tiny distances cannot overflow.
    inverse = torch.where(nearest > 0, nearest / distances, (distances == 0).to(distances.dtype))
    return inverse / inverse.sum(-1, keepdim=True)


class RandomKCNNClassifier(ClassifierMixin, BaseEstimator):
    """Random k Conditional Nearest Neighbor classifier (RkCNN).

    h random subsets of m features are drawn and scored by the separation ``S = BV / WV`` of the classes; on
    each of the r best a kCNN classifier gives a posterior; the posteriors are averaged with each subset's share
    of the scores as its weight.

    Parameters
    ----------
    n_subsets : int, default 200
        h.
    n_selected : int or None, default None
        r, at most h // 3, which None means.
    subset_size : int or None, default None
        m; None is round(sqrt(d)).
    k : int, default 5
        Neighbour within each class; a class of fewer rows uses its last.
    ensemble : bool, default True
        Average the posteriors of k' = 1..k instead of using k alone.
    subsets : {"coordinate", "rotated"}, default "coordinate"
    random_state : int, RandomState or None, default 0

    Attributes
    ----------
    classes_ : array of shape (L,)
    subsets_ : Subsets
    scores_ : array of shape (h,)
        Separation of every subset.
    selected_ : array of shape (r,)
        Subsets in use, best first.
    weights_ : array of shape (r,)
        Their weights, which sum to 1.

    References
    ----------
    Lu & Gweon 2025, PeerJ Computer Science 11:e2497. Gweon, Schonlau & Steiner 2019, "The k conditional nearest
    neighbor algorithm for classification and class probability estimation", PeerJ Computer Science 5:e194.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> RandomKCNNClassifier().fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        n_subsets: int = 200,
        n_selected: int | None = None,
        subset_size: int | None = None,
        k: int = 5,
        ensemble: bool = True,
        subsets: str = "coordinate",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_subsets = n_subsets
        self.n_selected = n_selected
        self.subset_size = subset_size
        self.k = k
        self.ensemble = ensemble
        self.subsets = subsets
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> RandomKCNNClassifier:
        """Choose and weight subsets for X (n, d) with labels y (n,).

        Raises
        ------
        ValueError
            For bad parameters, NaN or infinite values, labels of another length or of one class.
        """
        X, y = validate_data(self, *(_on_host(given) for given in (X, y)), dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y holds one class only; at least two classes are needed")
        limit = self.n_subsets // 3
        r = limit if self.n_selected is None else self.n_selected
        if self.k < 1 or not 1 <= r <= limit:
            raise ValueError(
                f"k={self.k}, n_selected={self.n_selected}, n_subsets={self.n_subsets} given; k must be at least 1 "
                "and n_selected lie in [1, n_subsets // 3]"
            )
        d = X.shape[1]
        m = max(1, round(d**0.5)) if self.subset_size is None else self.subset_size
        rng = check_random_state(self.random_state)
        self.subsets_ = draw_subsets(d, m, self.n_subsets, self.subsets, rng)
        self._scale = float(np.abs(X).max()) or 1.0  # distances are compared only: squares of 1e300 would overflow
        self._rows = torch.from_numpy(X / self._scale)
        self._codes = torch.from_numpy(codes)
        scores = subset_scores(self._rows, self.subsets_, "separation", y=codes).numpy()
        self.scores_ = scores
        self.selected_ = np.argsort(-scores, kind="stable")[:r]
        self.weights_ = _shares(scores[self.selected_])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior probabilities, (n, L), rows summing to 1, columns in the order of `classes_`."""
        check_is_fitted(self)
        rows = torch.from_numpy(validate_data(self, _on_host(X), reset=False, dtype=np.float64) / self._scale)
        rows = rows.clamp(-1e100, 1e100)  # farther than that nobody is near
        total = torch.zeros(len(rows), len(self.classes_), dtype=torch.float64)
        for subset, weight in zip(self.selected_, self.weights_, strict=True):
            train = self.subsets_.restrict(self._rows, int(subset))
            query = self.subsets_.restrict(rows, int(subset))
            for part in chunks(len(rows), len(train), MAX_ELEMENTS // 4):
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
        nearest = []
        for c in range(len(self.classes_)):
            own = distance[:, self._codes == c]
            near = own.topk(min(self.k, own.shape[1]), dim=1, largest=False).values
            nearest.append(torch.cat([near, near[:, -1:].expand(-1, self.k - near.shape[1])], dim=1))
        per_k = kcnn_posterior(torch.stack(nearest, dim=-1))  # (n, k, L)
        return per_k.mean(1) if self.ensemble else per_k[:, -1]


def _on_host(given: Any) -> Any:
    return given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given


def _shares(scores: np.ndarray) -> np.ndarray:
    """Shares of the total; infinite scores take all of it, and all-zero scores share alike."""
    if np.isinf(scores).any():
        scores = np.isinf(scores).astype(float)
    elif scores.sum() <= 0:
        scores = np.ones_like(scores)
    return scores / scores.sum()
