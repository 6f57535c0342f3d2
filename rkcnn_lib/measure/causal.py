"""Interventions on a subspace of a model's activations, and what they do to its answers.

Resample ablation (Chan et al. 2022, "Causal scrubbing"; Geiger et al. 2021, "Causal abstractions"): the part of
an activation inside or outside a subspace A is replaced by the same part of a *donor* prompt's activation.

* keep-only-A: ``x' = donor + (x - donor) P``  (everything but A comes from the donor)
* ablate-A:    ``x' = x + (donor - x) P``      (A alone comes from the donor: an interchange of A)

with ``P`` the projector on A. For A the whole space keep is the clean run and ablate the full resample
ablation; for A = {0} it is the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Mode = Literal["keep", "ablate"]


def orthonormal_basis(directions: torch.Tensor | np.ndarray, tolerance: float = 1e-6) -> torch.Tensor:
    """Return an orthonormal basis of the span of some directions.

    Parameters
    ----------
    directions : (r, d) tensor or array
        Rows that span the subspace; near-dependent ones do not count twice.
    tolerance : float
        Singular values below ``tolerance`` times the largest are taken as zero.

    Returns
    -------
    (d, rank) float32 tensor with orthonormal columns.

    Raises
    ------
    ValueError
        If there are no directions, or they are not finite, or all zero.
    """
    rows = torch.as_tensor(directions, dtype=torch.float64)
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise ValueError(f"directions must be (r, d) with r >= 1, got shape {tuple(rows.shape)}: A is empty")
    if not torch.isfinite(rows).all():
        raise ValueError("directions hold NaN or Inf")
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > tolerance * singular[0]).sum()) if singular[0] > 0 else 0
    if rank == 0:
        raise ValueError("all directions are zero: they span nothing")
    return right[:rank].T.float()


def mix(clean: torch.Tensor, donor: torch.Tensor, basis: torch.Tensor | None, mode: Mode) -> torch.Tensor:
    """Return activations (n, d) of which one part is the donor's; ``basis`` None stands for the empty subspace."""
    if mode not in ("keep", "ablate"):
        raise ValueError(f"mode = {mode!r}: use 'keep' or 'ablate'")
    if clean.shape != donor.shape:
        raise ValueError(f"clean {tuple(clean.shape)} and donor {tuple(donor.shape)} activations differ in shape")
    if basis is None:
        return donor.clone() if mode == "keep" else clean.clone()
    if basis.shape[0] != clean.shape[-1]:
        raise ValueError(f"the subspace lives in {basis.shape[0]} dimensions, the activations in {clean.shape[-1]}")
    difference = clean - donor
    inside = (difference @ basis) @ basis.T
    return donor + inside if mode == "keep" else clean - inside


@dataclass(frozen=True)
class PromptPairs:
    """Base prompts, donor prompts and the single-token answers of both; row i of each belongs together.

    ``base`` and ``donor`` are (n, length) token ids of equal length, ``answer`` and ``foil`` (n,) the token
    that each should end in. ``position`` is where activations are exchanged (-1: the last token).
    """

    base: torch.Tensor
    donor: torch.Tensor
    answer: torch.Tensor
    foil: torch.Tensor
    position: int = -1

    def __post_init__(self) -> None:
        if self.base.ndim != 2 or self.base.shape != self.donor.shape:
            raise ValueError(
                f"base {tuple(self.base.shape)} and donor {tuple(self.donor.shape)} prompts must be (n, length) "
                "and equally long: choose pairs of one template with names of equal token length"
            )
        if not len(self.base) == len(self.answer) == len(self.foil):
            raise ValueError("base, answer and foil must have one row a pair")
        if len(self.base) == 0:
            raise ValueError("there are no prompt pairs")


def read_activations(lm: Any, tokens: torch.Tensor, hook_name: str, position: int = -1) -> torch.Tensor:
    """Return the activations (n, d) at one hook and position for prompts (n, length)."""
    _, cache = lm.run_with_cache(tokens, names_filter=[hook_name])
    return cache[hook_name][:, position].float()


@torch.no_grad()
def patched_logits(
    lm: Any, pairs: PromptPairs, hook_name: str, basis: torch.Tensor | None, mode: Mode, batch_size: int = 64
) -> torch.Tensor:
    """Run the base prompts with the subspace's part exchanged and return the last position's logits (n, vocab)."""
    rows = []
    for start in range(0, len(pairs.base), batch_size):
        base, donor = (t[start : start + batch_size] for t in (pairs.base, pairs.donor))
        donated = read_activations(lm, donor, hook_name, pairs.position)

        def exchange(activation: torch.Tensor, hook: Any, donated: torch.Tensor = donated) -> torch.Tensor:
            clean = activation[:, pairs.position]
            space = None if basis is None else basis.to(clean)
            activation = activation.clone()
            activation[:, pairs.position] = mix(clean, donated.to(clean), space, mode)
            return activation

        logits = lm.run_with_hooks(base, return_type="logits", fwd_hooks=[(hook_name, exchange)])
        rows.append(logits[:, -1].float())
    return torch.cat(rows)


@torch.no_grad()
def clean_logits(lm: Any, tokens: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Return the last position's logits (n, vocab) of prompts left alone."""
    chunks = tokens.split(batch_size)
    return torch.cat([lm(chunk, return_type="logits")[:, -1].float() for chunk in chunks])


def effects(clean: torch.Tensor, patched: torch.Tensor, pairs: PromptPairs) -> dict[str, torch.Tensor]:
    """Return what an intervention did, one value a pair (so that cancelling errors show).

    ``logit_difference``: answer minus foil, in logits. ``kl``: KL(clean || patched) of the next-token
    distributions, in nats, >= 0. ``top1``: 1 where the answer is the most likely token. ``interchanged``: 1
    where the donor's answer is.
    """
    if clean.shape != patched.shape or len(clean) != len(pairs.base):
        raise ValueError(f"clean {tuple(clean.shape)} and patched {tuple(patched.shape)} logits do not match the pairs")
    row = torch.arange(len(patched), device=patched.device)
    answer, foil = pairs.answer.to(patched.device), pairs.foil.to(patched.device)
    log_p, log_q = clean.double().log_softmax(-1), patched.double().log_softmax(-1)
    best = patched.argmax(-1)
    return {
        "logit_difference": patched[row, answer] - patched[row, foil],
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0).float(),
        "top1": (best == answer).float(),
        "interchanged": (best == foil).float(),
    }


def recovered_share(value: float, empty: float, whole: float) -> float:
    """Return where ``value`` lies between the empty subspace (0) and the whole one (1).

    Raises
    ------
    ValueError
        If the two ends coincide: the intervention then does nothing that could be shared out.
    """
    if whole == empty:
        raise ValueError("keeping everything and keeping nothing give the same value: nothing to share out")
    return (value - empty) / (whole - empty)
