"""Interventions on a part of a model's activations: keep it, replace it, steer along it.

A is a subspace (or some latents of an SAE). At chosen positions of a prompt the part of an activation inside or
outside A is replaced by the same part of something else:

* keep-only-A: ``x' = r + A(x) - A(r)``  (everything but A is the replacement's)
* ablate-A:    ``x' = x + A(r) - A(x)``  (A alone is the replacement's)

where A(x) is x's share in A and r the replacement: zero, a mean, or the activation of a *donor* prompt (resample
ablation, Chan et al. 2022, "Causal scrubbing"). Ablating with a donor is the interchange intervention of Geiger
et al. 2021, "Causal abstractions of neural networks". For A the whole space keep is the clean run and ablate the
full replacement; for A = {0} it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rkcnn_lib.protocols import to_model

Mode = Literal["keep", "ablate"]
Part = Tensor | Callable[[Tensor], Tensor] | None  # a basis (d, r), a function x -> its share in A, the empty subspace
NO_TOKEN = -1  # fills rows of token sets of unequal size
BATCH = 64  # prompts a forward pass


@dataclass(frozen=True)
class PromptPairs:
    """Base prompts, donor prompts of equal length and the answers of both; row i of each belongs together."""

    base: Tensor  # (n, length) token ids, shorter rows filled up on the right: a causal model never looks there
    donor: Tensor
    answer: Tensor  # (n,) or (n, a): any of a row's tokens counts (all singular verbs, say), filled up with -1
    foil: Tensor  # the same for the donor
    positions: Tensor | int = -1  # one, (n,) or (n, k): where to exchange; negative counts from a prompt's last token
    lengths: Tensor | None = None  # (n,) tokens of each row before the filling; None: all of them

    def __post_init__(self) -> None:
        n, length = self.base.shape
        lengths = torch.full((n,), length) if self.lengths is None else self.lengths.cpu()
        places = torch.as_tensor(self.positions).cpu()
        places = places.expand(n, 1) if places.ndim == 0 else places.reshape(n, -1)
        places = torch.where(places < 0, places + lengths[:, None], places)
        answer, foil = (tokens if tokens.ndim == 2 else tokens[:, None] for tokens in (self.answer, self.foil))
        for name, value in {"positions": places, "lengths": lengths, "answer": answer, "foil": foil}.items():
            object.__setattr__(self, name, value.to(self.base.device))

    def __len__(self) -> int:
        return len(self.base)

    def at(self, positions: Tensor | int) -> PromptPairs:
        """Return the same pairs with other positions."""
        return replace(self, positions=positions)

    def take(self, rows: Tensor) -> PromptPairs:
        """Return some of the pairs."""
        return PromptPairs(*(column[rows.to(column.device)] for column in self.columns()))

    def columns(self) -> tuple[Tensor, ...]:
        """Return base, donor, answer, foil, positions and lengths."""
        return tuple(getattr(self, field.name) for field in fields(self))


def share_in(x: Tensor, A: Part) -> Tensor:
    """Return A(x): the share of activations x (..., d) that lies in A."""
    if A is None:
        return torch.zeros_like(x)
    if callable(A):
        return A(x)
    A = A.to(x)
    return (x @ A) @ A.T


def latents_part(sae: Any, latents: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function x -> what some latents of an SAE write, ``z_A @ W_dec[A]``: A as latents.

    Exchanging it swaps the latents' activations and leaves the rest, the SAE's error included, alone.
    """

    def written(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(sae.W_dec)
        return (sae.encode(flat)[:, latents] @ sae.W_dec[latents]).reshape(x.shape).to(x)

    return written


def mix(clean: Tensor, replacement: Tensor, A: Part, mode: Mode) -> Tensor:
    """Return activations (..., d) of which one part is the replacement's; see the module for the formulas."""
    x, r = clean, replacement.to(clean).expand_as(clean)
    if callable(A):
        moved = A(x) - A(r)
    else:
        x, r = x.double(), r.double()  # in float32 keeping the whole space would not give x back exactly
        moved = share_in(x - r, A)
    return (r + moved if mode == "keep" else x - moved).to(clean.dtype)


@torch.no_grad()
def read_activations(lm: Any, tokens: Tensor, hook_name: str, positions: Tensor) -> Tensor:
    """Return the activations (n, k, d) of prompts (n, length) at one hook and at positions (n, k)."""
    activations = []
    for batch, places in zip(tokens.split(BATCH), positions.split(BATCH), strict=True):
        passed = lm.run_with_cache(to_model(lm, batch), names_filter=[hook_name])[1][hook_name].float()
        rows = torch.arange(len(batch), device=passed.device)[:, None]
        activations.append(passed[rows, places.to(passed.device)])
    return torch.cat(activations)


def donor_activations(lm: Any, pairs: PromptPairs, hook_name: str) -> Tensor:
    """Return the donors' activations (n, k, d): read once, used for every intervention on these pairs."""
    return read_activations(lm, pairs.donor, hook_name, torch.as_tensor(pairs.positions))


def run_edited(lm: Any, tokens: Tensor, hook_name: str, at: Any, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the logits of tokens (b, length) with what passes a hook edited where ``at``, a mask or an index, says."""

    def put(activation: Tensor, hook: Any = None) -> Tensor:
        if isinstance(at, Tensor) and activation.shape[: at.ndim] != at.shape:
            raise ValueError(f"{hook_name} gives {tuple(activation.shape)}; needed is (contexts, positions, d)")
        edited = activation.clone()
        edited[at] = edit(activation[at]).to(activation)
        return edited

    return lm.run_with_hooks(to_model(lm, tokens), return_type="logits", fwd_hooks=[(hook_name, put)])


def edited_logits(
    lm: Any, pairs: PromptPairs, hook_name: str | None, edit: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """Run the base prompts with ``edit`` applied to the activations (b, k, d) at the pairs' positions, or with no hook.

    ``edit`` also gets the slice of pairs at hand. Gradients flow unless the caller switches them off. Returns the
    logits (n, vocab) behind each prompt's last token.
    """
    tokens, *_, positions, lengths = (to_model(lm, column) for column in pairs.columns())
    rows = []
    for start in range(0, len(tokens), BATCH):
        part = slice(start, start + BATCH)
        base, row = tokens[part], torch.arange(len(tokens[part]), device=tokens.device)
        if hook_name is None:
            logits = lm(base, return_type="logits")
        else:
            at = row[:, None], positions[part]
            logits = run_edited(lm, base, hook_name, at, lambda clean, part=part: edit(clean, part))
        rows.append(logits[row, lengths[part] - 1].float())
    return torch.cat(rows)


@torch.no_grad()
def patched_logits(lm: Any, pairs: PromptPairs, hook_name: str, A: Part, mode: Mode, replacement: Tensor) -> Tensor:
    """Run the base prompts with a part of their activations replaced; returns the last logits (n, vocab).

    `A` is a subspace (d, r) with orthonormal columns, `latents_part`'s function, or None for the empty subspace. The
    `replacement` broadcasts to (n, k, d): `donor_activations` for resampling, a mean (d,), or zeros (d,).
    """
    per_pair = replacement.ndim == 3

    def exchange(clean: Tensor, part: slice) -> Tensor:
        return mix(clean, replacement[part] if per_pair else replacement, A, mode)

    return edited_logits(lm, pairs, hook_name, exchange)


@torch.no_grad()
def clean_logits(lm: Any, pairs: PromptPairs) -> Tensor:
    """Return the logits (n, vocab) behind the last token of the base prompts, left alone."""
    return edited_logits(lm, pairs, None, lambda clean, part: clean)


@torch.no_grad()
def steered_continuation(
    lm: Any, prompt: Tensor, hook_name: str, direction: Tensor, strength: float, n_tokens: int
) -> list[int]:
    """Continue a prompt (length,) greedily while ``strength * direction`` is added at every position from 1 on.

    Strength 0 is the model's own continuation. Position 0 is left alone: it is an outlier in most models.
    """
    tokens, after_first = to_model(lm, prompt[None]), (slice(None), slice(1, None))
    for _ in range(n_tokens):
        logits = run_edited(lm, tokens, hook_name, after_first, lambda x: x + strength * direction.to(x))
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[0, len(prompt) :].tolist()
