"""What more than one room of the library needs to know about tensors."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch


class Asked(NamedTuple):
    """Where a model is asked something, and what counts."""

    where: slice
    """The n positions of a context at which it is asked."""
    right: torch.Tensor
    """(contexts, n) tokens that are right there."""
    counted: torch.Tensor
    """(contexts, n) bool: which of them count as targets."""


def asked(lm: Any, tokens: torch.Tensor, mask: torch.Tensor) -> Asked:
    """Say where a model is asked something about `tokens` (contexts, positions), and which answers count.

    A language model is asked for the next token at every position but the last; those count that ``mask`` (contexts,
    positions; see `rows_that_count`) does, so special tokens are no targets. A model with another task has an `asked`
    of its own, (contexts, positions) to (where, right), and all of its answers count.
    """
    own = getattr(lm, "asked", None)
    if own is not None:
        where, right = own(tokens)
        return Asked(where, right, torch.ones_like(right, dtype=torch.bool))
    return Asked(slice(0, tokens.shape[1] - 1), tokens[:, 1:], mask[:, 1:].to(tokens.device))


def first_position(lm: Any) -> int:
    """Return the position of a context from which a model's activations count: 1, unless the model has its own.

    The first position is an outlier in most language models, whatever its token.
    """
    return getattr(lm, "first_position", 1)


def rows_that_count(lm: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return which rows (contexts, positions) SAEs are trained on: none before `first_position`, no special tokens."""
    special = torch.tensor(getattr(getattr(lm, "tokenizer", None), "all_special_ids", []), device=tokens.device)
    mask = ~torch.isin(tokens, special.to(tokens.dtype))
    mask[:, : first_position(lm)] = False
    return mask


def to_model(lm: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the device of the model's weights (as it is, for a model that has none)."""
    weight = next(iter(lm.parameters()), None) if hasattr(lm, "parameters") else None
    return tensor if weight is None else tensor.to(weight.device)


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


def add_at(total: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Add values (n, ...) to the rows of `total` that index (n,) names, several to one row, in an order that is fixed.

    On CUDA `index_add_` adds by atomics, in another order each time; `index_put_` sorts there. On the processor it is
    the other way round.
    """
    if total.is_cuda:
        total.index_put_((index,), values, accumulate=True)
    else:
        total.index_add_(0, index, values)
