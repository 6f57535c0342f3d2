"""One-sided matching pursuit: sparse codes of rows with a fixed dictionary of unit directions."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pursued(NamedTuple):
    """Sparse codes of n rows: up to as many directions a row as steps were taken, some perhaps more than once."""

    values: torch.Tensor
    """(n, steps), non-negative."""
    picked: torch.Tensor
    """(n, steps) int64, the direction that each value belongs to."""

    def decode(self, D: torch.Tensor) -> torch.Tensor:
        """What the codes write with the directions D (r, d): (n, d)."""
        return (self.values[:, :, None] * D[self.picked]).sum(1)


def one_sided_codes(X: torch.Tensor, D: torch.Tensor, gram: torch.Tensor, n_steps: int) -> Pursued:
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
    return Pursued(torch.stack(values, 1), torch.stack(picked, 1))


def default_steps(d: int) -> int:
    """Return how many directions a row is coded with in d dimensions: d / 16, at least 1 and at most 8.

    With as many steps as dimensions any dictionary codes everything and nothing is left to learn from.
    """
    return min(8, max(1, d // 16))
