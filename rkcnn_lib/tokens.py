"""Which of a model's tokens count: where it is asked something, and which rows are special and left alone."""

from typing import NamedTuple

import torch

from rkcnn_lib.protocols import LanguageModel


class Asked(NamedTuple):
    """Where a model is asked something, and what counts."""

    where: slice  # the n positions of a context at which it is asked
    right: torch.Tensor  # (contexts, n) tokens that are right there
    counted: torch.Tensor  # (contexts, n) bool: which of them count as targets


def asked(lm: LanguageModel, tokens: torch.Tensor, mask: torch.Tensor) -> Asked:
    """Say where a model is asked something about `tokens` (contexts, positions), and which answers count.

    A language model is asked for the next token at every position but the last; those count that ``mask`` (contexts,
    positions; see `rows_that_count`) does. A model with another task has an `asked` of its own, (contexts, positions)
    to (where, right), and all of its answers count.
    """
    own = getattr(lm, "asked", None)
    if own is not None:
        where, right = own(tokens)
        return Asked(where, right, torch.ones_like(right, dtype=torch.bool))
    return Asked(slice(0, tokens.shape[1] - 1), tokens[:, 1:], mask[:, 1:].to(tokens.device))


def first_position(lm: LanguageModel) -> int:
    """Return from which position of a context activations count: 1, for the first is an outlier in most models."""
    return getattr(lm, "first_position", 1)


def rows_that_count(lm: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return which rows (contexts, positions) SAEs are trained on: none before `first_position`, no special tokens."""
    special = torch.tensor(getattr(getattr(lm, "tokenizer", None), "all_special_ids", []), device=tokens.device)
    mask = ~torch.isin(tokens, special.to(tokens.dtype))
    mask[:, : first_position(lm)] = False
    return mask


def to_model(lm: LanguageModel, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the device of the model's weights (as it is, for a model that has none)."""
    weight = next(iter(lm.parameters()), None) if hasattr(lm, "parameters") else None
    return tensor if weight is None else tensor.to(weight.device)
