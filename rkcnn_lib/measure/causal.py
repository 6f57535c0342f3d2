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
from dataclasses import dataclass, replace
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
    """Base prompts, donor prompts and the answers of both; row i of each belongs together.

    Attributes
    ----------
    base, donor : (n, length) token ids, shorter rows filled up on the right (a causal model never looks there).
    answer, foil : (n,) or (n, a) token ids
        What the base and what the donor should end in; with several columns any of a row's tokens counts (all
        singular verbs, say), rows being filled up with -1.
    positions : int, (n,) or (n, k) tensor
        Where activations are exchanged, alike in base and donor; negative counts from each prompt's last token.
    lengths : (n,) tensor or None
        Tokens of each row before the filling, base and donor alike; None: all of them.
    """

    base: Tensor
    donor: Tensor
    answer: Tensor
    foil: Tensor
    positions: Tensor | int = -1
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.base.ndim != 2 or self.base.shape != self.donor.shape:
            raise ValueError(
                f"base {tuple(self.base.shape)} and donor {tuple(self.donor.shape)} prompts must be (n, length) "
                "and equally long: choose pairs of one template with names of equal token length"
            )
        n, length = self.base.shape
        if n == 0:
            raise ValueError("there are no prompt pairs")
        if not n == len(self.answer) == len(self.foil):
            raise ValueError("base, answer and foil must have one row a pair")
        lengths = torch.full((n,), length) if self.lengths is None else torch.as_tensor(self.lengths).cpu()
        if lengths.shape != (n,) or int(lengths.min()) < 1 or int(lengths.max()) > length:
            raise ValueError(f"lengths must be ({n},) between 1 and {length}, got {lengths.tolist()}")
        places = torch.as_tensor(self.positions).cpu()
        places = places.expand(n, 1) if places.ndim == 0 else places.reshape(n, -1)
        places = torch.where(places < 0, places + lengths[:, None], places)
        if int(places.min()) < 0 or bool((places >= lengths[:, None]).any()):
            raise ValueError(f"positions = {self.positions}: outside some prompt of {int(lengths.min())} tokens")
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
        return PromptPairs(*(column[rows.to(column.device)] for column in self._columns()))

    def on(self, lm: Any) -> PromptPairs:
        """Return the same pairs on the model's device."""
        return PromptPairs(*(to_model(lm, column) for column in self._columns()))

    def _columns(self) -> tuple[Any, ...]:
        return self.base, self.donor, self.answer, self.foil, self.positions, self.lengths


def share_in(x: Tensor, A: Part) -> Tensor:
    """Return A(x): the share of activations x (..., d) that lies in A."""
    if A is None:
        return torch.zeros_like(x)
    if callable(A):
        return A(x)
    if A.shape[0] != x.shape[-1]:
        raise ValueError(f"the subspace lives in {A.shape[0]} dimensions, the activations in {x.shape[-1]}")
    A = A.to(x)
    return (x @ A) @ A.T


def latents_part(sae: Any, latents: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function x -> what some latents of an SAE write, ``z_A @ W_dec[A]``: A as latents.

    Exchanging it swaps the latents' activations and leaves the rest, the SAE's error included, alone. ValueError if no
    latent is named, or one that the SAE has not.
    """
    latents = torch.as_tensor(latents, dtype=torch.long)
    d_sae = sae.W_dec.shape[0]
    if latents.ndim != 1 or len(latents) == 0 or int(latents.min()) < 0 or int(latents.max()) >= d_sae:
        raise ValueError(f"latents = {latents.tolist()}: name at least one of 0 to {d_sae - 1}")

    def written(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(sae.W_dec)
        return (sae.encode(flat)[:, latents] @ sae.W_dec[latents]).reshape(x.shape).to(x)

    return written


def mix(clean: Tensor, replacement: Tensor, A: Part, mode: Mode) -> Tensor:
    """Return activations (..., d) of which one part is the replacement's; see the module for the formulas."""
    if mode not in ("keep", "ablate"):
        raise ValueError(f"mode = {mode!r}: use 'keep' or 'ablate'")
    if clean.shape[-1] != replacement.shape[-1]:
        raise ValueError(f"activations {tuple(clean.shape)} and replacement {tuple(replacement.shape)} do not match")
    replacement = replacement.to(clean).expand_as(clean)
    if A is None:
        return replacement.clone() if mode == "keep" else clean.clone()
    if callable(A):
        moved = share_in(clean, A) - share_in(replacement, A)
        return replacement + moved if mode == "keep" else clean - moved
    x, r = clean.double(), replacement.double()  # in float32 keeping the whole space would not give x back exactly
    moved = share_in(x - r, A)
    return (r + moved if mode == "keep" else x - moved).to(clean.dtype)


def check_site(lm: Any, hook_name: str | None, length: int) -> None:
    """Raise ValueError if the model has no such hook, or cannot read prompts of ``length`` tokens."""
    hooks = getattr(lm, "hook_dict", None)
    if hook_name is not None and hooks is not None and hook_name not in hooks:
        n_layers = getattr(getattr(lm, "cfg", None), "n_layers", "?")
        raise ValueError(f"hook {hook_name!r}: the model has no such hook; its {n_layers} blocks count from 0")
    longest = getattr(getattr(lm, "cfg", None), "n_ctx", None)
    if longest is not None and length > longest:
        raise ValueError(f"a prompt of {length} tokens is longer than the model's context of {longest}: shorten it")


@torch.no_grad()
def read_activations(lm: Any, tokens: Tensor, hook_name: str, positions: Tensor | int = -1) -> Tensor:
    """Return the activations at one hook: (n, d) for one position, (n, k, d) for positions (n, k)."""
    check_site(lm, hook_name, tokens.shape[1])
    activations = []
    for start in range(0, len(tokens), BATCH):
        batch = to_model(lm, tokens[start : start + BATCH])
        passed = lm.run_with_cache(batch, names_filter=[hook_name])[1][hook_name].float()
        if isinstance(positions, int):
            activations.append(passed[:, positions])
        else:
            places = positions[start : start + BATCH].to(passed.device)
            activations.append(passed[torch.arange(len(batch), device=passed.device)[:, None], places])
    return torch.cat(activations)


def donor_activations(lm: Any, pairs: PromptPairs, hook_name: str) -> Tensor:
    """Return the donors' activations (n, k, d): read once, used for every intervention on these pairs."""
    return read_activations(lm, pairs.donor, hook_name, pairs.positions)


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
    lm: Any, pairs: PromptPairs, hook_name: str | None, edit: Callable[[Tensor, slice], Tensor], batch_size: int = BATCH
) -> Tensor:
    """Run the base prompts with ``edit`` applied to the activations (b, k, d) at the pairs' positions, or with no hook.

    ``edit`` also gets the slice of pairs at hand. Gradients flow unless the caller switches them off. Returns the
    logits (n, vocab) behind each prompt's last token.
    """
    check_site(lm, hook_name, pairs.base.shape[1])
    tokens, *_, positions, lengths = pairs.on(lm)._columns()
    rows = []
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)
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
        check_site(lm, hook_name, tokens.shape[1])
        logits = run_edited(lm, tokens, hook_name, after_first, lambda x: x + strength * direction.to(x))
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[0, len(prompt) :].tolist()
