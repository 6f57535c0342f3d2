"""Moments of the data, blockwise: means, covariance, and contrasts of many projections by one product each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rkcnn_lib.tensors import one_of

MAX_ELEMENTS = 2**25  # numbers held in one temporary array: 128 MiB of float32
CACHE_ELEMENTS = 2**21
SYMMETRIC_BLOCK = 128  # columns of a covariance taken at once
CONTRASTS = ("kurtosis", "logcosh", "skew")
_LOGCOSH_OF_GAUSSIAN = 0.37456720749143805  # E log cosh(v), v standard normal


def chunks(n: int, elements_each: int, max_elements: int = MAX_ELEMENTS) -> Iterator[slice]:
    """Slices of range(n) such that slice length * elements_each stays within max_elements (at least 1)."""
    step = max(1, max_elements // max(1, elements_each))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def column_moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and root mean square of the columns of X (n, d), both (d,) float64; summed in blocks that fit the cache."""
    sums = torch.zeros(2, X.shape[1], dtype=torch.float64, device=X.device)
    for rows in chunks(len(X), X.shape[1], block_size(X, MAX_ELEMENTS)):
        sums[0] += X[rows].sum(0)
        sums[1] += torch.linalg.vector_norm(X[rows], dim=0).to(torch.float64).square()
    return sums[0] / len(X), (sums[1] / len(X)).sqrt()


def covariance(X: torch.Tensor, max_elements: int = MAX_ELEMENTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and covariance (d, d) of the rows of X (n, d), divided by n, accumulated in float64.

    Products of a block of rows are taken in X's own precision: an entry's relative error is about 1e-6 of ``sd_i sd_j``
    in float32, at a third of the time.
    """
    n, d = X.shape
    mean, _ = column_moments(X)
    total = torch.zeros(d, d, dtype=torch.float64, device=X.device)
    for rows in chunks(n, d, block_size(X, max_elements, CACHE_ELEMENTS * 4)):
        part = X[rows] - mean.to(X.dtype)
        for columns in chunks(d, 1, SYMMETRIC_BLOCK):  # the upper triangle is enough
            total[columns, columns.start :] += part[:, columns].T @ part[:, columns.start :]
    return mean, (total.triu() + total.triu(1).T) / n


def contrast_of(P: torch.Tensor, contrast: str) -> torch.Tensor:
    """Contrast of each row of projections P (s, n): 0 for a Gaussian, positive for a heavy tail; (s,) float64.

    "kurtosis": excess kurtosis m4 / m2^2 - 3. "skew": m3 / m2^1.5, positive for a heavy right tail.
    "logcosh": E log cosh(v) - E log cosh(p) with v standard normal and p standardised, in which no row weighs
    more than linearly (Hyvarinen 1999). A constant row scores 0.
    """
    # Sums along the contiguous axis are pairwise in float32: exact to about 1e-6, several times faster than float64.
    mean = P.mean(1, keepdim=True)
    P = P - mean
    scale = P.norm(dim=1, keepdim=True) / P.shape[1] ** 0.5
    flat = scale <= 10 * torch.finfo(P.dtype).eps * mean.abs()  # what is left is rounding
    P = P / scale.masked_fill(flat, 1.0)  # before taking powers: no overflow, no underflow
    if contrast == "kurtosis":
        value = P.square().square_().mean(1).to(torch.float64) - 3.0
    elif contrast == "skew":
        value = (P.square() * P).mean(1).to(torch.float64)
    else:  # log cosh p = |p| + log(1 + exp(-2|p|)) - log 2, which cannot overflow
        size = P.abs()
        log_cosh = size + torch.nn.functional.softplus(-2 * size) - np.log(2.0)
        value = _LOGCOSH_OF_GAUSSIAN - log_cosh.mean(1).to(torch.float64)
    return value.masked_fill(flat[:, 0], 0.0)


def block_size(X: torch.Tensor, max_elements: int, in_cache: int = CACHE_ELEMENTS) -> int:
    """Largest temporary array for elementwise work on X's device: on a CPU what its cache holds."""
    return max_elements if X.is_cuda else min(max_elements, in_cache)


def projection_contrast(
    X: torch.Tensor,
    filters: torch.Tensor,
    contrast: str = "kurtosis",
    max_elements: int = MAX_ELEMENTS,
    moments: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Contrast of the projections of X (n, d) on each filter (s, d); (s,) float64. See `contrast_of`.

    ``moments`` are what `column_moments` gives for X, where it is known already.
    """
    one_of("contrast", contrast, CONTRASTS)
    if contrast == "logcosh":  # standardised before the sum, which needs whole columns at a time
        size = block_size(X, max_elements)
        parts = [contrast_of(filters[s] @ X.T, contrast) for s in chunks(len(filters), len(X), size)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=X.device)
    return _moment_contrast(X, filters, 4 if contrast == "kurtosis" else 3, max_elements, moments or column_moments(X))


def _moment_contrast(
    X: torch.Tensor, filters: torch.Tensor, power: int, max_elements: int, moments: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """m_p / m_2^(p/2) of each projection (minus 3 for the fourth), by sums over blocks of rows: one product in all."""
    mean, size = moments
    # An upper bound on each projection's standard deviation, so that no power overflows; it cancels in the ratio.
    bound = (filters.abs() @ size.to(X.dtype)).clamp_min(torch.finfo(X.dtype).tiny)
    scaled = (filters / bound[:, None]).T.contiguous()
    offset = mean.to(X.dtype) @ scaled
    second, higher = torch.zeros(2, len(filters), dtype=torch.float64, device=X.device)
    for rows in chunks(len(X), max(1, len(filters)), block_size(X, max_elements)):
        P = torch.addmm(-offset, X[rows], scaled)
        squares = P.square()
        second += squares.sum(0)
        higher += (squares.square_() if power == 4 else squares.mul_(P)).sum(0)
    second, higher = second / len(X), higher / len(X)
    flat = second.sqrt() <= 10 * torch.finfo(X.dtype).eps * offset.abs()  # what is left is rounding
    value = higher / second.masked_fill(flat, 1.0) ** (power / 2) - (3.0 if power == 4 else 0.0)
    return value.masked_fill(flat, 0.0)
