"""Null worlds, surrogate data and permuted labels, and the threshold that a search on them seldom exceeds."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from rkcnn_lib.probe.inputs import SURROGATES, Found, SearchOptions, check_random_state, one_a_row
from rkcnn_lib.probe.lift import whiten
from rkcnn_lib.probe.search import direction_scores, search
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import MAX_SEED, as_matrix, exponent, one_of, whole

N_SURROGATES = 99  # a 95 % threshold takes as many


class Surrogate:
    """Draws data that share the mean and covariance of X (n, d) but hold no features; `kind`: "gaussian", "elliptical".

    "gaussian": multivariate normal. "elliptical": uniform random directions in the whitened space, each row keeping its
    own Mahalanobis norm: X's covariance and X's heavy tails at once. Against it, a direction scores only if its tail is
    heavier than loud rows alone explain. A few rows so loud that they make up the sample covariance (150 rows with
    log-normal norms of sigma 1) leave this null too liberal; drop or normalise such rows.
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
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    first = y[order[starts]]
    if (first[group] == y).all():
        return first[rng.permutation(len(names))][group]
    blocks = np.split(y[order], starts[1:])
    permuted = np.empty_like(y)
    permuted[order] = np.concatenate([blocks[i] for i in rng.permutation(len(names))])
    return permuted


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


@dataclass(frozen=True)
class Halves:
    """Rows (n, d) with labels and groups (n,) or None, and which of them are searched and which are scored on."""

    X: torch.Tensor
    y: np.ndarray | None
    groups: np.ndarray | None
    searched: np.ndarray
    held: np.ndarray

    def search(self, subsets: Subsets, options: SearchOptions) -> Found:
        return search(*self.part(self.searched), subsets, options)

    def score(self, found: Found, options: SearchOptions) -> torch.Tensor:
        """Scores (s,) of what was found, on the other half."""
        return direction_scores(*self.part(self.held), found, options)

    def part(self, rows: np.ndarray) -> tuple[torch.Tensor, np.ndarray | None]:
        every = len(rows) == len(self.X)
        X = self.X if every else self.X[torch.as_tensor(rows, device=self.X.device)]
        return X, None if self.y is None else self.y[rows]


def calibrate(
    data: Halves, subsets: Subsets, options: SearchOptions, found: Found, null: str, full: bool, seed: int
) -> float:
    """Threshold that the largest score of the search on null data exceeds with a probability of 5 %.

    Null data are surrogates of the kind `null`; with labels these are permuted instead, by group where there are
    groups. `full` searches every one of them anew. Otherwise what was found, made up with random directions to the
    number of candidates, is scored again on their held-out half.
    """
    candidates = None if full else _with_random_fill(data, found, options, seed)
    generator = torch.Generator(device=data.X.device).manual_seed(seed)
    rng = np.random.RandomState(seed)
    source = Surrogate(data.X, null) if data.y is None else None
    maxima = []
    for _ in range(N_SURROGATES):
        X = source.draw(generator) if source else data.X
        y = None if data.y is None else permute_labels(data.y, data.groups, rng)
        nothing = replace(data, X=X, y=y)
        scores = nothing.score(candidates or nothing.search(subsets, options), options)
        maxima.append(float(scores.max()) if len(scores) else 0.0)
    # The 95th of 99: exact for exchangeable maxima (Westfall & Young 1993).
    return sorted(maxima)[round(0.95 * (N_SURROGATES + 1)) - 1]


def _with_random_fill(data: Halves, found: Found, options: SearchOptions, seed: int) -> Found:
    """The directions found and random ones, as many together as there were candidates (at least r)."""
    n_candidates = sum(row["candidates"] for row in found.funnel)
    n_fill = max(0, max(n_candidates, options.n_directions) - len(found.filters))
    rng = np.random.RandomState(seed)
    noise = torch.as_tensor(rng.standard_normal((n_fill, data.X.shape[1])), device=data.X.device)
    filters = torch.cat([found.filters, whiten(data.part(data.searched)[0]).filters(noise)])
    targets = None if found.targets is None else np.concatenate([found.targets, rng.choice(found.targets, n_fill)])
    return Found(filters, filters, found.funnel, targets)
