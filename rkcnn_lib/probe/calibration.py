"""Calibration: the threshold that the best direction of the same search on null data seldom exceeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rkcnn_lib.probe.found import Found, SearchOptions
from rkcnn_lib.probe.lift import whiten
from rkcnn_lib.probe.nulls import Surrogate, max_statistic_threshold, permute_labels
from rkcnn_lib.probe.search import direction_scores, search
from rkcnn_lib.probe.subsets import Subsets


@dataclass(frozen=True)
class Halves:
    """Rows (n, d) with labels and groups (n,) or None, and which of them are searched and which are scored on."""

    X: torch.Tensor
    y: np.ndarray | None
    groups: np.ndarray | None
    searched: np.ndarray
    held: np.ndarray

    def search(self, subsets: Subsets, options: SearchOptions, X: torch.Tensor, y: np.ndarray | None) -> Found:
        """Search the first half of X, which is the data or a null draw of it."""
        return search(X[self._index(self.searched)], subsets, options, None if y is None else y[self.searched])

    def score(self, found: Found, options: SearchOptions, X: torch.Tensor, y: np.ndarray | None) -> torch.Tensor:
        """Scores (s,) of what was found on the other half of X."""
        labels = None if y is None else y[self.held]
        return direction_scores(X[self._index(self.held)], found.filters, options, labels, found.targets)

    def _index(self, rows: np.ndarray) -> torch.Tensor | slice:
        return slice(None) if len(rows) == len(self.X) else torch.as_tensor(rows, device=self.X.device)


@dataclass(frozen=True)
class Calibration:
    """A threshold, the maxima behind it, and whether they come from the "full" search or from "rescored" finds."""

    threshold: float
    maxima: np.ndarray
    mode: str


def calibrate(
    data: Halves,
    subsets: Subsets,
    options: SearchOptions,
    found: Found,
    null: str,
    n_surrogates: int,
    full: bool,
    seed: int,
) -> Calibration:
    """Threshold at the 95 % point of the maximum score of the search on null data.

    Parameters
    ----------
    data, subsets, options, found
        The search on the data and what it found.
    null : str
        Kind of surrogate; with labels they are permuted instead, by group where there are groups.
    n_surrogates : int
    full : bool
        Search every surrogate anew. Otherwise the directions found, made up with random ones to the number of
        candidates, are re-scored on the surrogates' held-out half.
    seed : int
    """
    X, y = data.X, data.y
    candidates = None if full else _with_random_fill(data, found, options, seed)
    generator = torch.Generator(device=X.device).manual_seed(seed)
    rng = np.random.RandomState(seed)
    source = Surrogate(X, null) if y is None else None
    maxima = []
    for _ in range(n_surrogates):
        null_X = source.draw(generator) if source else X
        null_y = None if y is None else permute_labels(y, data.groups, rng)
        scored = data.search(subsets, options, null_X, null_y) if candidates is None else candidates
        scores = data.score(scored, options, null_X, null_y)
        maxima.append(float(scores.max()) if len(scores) else 0.0)
    return Calibration(max_statistic_threshold(np.array(maxima)), np.array(maxima), "full" if full else "rescored")


def _with_random_fill(data: Halves, found: Found, options: SearchOptions, seed: int) -> Found:
    """The directions found and random ones, as many together as there were candidates (at least r)."""
    n_candidates = sum(row["candidates"] for row in found.funnel)
    n_fill = max(0, max(n_candidates, options.n_directions) - len(found.filters))
    rng = np.random.RandomState(seed)
    noise = torch.as_tensor(rng.standard_normal((n_fill, data.X.shape[1])), device=data.X.device)
    white = whiten(data.X[torch.as_tensor(data.searched, device=data.X.device)], options.shrinkage)
    filters = torch.cat([found.filters, white.filters(noise)])
    targets = None if found.targets is None else np.concatenate([found.targets, rng.choice(found.targets, n_fill)])
    return Found(filters, filters, found.origin, found.funnel, targets)


def split_rows(n: int, y: np.ndarray | None, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of range(n): whole groups where there are groups, else each class in both halves."""
    rng = np.random.RandomState(seed)
    if groups is not None and len(np.unique(groups)) > 1:
        names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        order = rng.permutation(len(names))
        first = np.zeros(len(names), dtype=bool)
        n_first = max(1, int((np.cumsum(sizes[order]) <= n / 2).sum()))
        first[order[:n_first]] = True
        inside = first[group]
    else:
        rank = rng.permutation(n)
        if y is not None:  # rank rows within their class: the search half then holds every class
            codes = np.unique(y, return_inverse=True)[1]
            order = np.lexsort((rank, codes))
            first_of_class = np.searchsorted(codes[order], codes[order])
            rank[order] = np.arange(n) - first_of_class
        inside = rank % 2 == 0
    return np.flatnonzero(inside), np.flatnonzero(~inside)
