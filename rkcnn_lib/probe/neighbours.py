"""Local neighbours: RkCNN without labels, whose classes are the neighbours that a random subset finds.

A subset picks a random anchor row and its k nearest neighbours *within the subset*: a pseudo-class. The subset is
scored by how well that class separates in the complementary coordinates, which the choice did not see (RkCNN's
separation score, with its own cross-validation). The chosen ones are lifted to the full space by the mean of their
class and a few mean-shift steps. In superposition this finds features where contrasts are blind: a sum of a few
one-sided features has rows close to each feature alone, even when the projection on it is no more kurtotic than on
any other direction (a pentagon in the plane).

Rounds: what the directions kept so far explain is taken away by one-sided matching pursuit, and the same subsets,
with new anchors, look at what is left. So a few dense neighbourhoods cannot swallow all starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.scores import MAX_ELEMENTS, chunks
from rkcnn_lib.probe.subsets import Subsets

NEIGHBOURS = "neighbours"
MAX_ROWS = 16384  # rows among which a subset looks for neighbours; the lift sees as many


@dataclass(frozen=True)
class PseudoClasses:
    """What each subset found: mean of its neighbours (h, d) and separation in the complement (h,)."""

    means: torch.Tensor
    scores: torch.Tensor


def pseudo_classes(
    T: torch.Tensor, subsets: Subsets, anchors: torch.Tensor, k: int, max_elements: int = MAX_ELEMENTS
) -> PseudoClasses:
    """Find each subset's k nearest rows to its anchor and score them in the complementary coordinates.

    Parameters
    ----------
    T : (n, d) tensor
        Rows, centred.
    subsets : Subsets
    anchors : (h,) int64 tensor
        Row around which each subset looks.
    k : int in [2, n]

    Returns
    -------
    PseudoClasses
        ``S = ||mean_c||^2 / mean_i ||x_i - mean_c||^2`` over the class, in the complement of the subset's span
        (RkCNN's BV / WV for one class against a rest whose mean is 0).
    """
    means, scores = [], []
    for part in chunks(len(subsets), len(T) * subsets.size, max_elements):
        ids = range(part.start, part.stop)
        near = torch.stack([_nearest(subsets.restrict(T, i), int(anchors[i]), k) for i in ids])  # (c, k)
        rows = T[near]  # (c, k, d)
        bases = torch.stack([subsets.basis(i).to(T) for i in ids])  # (c, m, d)
        seen = rows @ bases.mT  # (c, k, m)
        mean = rows.mean(1)
        # Lengths in the complement: full length less the part in the subset, whose basis is orthonormal.
        between = mean.square().sum(1) - seen.mean(1).square().sum(1)
        within = (rows.square().sum(2) - seen.square().sum(2)).mean(1) - between
        means.append(mean)
        scores.append(between.clamp_min(0.0) / within.clamp_min(torch.finfo(T.dtype).eps))
    return PseudoClasses(torch.cat(means), torch.cat(scores).double())


def _nearest(P: torch.Tensor, anchor: int, k: int) -> torch.Tensor:
    return (P - P[anchor]).square().sum(1).topk(k, largest=False).indices


def mean_shift(
    T: torch.Tensor, U: torch.Tensor, k: int, n_steps: int, max_elements: int = MAX_ELEMENTS
) -> torch.Tensor:
    """Move each unit direction (s, d) to the mean of the k unit rows of T (n, d) nearest to it, ``n_steps`` times."""
    moved = []
    for part in chunks(len(U), len(T), max_elements):
        u = U[part]
        for _ in range(n_steps):
            u = normalize(T[(u @ T.T).topk(k, dim=1).indices].mean(1), dim=1)
        moved.append(u)
    return torch.cat(moved) if moved else U


def concentration(X: torch.Tensor, U: torch.Tensor, k: int, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """Mean cosine of each unit direction (s, d) with its k nearest rows of X (n, d); (s,) float64, at most 1."""
    T = normalize(X, dim=1)
    k = min(k, len(T))
    parts = [(U[p].to(T) @ T.T).topk(k, dim=1).values.mean(1) for p in chunks(len(U), len(T), max_elements)]
    return torch.cat(parts).double() if parts else T.new_zeros(0, dtype=torch.float64)


def draw_anchors(T: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    """Draw n rows with probability proportional to their squared length: of a residual, those still unexplained."""
    weight = T.square().sum(1).double().cpu().numpy()
    total = weight.sum()
    if total <= 0:
        return torch.as_tensor(rng.randint(0, len(T), n), device=T.device)
    return torch.as_tensor(rng.choice(len(T), n, p=weight / total), device=T.device)
