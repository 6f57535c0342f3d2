"""Refinement by sparse coding: from directions that lie near the features to those that code the rows best.

The rows are coded by a few steps of one-sided matching pursuit (features are zero or positive), then all directions
are solved for at once by least squares, and so on: the method of optimal directions (Engan, Aase & Husoy 1999) with
a one-sided code. It needs good starts, for it finds the nearest optimum only; that is what mining is for. It would
sharpen any start, so a comparison of miners must give it to their rivals too (see `rivals.mine`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.moments import MAX_ELEMENTS, block_size, chunks
from rkcnn_lib.tensors import add_at

RIDGE = 1e-3  # towards the directions as they are, as a share of a direction's mean energy: rare ones move less


def default_steps(d: int) -> int:
    """Return how many directions a row is coded with in d dimensions: d / 16, at least 1 and at most 8.

    With as many steps as dimensions any dictionary codes everything and nothing is left to learn from.
    """
    return min(8, max(1, d // 16))


class Codes(NamedTuple):
    """Sparse codes of n rows: up to as many directions a row as steps were taken, some perhaps more than once."""

    values: torch.Tensor
    """(n, steps), non-negative."""
    picked: torch.Tensor
    """(n, steps) int64, the direction that each value belongs to."""

    def decode(self, D: torch.Tensor) -> torch.Tensor:
        """What the codes write with the directions D (r, d): (n, d)."""
        return (self.values[:, :, None] * D[self.picked]).sum(1)


def pursue(X: torch.Tensor, D: torch.Tensor, n_steps: int, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """Return what ``n_steps`` of one-sided matching pursuit with the unit directions D (r, d) leave of X (n, d)."""
    residual = X.clone()
    if len(D):
        gram = D @ D.T
        for rows in chunks(len(X), len(D), block_size(X, max_elements)):
            residual[rows] -= one_sided_codes(X[rows], D, gram, n_steps).decode(D)
    return residual


def one_sided_codes(X: torch.Tensor, D: torch.Tensor, gram: torch.Tensor, n_steps: int) -> Codes:
    """Non-negative codes of X (n, d) by matching pursuit (Mallat & Zhang 1993) with unit directions D (r, d).

    Each step adds to each row the direction with the largest positive inner product with what is left; ``gram`` is
    ``D @ D.T``, through which inner products are updated without forming what is left.
    """
    inner = X @ D.T
    values, picked = [], []
    for _ in range(n_steps):
        value, best = inner.max(1)
        values.append(value.clamp_min(0.0))
        picked.append(best)
        inner -= values[-1][:, None] * gram[best]
    return Codes(torch.stack(values, 1), torch.stack(picked, 1))


def refine(
    X: torch.Tensor,
    D: torch.Tensor,
    n_passes: int = 3,
    n_steps: int | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> torch.Tensor:
    """Move unit directions D (r, d) to where they code the rows of X (n, d) with a smaller squared error.

    `n_passes` alternations of coding, each row with `n_steps` directions (None: `default_steps`), and solving; an
    offset common to all rows is fitted beside the directions. Returns unit rows (r, d) in the dtype of D, in the same
    order. A direction that codes no row stays where it was.
    """
    n_steps = default_steps(X.shape[1]) if n_steps is None else n_steps
    U = D.to(X.dtype)
    offset = X.new_zeros(X.shape[1])
    for _ in range(n_passes if len(D) else 0):
        gram = U @ U.T
        energy = torch.zeros(len(U), len(U), dtype=torch.float64, device=X.device)
        slope = torch.zeros_like(U)
        left = torch.zeros(X.shape[1], dtype=torch.float64, device=X.device)
        for rows in chunks(len(X), len(U), block_size(X, max_elements)):
            part = X[rows] - offset
            codes = one_sided_codes(part, U, gram, n_steps)
            residual = part - codes.decode(U)
            pairs = codes.picked[:, :, None] * len(U) + codes.picked[:, None, :]
            products = codes.values[:, :, None] * codes.values[:, None, :]
            add_at(energy.view(-1), pairs.flatten(), products.flatten().double())
            for step in range(n_steps):
                add_at(slope, codes.picked[:, step], codes.values[:, step, None] * residual)
            left += residual.sum(0, dtype=torch.float64)
        energy.diagonal().add_(RIDGE * energy.diagonal().mean().clamp_min(1e-30))
        U = normalize(U + torch.linalg.solve(energy, slope.double()).to(U.dtype), dim=1)
        offset = offset + (left / len(X)).to(X.dtype)
    return U.to(D.dtype)
