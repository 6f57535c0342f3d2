"""Local neighbours: RkCNN without labels, whose classes are the neighbours that a random subset finds.

A subset picks a random anchor row and its k nearest neighbours *within the subset*: a pseudo-class. The subset is
scored by how well that class separates in the complementary coordinates, which the choice did not see. It is lifted to
the full space by the mean of its class and a few mean-shift steps. In superposition this finds features where contrasts
are blind: a sum of a few one-sided features has rows close to each feature alone, even when the projection on it is no
more kurtotic than on any other direction (a pentagon in the plane). Anchors of a round are drawn apart from each other
and mean shifts are few: with five, 2,560 starts fell into some 160 basins, and nothing was left to select from.
"""

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import SearchOptions
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import chunks, geometric_median

MAX_ROWS = 16384  # rows among which a subset looks for neighbours
BLOCK = 256  # directions compared among themselves at once


class NeighbourLift:
    """Directions live on the sphere of centred rows; see `lift.ContrastLift` for what each method gives.

    `rows` (at most MAX_ROWS, d), drawn at random, seen from the origin and of norm 1, are what directions are to
    explain. `origin` (d,) is the geometric median: with rare features that is where none is active. From the mean, rows
    of one feature do not lie on one ray.
    """

    def __init__(self, X: torch.Tensor, options: SearchOptions) -> None:
        self.options = options
        self.rng = np.random.RandomState(options.seed)
        sample = torch.as_tensor(np.sort(self.rng.permutation(len(X))[:MAX_ROWS]), device=X.device)
        self.origin = geometric_median(X[sample])
        self.rows = unit(X[sample] - self.origin)

    def propose(self, residual: torch.Tensor, subsets: Subsets) -> tuple[torch.Tensor, torch.Tensor]:
        T, k = unit(residual), min(self.options.n_neighbours, len(residual))
        anchors = draw_anchors(residual, len(subsets), self.rng, self.options.merge_cosine)
        _, means, scores = pseudo_classes(T, subsets, anchors, k)
        return scores, mean_shift(T, normalize(means, dim=1), k, self.options.n_shifts)

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def patterns(self, U: torch.Tensor) -> torch.Tensor:
        return U

    def oriented(self, D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return D, D


def pseudo_classes(
    T: torch.Tensor, subsets: Subsets, anchors: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each subset's k rows of T (n, d) nearest to its anchor (h, k), their means (h, d) and their separation (h,).

    `anchors` (h,) int64 are the rows around which subsets look, k in [2, n]. The separation is ``S = ||mean_c||^2 /
    mean_i ||x_i - mean_c||^2`` over the class, in the complement of the subset's span (RkCNN's BV / WV for one class
    against a rest whose mean is 0).
    """
    parts = []
    squares = T.square()
    for part in chunks(len(subsets), len(T) + k * T.shape[1] + subsets.size * T.shape[1]):
        near = _nearest(T, squares, subsets, part, anchors[part], k)  # (c, k)
        rows = T[near]  # (c, k, d)
        seen = subsets.restrict_each(rows, part)  # (c, k, m)
        mean = rows.mean(1)
        # Lengths in the complement: full length less the part in the subset, whose basis is orthonormal.
        between = mean.square().sum(1) - seen.mean(1).square().sum(1)
        within = (rows.square().sum(2) - seen.square().sum(2)).mean(1) - between
        parts.append((near, mean, between.clamp_min(0.0) / within.clamp_min(torch.finfo(T.dtype).eps)))
    rows, means, scores = map(torch.cat, zip(*parts, strict=True))
    return rows, means, scores.double()


def _nearest(
    T: torch.Tensor, squares: torch.Tensor, subsets: Subsets, part: slice, anchors: torch.Tensor, k: int
) -> torch.Tensor:
    """The k rows nearest to each anchor within its subset, (c, k).

    ``||x_S||^2 - 2 x_S . a_S`` orders rows as the distance does. With a coordinate subset as a 0/1 row both terms are
    one matrix product for all subsets at once.
    """
    middle = min(max(part.start, subsets.n_coordinate), part.stop)
    coordinate, rotated = slice(part.start, middle), slice(middle, part.stop)
    order = T.new_empty(part.stop - part.start, len(T))
    n_coordinate = middle - part.start
    if n_coordinate:
        inside = T.new_zeros(n_coordinate, T.shape[1]).scatter_(1, subsets.indices[coordinate], 1.0)
        torch.addmm(inside @ squares.T, inside * T[anchors[:n_coordinate]], T.T, alpha=-2.0, out=order[:n_coordinate])
    for row, i in enumerate(range(rotated.start, rotated.stop), start=n_coordinate):
        P = subsets.restrict(T, i)
        order[row] = (P - P[anchors[row]]).square().sum(1)
    return order.topk(k, dim=1, largest=False).indices


def mean_shift(T: torch.Tensor, U: torch.Tensor, k: int, n_steps: int) -> torch.Tensor:
    """Move each unit direction (s, d) to the mean of the k unit rows of T (n, d) nearest to it, ``n_steps`` times."""
    moved = []
    for part in chunks(len(U), len(T)):
        u = U[part]
        for _ in range(n_steps):
            u = normalize(T[(u @ T.T).topk(k, dim=1).indices].mean(1), dim=1)
        moved.append(u)
    return torch.cat(moved) if moved else U


def unit(X: torch.Tensor) -> torch.Tensor:
    """Rows of X (n, d) at norm 1; those shorter than a thousandth of the root mean square have no direction: zero."""
    norms = X.norm(dim=1, keepdim=True)
    short = norms <= 1e-3 * norms.square().mean().sqrt()
    return (X / norms.masked_fill(short, 1.0)).masked_fill_(short, 0.0)


def concentration(X: torch.Tensor, U: torch.Tensor, k: int) -> torch.Tensor:
    """Mean cosine of each unit direction (s, d) with its k nearest rows of X (n, d) seen from their median; (s,)."""
    T = unit(X - geometric_median(X))
    k = min(k, len(T))
    parts = [(U[p].to(T) @ T.T).topk(k, dim=1).values.mean(1) for p in chunks(len(U), len(T))]
    return torch.cat(parts).double() if parts else T.new_zeros(0, dtype=torch.float64)


def draw_anchors(T: torch.Tensor, n: int, rng: np.random.RandomState, cosine: float = 1.0) -> torch.Tensor:
    """Draw n rows with probability proportional to their squared length: of a residual, those still unexplained.

    Rows within a cosine of one drawn before are passed over for as long as there are others (cosine 1: none are).
    """
    weight = T.square().sum(1).double().cpu().numpy()
    if weight.sum() <= 0:
        return torch.as_tensor(rng.randint(0, len(T), n), device=T.device)
    # Efraimidis & Spirakis 2006: the largest of log(u) / w are a weighted draw without replacement, in its order.
    key = np.log(rng.random_sample(len(T))) / np.where(weight > 0, weight, np.nan)
    drawn = torch.as_tensor(np.flatnonzero(weight > 0), device=T.device)
    keys = torch.as_tensor(key[weight > 0], device=T.device)
    apart = drawn[distinct(unit(T[drawn]), keys, cosine, n)]
    again = rng.choice(len(T), n - len(apart), p=weight / weight.sum())
    return torch.cat([apart, torch.as_tensor(again, dtype=apart.dtype, device=T.device)])


def distinct(
    directions: torch.Tensor, scores: torch.Tensor, cosine: float = 0.9, limit: int | None = None
) -> torch.Tensor:
    """Rows to keep so that no kept pair of unit directions (s, d) has a signed cosine above `cosine`.

    Greedy: the best score first, everything near it merged into it. Returns indices, best first, `limit` at most.
    """
    limit = len(directions) if limit is None else limit
    kept = scores.argsort(descending=True, stable=True)[:0]
    for block in scores.argsort(descending=True, stable=True).split(BLOCK):
        near = directions[block] @ directions[kept].T > cosine
        block = block[~near.any(1)]
        close = (directions[block] @ directions[block].T > cosine).cpu().numpy()
        merged = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not merged[i]:
                merged[i + 1 :] |= close[i, i + 1 :]
        kept = torch.cat([kept, block[torch.as_tensor(~merged, device=block.device)]])
        if len(kept) >= limit:
            break
    return kept[:limit]
