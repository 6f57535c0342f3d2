"""Null worlds: surrogate data, labels permuted by group, and thresholds from the maximum statistic."""

from __future__ import annotations

import numpy as np
import torch

from rkcnn_lib.probe.inputs import check_random_state, one_a_row
from rkcnn_lib.probe.parameters import SURROGATES
from rkcnn_lib.tensors import MAX_SEED, as_matrix, exponent, number, one_of, whole


class Surrogate:
    """Draws data that share the mean and covariance of X (n, d) but hold no features; `kind`: "gaussian", "elliptical".

    "gaussian": multivariate normal. "elliptical": uniform random directions in the whitened space, each row keeping its
    own Mahalanobis norm. The Mahalanobis norm, not the plain one, is kept: only then is the surrogate elliptical with
    X's covariance and X's heavy tails at once. Against it, a direction scores only if its tail is heavier than loud
    rows alone explain. A few rows so loud that they make up the sample covariance (150 rows with log-normal norms of
    sigma 1) leave this null too liberal; drop or normalise such rows.
    """

    def __init__(self, X: torch.Tensor, kind: str = "elliptical") -> None:
        one_of("kind", kind, SURROGATES)
        X = as_matrix(X)
        self.unit = 2.0 ** exponent(X)
        wide = X.to(torch.float64) / self.unit
        self.mean = wide.mean(0)
        centred = wide - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(X))
        positive = values > values[-1].clamp_min(0) * 1e-10  # null directions carry no variance: leave them out
        values, vectors = values[positive], vectors[:, positive]
        self.factor = (vectors * values.sqrt()).T  # (rank, d): white noise @ factor has X's covariance
        self.norms = None
        if kind == "elliptical":
            self.norms = (centred @ (vectors * values.rsqrt())).norm(dim=1).to(X.dtype)
        self.n, self.dtype = len(X), X.dtype

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """One surrogate data set, (n, d), on the device of X (which the generator must share)."""
        factor = self.factor.to(self.dtype)
        white = torch.randn(self.n, len(factor), generator=generator, device=factor.device, dtype=self.dtype)
        if self.norms is not None:
            white *= (self.norms / white.norm(dim=1).clamp_min(1e-12))[:, None]
        return (white @ factor + self.mean.to(self.dtype)) * self.unit


def surrogate(X: torch.Tensor, kind: str = "elliptical", random_state: int = 0) -> torch.Tensor:
    """One surrogate of X (n, d); see `Surrogate`."""
    X = as_matrix(X)
    generator = torch.Generator(device=X.device).manual_seed(whole("random_state", random_state, 0, MAX_SEED))
    return Surrogate(X, kind).draw(generator)


def permute_labels(
    y: np.ndarray,
    groups: np.ndarray | None = None,
    random_state: int | np.random.RandomState | None = 0,
) -> np.ndarray:
    """Labels (n,) shuffled so that what belongs together (a group, usually a document) stays together.

    Without groups (n,) rows are permuted. With groups, and one label within each, the groups swap their labels. With
    labels that vary within groups, whole groups' label sequences are laid out in random group order, so that runs of
    equal labels survive (the multiset of labels is kept exactly).
    """
    rng = check_random_state(random_state)
    y = np.asarray(y)
    if groups is None:
        return rng.permutation(y)
    names, group = np.unique(one_a_row(groups, len(y), "groups"), return_inverse=True)
    order = np.argsort(group, kind="stable")
    blocks = np.split(y[order], np.cumsum(np.bincount(group))[:-1])
    if all((block == block[0]).all() for block in blocks):
        return np.array([block[0] for block in blocks])[rng.permutation(len(names))][group]
    permuted = np.empty_like(y)
    permuted[order] = np.concatenate([blocks[i] for i in rng.permutation(len(names))])
    return permuted


def max_statistic_threshold(maxima: np.ndarray, level: float = 0.95) -> float:
    """Threshold that the largest score of a search on null data exceeds with probability 1 - level.

    The ceil((B + 1) level)-th smallest of B maxima: exact for exchangeable maxima (Westfall & Young 1993), for example
    the 95th of 99. ValueError for too few maxima (fewer than 19 at 0.95), or NaN.
    """
    number("level", level, "(0, 1)")
    maxima = np.sort(np.asarray(maxima, dtype=np.float64))
    if np.isnan(maxima).any():
        raise ValueError("maxima hold NaN")
    rank = int(np.ceil((len(maxima) + 1) * level - 1e-9))
    if rank > len(maxima):
        raise ValueError(f"{len(maxima)} maxima cannot give a {level:.0%} threshold; draw more surrogates")
    return float(maxima[rank - 1])
