"""Separation scores of subsets, with and without labels, batched over subsets with bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from rkcnn_lib.probe.inputs import check_labels
from rkcnn_lib.probe.moments import MAX_ELEMENTS, chunks, contrast_of, covariance, projection_contrast
from rkcnn_lib.probe.nulls import permute_labels
from rkcnn_lib.probe.parameters import LABELLED_SCORES, SCORES
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import MAX_SEED, as_matrix, chance_level, one_of, scaled, whole


def principal_directions(
    cov: torch.Tensor, subsets: Subsets, max_elements: int = MAX_ELEMENTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """First principal direction (h, d) of each subset by the covariance (d, d), padded with zeros, and its share (h,).

    Unit rows, float64; the sign makes the largest entry positive. The share of the subset's variance on the direction
    is in [1/m, 1]; 0 where nothing varies.
    """
    m, d = subsets.size, subsets.d
    directions, shares = [], []
    for s in chunks(subsets.n_coordinate, m * m, max_elements):
        idx = subsets.indices[s]
        values, vectors = torch.linalg.eigh(cov[idx[:, :, None], idx[:, None, :]])
        padded = torch.zeros(len(idx), d, dtype=cov.dtype, device=cov.device)
        directions.append(padded.scatter_(1, idx, vectors[:, :, -1]))
        shares.append(values[:, -1] / values.sum(1))
    for s in chunks(subsets.n_rotated, m * d, max_elements):
        bases = subsets.bases[s].to(cov.dtype)
        values, vectors = torch.linalg.eigh(bases @ cov @ bases.transpose(1, 2))
        directions.append((vectors[:, None, :, -1] @ bases)[:, 0])
        shares.append(values[:, -1] / values.sum(1))
    v = torch.cat(directions)
    largest = v.gather(1, v.abs().argmax(1, keepdim=True))
    return v * torch.where(largest < 0, -1.0, 1.0), torch.cat(shares).nan_to_num(0.0)


def scatter_matrices(X: torch.Tensor, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Between-class and within-class scatter (d, d), float64, whose traces are BV and WV.

    ``BV = sum_c ||mean_c - mean||^2 / (L - 1)`` and ``WV = sum_c sum_i ||x_i - mean_c||^2 / ((N_c - 1) L)`` (Lu & Gweon
    2025, eq. for S). A class of one row has no spread of its own and adds nothing to WV.
    """
    codes = torch.as_tensor(np.unique(check_labels(y, len(X)), return_inverse=True)[1], device=X.device)
    sizes, grand = torch.bincount(codes), X.mean(0, dtype=torch.float64)
    sums = torch.zeros(len(sizes), X.shape[1], dtype=torch.float64, device=X.device)
    sums.index_add_(0, codes, X.to(torch.float64))
    means = sums / sizes[:, None] - grand  # centred on the grand mean
    between = means.T @ means / (len(sizes) - 1)
    weight = 1.0 / ((sizes - 1).clamp_min(1) * len(sizes)).to(torch.float64)
    within = torch.zeros_like(between)
    for rows in chunks(len(X), X.shape[1]):
        residual = X[rows].to(torch.float64) - grand - means[codes[rows]]
        within += (residual * weight[codes[rows], None]).T @ residual
    return between, within


