"""Moments of the data and scores of subsets, with and without labels, in blocks that bound memory."""

from __future__ import annotations

import numpy as np
import torch

from rkcnn_lib.probe.inputs import LABELLED_SCORES, SCORES
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import MAX_ELEMENTS, chunks, one_of

CACHE_ELEMENTS = 2**21  # what a CPU's cache holds
SYMMETRIC_BLOCK = 128  # columns of a covariance taken at once
N_NEAREST = 10  # whose labels "knn_label_consistency" compares
_LOGCOSH_OF_GAUSSIAN = 0.37456720749143805  # E log cosh(v), v standard normal


def block_size(X: torch.Tensor) -> int:
    """Largest temporary array for elementwise work on X's device."""
    return MAX_ELEMENTS if X.is_cuda else CACHE_ELEMENTS


def column_moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and root mean square of the columns of X (n, d), both (d,) float64."""
    sums = torch.zeros(2, X.shape[1], dtype=torch.float64, device=X.device)
    for rows in chunks(len(X), X.shape[1], block_size(X)):
        sums[0] += X[rows].sum(0)
        sums[1] += torch.linalg.vector_norm(X[rows], dim=0).to(torch.float64).square()
    return sums[0] / len(X), (sums[1] / len(X)).sqrt()


def covariance(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and covariance (d, d) of the rows of X (n, d), divided by n, accumulated in float64.

    Products of a block of rows are taken in X's own precision: an entry's relative error is about 1e-6 of ``sd_i sd_j``
    in float32, at a third of the time.
    """
    n, d = X.shape
    mean, _ = column_moments(X)
    total = torch.zeros(d, d, dtype=torch.float64, device=X.device)
    for rows in chunks(n, d, min(MAX_ELEMENTS, 4 * block_size(X))):
        part = X[rows] - mean.to(X.dtype)
        for columns in chunks(d, 1, SYMMETRIC_BLOCK):  # the upper triangle is enough
            total[columns, columns.start :] += part[:, columns].T @ part[:, columns.start :]
    return mean, (total.triu() + total.triu(1).T) / n


