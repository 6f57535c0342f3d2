"""What more than one room of the library needs to know about tensors."""

from __future__ import annotations

import torch


def geometric_median(X: torch.Tensor, n_iterations: int = 200, tolerance: float = 1e-6) -> torch.Tensor:
    """(d,): the point with the least sum of distances to the rows of X (n, d), by Weiszfeld's iteration.

    Stops when a step is shorter than `tolerance` times the mean distance. A distance of zero (the iterate sits
    on a row) is floored, which keeps the weights finite. Weiszfeld 1937, Tohoku Mathematical Journal 43.
    """
    rows = X.double()
    point = rows.mean(dim=0)
    for _ in range(n_iterations):
        distances = (rows - point).norm(dim=1)
        spread = float(distances.mean())
        if spread == 0:
            break
        weights = 1 / distances.clamp_min(1e-9 * spread)
        moved = (weights @ rows) / weights.sum()
        step = float((moved - point).norm())
        point = moved
        if step < tolerance * spread:
            break
    return point.to(X.dtype)