def _ratio(between: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """BV / WV: infinite when classes differ without any spread, 0 when nothing differs."""
    return torch.where(between > 0, between / within.clamp_min(0), torch.zeros_like(between))


def separation_score(X: torch.Tensor | np.ndarray, y: np.ndarray) -> float:
    """Separation S = BV / WV of the classes y in the whole of X (n, d); see `scatter_matrices`."""
    between, within = scatter_matrices(scaled(as_matrix(X)), y)
    return float(_ratio(between.trace(), within.trace()))


def _over_subsets(matrix: torch.Tensor, subsets: Subsets) -> torch.Tensor:
    """Trace of a (d, d) matrix within each subset, (h,)."""
    traces = [matrix.diagonal()[subsets.indices].sum(1)]
    for s in chunks(subsets.n_rotated, subsets.size * subsets.d):
        bases = subsets.bases[s].to(matrix.dtype)
        traces.append(((bases @ matrix) * bases).sum((1, 2)))
    return torch.cat(traces)


def _coordinate_kurtosis(X: torch.Tensor, subsets: Subsets, max_elements: int) -> torch.Tensor:
    columns = torch.cat(
        [contrast_of(X[:, c].T.contiguous(), "kurtosis") for c in chunks(X.shape[1], len(X), max_elements)]
    )
    rotated = projection_contrast(X, subsets.bases.reshape(-1, X.shape[1]).to(X.dtype), "kurtosis", max_elements)
    return torch.cat([columns[subsets.indices].mean(1), rotated.reshape(subsets.n_rotated, subsets.size).mean(1)])


def nearest_neighbours(X: torch.Tensor, k: int) -> torch.Tensor:
    """Rows of the k nearest *other* points of each row of X (n, m), by Euclidean distance; (n, k) int64."""
    k = whole("k", k, 1, len(X) - 1)
    nearest = []
    for rows in chunks(len(X), len(X)):
        distance = torch.cdist(X[rows], X, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(rows.start, rows.stop, device=X.device)
        distance[torch.arange(len(own), device=X.device), own] = torch.inf  # by index: duplicates stay in
        nearest.append(distance.topk(k, dim=1, largest=False).indices)
    return torch.cat(nearest)


class Consistency(NamedTuple):
    """kNN label consistency: `share` beside its `chance_mean` and `chance_upper` (95 % point), in [0, 1]."""

    share: float
    chance_mean: float
    chance_upper: float


def knn_label_consistency(
    X: torch.Tensor | np.ndarray,
    y: np.ndarray,
    k: int = 10,
    groups: np.ndarray | None = None,
    n_permutations: int = 99,
    random_state: int = 0,
) -> Consistency:
    """Share of the k nearest other points of X (n, d) that bear the same label y (n,), beside its value by chance.

    Chance is that of `n_permutations` permutations of the labels, by group where groups (n,) are given (see
    `nulls.permute_labels`). ValueError if y is of another length or holds one class, or k is outside [1, n - 1].
    """
    X = scaled(as_matrix(X))
    y = check_labels(y, len(X))
    n_permutations = whole("n_permutations", n_permutations)
    rng = np.random.RandomState(whole("random_state", random_state, 0, MAX_SEED))
    neighbours = nearest_neighbours(X, k).cpu().numpy()
    codes = np.unique(y, return_inverse=True)[1]
    draws = []
    for _ in range(n_permutations):
        permuted = permute_labels(codes, groups, rng)
        draws.append((permuted[neighbours] == permuted[:, None]).mean())
    share = (codes[neighbours] == codes[:, None]).mean()
    return Consistency(float(share), *map(float, chance_level(draws)))


def _knn(X: torch.Tensor, subsets: Subsets, y: np.ndarray, k: int) -> torch.Tensor:
    codes = torch.as_tensor(np.unique(check_labels(y, len(X)), return_inverse=True)[1], device=X.device)
    shares = []
    for i in range(len(subsets)):  # n^2 distances each: nothing is gained by batching over subsets
        same = codes[nearest_neighbours(subsets.restrict(X, i), k)] == codes[:, None]
        shares.append(same.to(torch.float64).mean())
    return torch.stack(shares)


def subset_scores(
    X: torch.Tensor,
    subsets: Subsets,
    score: str = "kurtosis",
    y: np.ndarray | None = None,
    k: int = 10,
    max_elements: int = MAX_ELEMENTS,
    principal: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Score every subset of the columns of X (n, d): (h,) float64.

    "kurtosis", "logcosh", "skew": contrast of the projection on the subset's first principal direction (see
    `contrast_of`; skew in absolute value). "coordinate_kurtosis": mean excess kurtosis of the subset's m coordinates.
    "variance_ratio": share of the subset's variance on its first principal direction. With labels y (n,): "separation",
    S = BV / WV (Lu & Gweon 2025), and "knn_label_consistency", of k neighbours.

    `principal` is what `principal_directions` gives, where it is known already; `max_elements` bounds a temporary
    array. ValueError for an unknown score, or a labelled one without labels, or labels that do not fit.
    """
    one_of("score", score, SCORES)
    subsets = subsets.to(X.device)
    if score in LABELLED_SCORES:
        if y is None:
            raise ValueError(f"score={score!r} needs labels; give y")
        if score == "knn_label_consistency":
            return _knn(X, subsets, y, k)
        return _ratio(*(_over_subsets(scatter, subsets) for scatter in scatter_matrices(X, y)))
    if score == "coordinate_kurtosis":
        return _coordinate_kurtosis(X, subsets, max_elements)
    moments = None
    if principal is None:
        mean, cov = covariance(X, max_elements)
        principal = principal_directions(cov, subsets, max_elements)
        moments = mean, (cov.diagonal() + mean.square()).sqrt()
    if score == "variance_ratio":
        return principal[1]
    value = projection_contrast(X, principal[0].to(X.dtype), score, max_elements, moments)
    return value.abs() if score == "skew" else value  # the sign of a principal direction means nothing
