"""What more than one room of the library needs to know about tensors."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def asked(lm: Any, tokens: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Return where a model is asked something and what is right there: a slice of n positions, (contexts, n) tokens.

    A language model is asked for the next token at every position but the last of `tokens` (contexts, positions). A
    model with another task has an `asked` of its own.
    """
    own = getattr(lm, "asked", None)
    return own(tokens) if own is not None else (slice(0, tokens.shape[1] - 1), tokens[:, 1:])


def first_position(lm: Any) -> int:
    """Return the position of a context from which a model's activations count: 1, unless the model has its own.

    The first position is an outlier in most language models, whatever its token.
    """
    return getattr(lm, "first_position", 1)


MEDIAN_ROWS = 16384  # converted at a time


def geometric_median(X: torch.Tensor, n_iterations: int = 200, tolerance: float = 1e-6) -> torch.Tensor:
    """(d,): the point with the least sum of distances to the rows of X (n, d), by Weiszfeld's iteration.

    Stops when a step is shorter than `tolerance` times the mean distance. A distance of zero (the iterate sits
    on a row) is floored, which keeps the weights finite. Weiszfeld 1937, Tohoku Mathematical Journal 43.
    """
    blocks = X.split(MEDIAN_ROWS)  # float64 copies of all rows at once would be twice their memory
    point = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(X)
    for _ in range(n_iterations):
        distances = torch.cat([(block.double() - point).norm(dim=1) for block in blocks])
        spread = float(distances.mean())
        if spread == 0:
            break
        weights = 1 / distances.clamp_min(1e-9 * spread)
        parts = zip(weights.split(MEDIAN_ROWS), blocks, strict=True)
        moved = torch.stack([weight @ block.double() for weight, block in parts]).sum(dim=0) / weights.sum()
        step = float((moved - point).norm())
        point = moved
        if step < tolerance * spread:
            break
    return point.to(X.dtype)


def fingerprint(*tensors: torch.Tensor) -> str:
    """sha256 over the values of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