def projection_contrast(
    X: torch.Tensor,
    filters: torch.Tensor,
    contrast: str = "kurtosis",
    moments: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Contrast of the projections of X (n, d) on each filter (s, d): 0 for a Gaussian and for constants; (s,) float64.

    "kurtosis": excess kurtosis m4 / m2^2 - 3. "skew": m3 / m2^1.5, positive for a heavy right tail. "logcosh":
    E log cosh(v) - E log cosh(p) with v standard normal and p standardised, positive for heavy tails, in which no row
    weighs more than linearly (Hyvarinen 1999). ``moments`` are X's `column_moments`, where they are known already.
    """
    if contrast == "logcosh":  # standardised before the sum, which needs whole columns at a time
        parts = [_log_cosh(filters[s] @ X.T) for s in chunks(len(filters), len(X), block_size(X))]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=X.device)
    power = 4 if contrast == "kurtosis" else 3
    mean, size = moments or column_moments(X)
    # An upper bound on each projection's standard deviation, so that no power overflows; it cancels in the ratio.
    bound = (filters.abs() @ size.to(X.dtype)).clamp_min(torch.finfo(X.dtype).tiny)
    scaled = (filters / bound[:, None]).T.contiguous()
    offset = mean.to(X.dtype) @ scaled
    second, higher = torch.zeros(2, len(filters), dtype=torch.float64, device=X.device)
    for rows in chunks(len(X), len(filters), block_size(X)):
        P = torch.addmm(-offset, X[rows], scaled)
        squares = P.square()
        second += squares.sum(0)
        higher += (squares.square_() if power == 4 else squares.mul_(P)).sum(0)
    second, higher = second / len(X), higher / len(X)
    flat = second.sqrt() <= 10 * torch.finfo(X.dtype).eps * offset.abs()  # what is left is rounding
    value = higher / second.masked_fill(flat, 1.0) ** (power / 2) - (3.0 if power == 4 else 0.0)
    return value.masked_fill(flat, 0.0)


def _standardised(P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of P (s, n) at mean 0 and variance 1, and which (s,) are constant but for rounding."""
    # Sums along the contiguous axis are pairwise in float32: exact to about 1e-6, several times faster than float64.
    mean = P.mean(1, keepdim=True)
    P = P - mean
    scale = P.norm(dim=1, keepdim=True) / P.shape[1] ** 0.5
    flat = scale <= 10 * torch.finfo(P.dtype).eps * mean.abs()
    return P / scale.masked_fill(flat, 1.0), flat[:, 0]


def _log_cosh(P: torch.Tensor) -> torch.Tensor:
    P, flat = _standardised(P)
    size = P.abs()  # log cosh p = |p| + log(1 + exp(-2|p|)) - log 2, which cannot overflow
    log_cosh = size + torch.nn.functional.softplus(-2 * size) - np.log(2.0)
    return (_LOGCOSH_OF_GAUSSIAN - log_cosh.mean(1).to(torch.float64)).masked_fill(flat, 0.0)


def _kurtosis(P: torch.Tensor) -> torch.Tensor:
    P, flat = _standardised(P)
    return (P.square().square_().mean(1).to(torch.float64) - 3.0).masked_fill(flat, 0.0)


def _coordinate_kurtosis(X: torch.Tensor, subsets: Subsets) -> torch.Tensor:
    columns = torch.cat([_kurtosis(X[:, c].T.contiguous()) for c in chunks(X.shape[1], len(X))])
    rotated = projection_contrast(X, subsets.bases.reshape(-1, X.shape[1]).to(X.dtype))
    return torch.cat([columns[subsets.indices].mean(1), rotated.reshape(subsets.n_rotated, subsets.size).mean(1)])


def principal_directions(cov: torch.Tensor, subsets: Subsets) -> tuple[torch.Tensor, torch.Tensor]:
    """First principal direction (h, d) of each subset by the covariance (d, d), padded with zeros, and its share (h,).

    Unit rows, float64; the sign makes the largest entry positive. The share of the subset's variance on the direction
    is in [1/m, 1]; 0 where nothing varies.
    """
    m, d = subsets.size, subsets.d
    directions, shares = [], []
    for s in chunks(subsets.n_coordinate, m * m):
        idx = subsets.indices[s]
        values, vectors = torch.linalg.eigh(cov[idx[:, :, None], idx[:, None, :]])
        directions.append(cov.new_zeros(len(idx), d).scatter_(1, idx, vectors[:, :, -1]))
        shares.append(values[:, -1] / values.sum(1))
    for s in chunks(subsets.n_rotated, m * d):
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
    codes = torch.as_tensor(np.unique(y, return_inverse=True)[1], device=X.device)
    sizes, grand = torch.bincount(codes), X.mean(0, dtype=torch.float64)
    sums = torch.zeros(len(sizes), X.shape[1], dtype=torch.float64, device=X.device)
    means = sums.index_add_(0, codes, X.to(torch.float64)) / sizes[:, None] - grand  # centred on the grand mean
    between = means.T @ means / (len(sizes) - 1)
    weight = 1.0 / ((sizes - 1).clamp_min(1) * len(sizes)).to(torch.float64)
    within = torch.zeros_like(between)
    for rows in chunks(len(X), X.shape[1]):
        residual = X[rows].to(torch.float64) - grand - means[codes[rows]]
        within += (residual * weight[codes[rows], None]).T @ residual
    return between, within


def _separation(X: torch.Tensor, subsets: Subsets, y: np.ndarray) -> torch.Tensor:
    """BV / WV: infinite when classes differ without any spread, 0 when nothing differs."""
    between, within = (_traces(scatter, subsets) for scatter in scatter_matrices(X, y))
    return torch.where(between > 0, between / within.clamp_min(0), 0.0)


def _traces(matrix: torch.Tensor, subsets: Subsets) -> torch.Tensor:
    """Trace of a (d, d) matrix within each subset, (h,)."""
    traces = [matrix.diagonal()[subsets.indices].sum(1)]
    for s in chunks(subsets.n_rotated, subsets.size * subsets.d):
        bases = subsets.bases[s].to(matrix.dtype)
        traces.append(((bases @ matrix) * bases).sum((1, 2)))
    return torch.cat(traces)


def _nearest(X: torch.Tensor) -> torch.Tensor:
    """Rows of the nearest *other* points of each row of X (n, m), by Euclidean distance; (n, N_NEAREST) int64."""
    nearest = []
    for rows in chunks(len(X), len(X)):
        distance = torch.cdist(X[rows], X, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(rows.start, rows.stop, device=X.device)
        distance[torch.arange(len(own), device=X.device), own] = torch.inf  # by index: duplicates stay in
        nearest.append(distance.topk(min(N_NEAREST, len(X) - 1), dim=1, largest=False).indices)
    return torch.cat(nearest)


def _knn_label_consistency(X: torch.Tensor, subsets: Subsets, y: np.ndarray) -> torch.Tensor:
    codes = torch.as_tensor(np.unique(y, return_inverse=True)[1], device=X.device)
    # n^2 distances each: nothing is gained by batching over subsets
    same = (codes[_nearest(subsets.restrict(X, i))] == codes[:, None] for i in range(len(subsets)))
    return torch.stack([hits.to(torch.float64).mean() for hits in same])


def subset_scores(
    X: torch.Tensor,
    subsets: Subsets,
    score: str = "kurtosis",
    y: np.ndarray | None = None,
    principal: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Score every subset of the columns of X (n, d): (h,) float64.

    "kurtosis", "logcosh", "skew": contrast of the projection on the subset's first principal direction (see
    `projection_contrast`; skew in absolute value). "coordinate_kurtosis": mean excess kurtosis of the subset's m
    coordinates. "variance_ratio": share of the subset's variance on its first principal direction. With labels y (n,)
    of two classes or more: "separation", S = BV / WV (Lu & Gweon 2025), and "knn_label_consistency", the share of the
    10 nearest other points that bear the same label. `principal` is what `principal_directions` gives, where known.
    """
    one_of("score", score, SCORES)
    subsets = subsets.to(X.device)
    if score in LABELLED_SCORES:
        return (_separation if score == "separation" else _knn_label_consistency)(X, subsets, np.asarray(y))
    if score == "coordinate_kurtosis":
        return _coordinate_kurtosis(X, subsets)
    moments = None
    if principal is None:
        mean, cov = covariance(X)
        principal = principal_directions(cov, subsets)
        moments = mean, (cov.diagonal() + mean.square()).sqrt()
    if score == "variance_ratio":
        return principal[1]
    value = projection_contrast(X, principal[0].to(X.dtype), score, moments)
    return value.abs() if score == "skew" else value  # the sign of a principal direction means nothing
