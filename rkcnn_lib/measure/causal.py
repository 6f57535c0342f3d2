"""Interventions on a part of a model's activations, keep it, replace it, steer along it; and what parts there are.

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

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rkcnn_lib.tokens import to_model

Mode = Literal["keep", "ablate"]
Part = Tensor | Callable[[Tensor], Tensor] | None  # a basis (d, r), a function x -> its share in A, the empty subspace
NO_TOKEN = -1  # fills rows of token sets of unequal size
BATCH = 64  # prompts a forward pass
PAIRS, LEARNING_RATE = 32, 0.05  # of a step of the alignment


@dataclass(frozen=True)
class PromptPairs:
    """Base prompts, donor prompts of equal length and the answers of both; row i of each belongs together."""

    base: Tensor  # (n, length) token ids, shorter rows filled up on the right: a causal model never looks there
    donor: Tensor
    answer: Tensor  # (n,) or (n, a): any of a row's tokens counts (all singular verbs, say), filled up with -1
    foil: Tensor  # the same for the donor
    positions: Any = -1  # one, (n,) or (n, k): where to exchange; negative counts from a prompt's last token
    lengths: Any = None  # (n,) tokens of each row before the filling; None: all of them

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

    def take(self, rows: Tensor | slice) -> PromptPairs:
        """Return some of the pairs; indices are on the CPU."""
        return PromptPairs(*(getattr(self, field.name)[rows] for field in fields(self)))


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
        activations.append(passed[torch.arange(len(batch))[:, None], places.cpu()])
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
    lm: Any, pairs: PromptPairs, hook_name: str | None, edit: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """Run the base prompts with ``edit`` applied to the activations (b, k, d) at the pairs' positions, or with no hook.

    ``edit`` also gets the slice of pairs at hand. Gradients flow unless the caller switches them off. Returns the
    logits (n, vocab) behind each prompt's last token.
    """
    last = []
    for start in range(0, len(pairs), BATCH):
        part = slice(start, start + BATCH)
        here = pairs.take(part)
        base, positions, lengths = (to_model(lm, column) for column in (here.base, here.positions, here.lengths))
        row = torch.arange(len(base), device=base.device)
        if hook_name is None:
            logits = lm(base, return_type="logits")
        else:
            at = row[:, None], positions
            logits = run_edited(lm, base, hook_name, at, lambda clean, part=part: edit(clean, part))
        last.append(logits[row, lengths - 1].float())
    return torch.cat(last)


@torch.no_grad()
def patched_logits(lm: Any, pairs: PromptPairs, hook_name: str, A: Part, mode: Mode, replacement: Tensor) -> Tensor:
    """Run the base prompts with a part of their activations replaced; returns the last logits (n, vocab).

    `A` is a subspace (d, r) with orthonormal columns, `latents_part`'s function, or None for the empty subspace. The
    `replacement` broadcasts to (n, k, d): `donor_activations` for resampling, a mean (d,), or zeros (d,).
    """
    each = replacement.expand(*pairs.positions.shape, -1)
    return edited_logits(lm, pairs, hook_name, lambda clean, part: mix(clean, each[part], A, mode))


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


def token_set_logits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-sum-exp (n,) of each row's logits (n, vocab) over its token set (n, a), -1 being no token."""
    tokens = tokens.to(logits.device)
    chosen = logits.gather(1, tokens.clamp_min(0))
    return chosen.masked_fill(tokens == NO_TOKEN, -math.inf).logsumexp(1)


# ---------------------------------------------------------------- subspaces


def orthonormal_basis(directions: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis (d, rank), float64 columns, of the span of some directions (r, d).

    Near-dependent rows do not count twice: singular values below ``tolerance`` times the largest are taken as zero.
    """
    _, singular, right = torch.linalg.svd(directions.double(), full_matrices=False)
    return right[: int((singular > tolerance * singular[0]).sum())].T


def leading_basis(directions: Tensor, rank: int, name: str = "A") -> Tensor:
    """Return an orthonormal basis (d, rank) of the first rows of ``directions`` (r, d) that span ``rank`` dimensions.

    Rows that add no dimension are passed over; ValueError if the rows span fewer dimensions.
    """
    for count in range(rank, len(directions) + 1):
        basis = orthonormal_basis(directions[:count], tolerance=1e-4)
        if basis.shape[1] == rank:
            return basis
    raise ValueError(f"rank = {rank}: {name} supplies {len(directions)} directions that span less; lower the ranks")


def captured_variance(basis: Tensor, X: Tensor) -> float:
    """Return the share of the variance of X (n, d) that lies inside the subspace ``basis`` (d, r), in [0, 1]."""
    centred = X.double() - X.double().mean(0)
    return float((centred @ basis.to(centred)).square().sum()) / float(centred.square().sum())


def random_basis(d: int, rank: int, generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis (d, rank) of a subspace drawn uniformly."""
    return torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64)).Q


def random_basis_of_variance(X: Tensor, rank: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random subspace (d, rank) that holds a given share, in [0, 1], of the variance of X (n, d).

    ``span(S^t Z)`` with S the covariance and Z Gaussian is uniform at t = 0 and turns towards the leading principal
    components as t grows; the variance inside grows with t, so bisection finds the t that matches, or the nearest in
    reach at this rank.
    """
    centred = X.double() - X.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(X))
    values = values.clamp_min(float(values[-1]) * 1e-9)
    start = torch.randn(X.shape[1], rank, generator=generator, dtype=torch.float64).to(X.device)
    logs, shares = values.log() - values.log().mean(), values / values.sum()

    def turned(t: float) -> Tensor:
        scale = t * logs
        return torch.linalg.qr((scale - scale.max()).exp()[:, None] * start).Q

    low, high = -8.0, 8.0
    for _ in range(40):
        t = (low + high) / 2
        inside = float((turned(t).square().sum(1) * shares).sum())
        low, high = (t, high) if inside < share else (low, t)
    return vectors @ turned((low + high) / 2)


def rowspace_part(basis: Tensor, weight: Tensor, tolerance: float = 1e-5) -> Tensor | None:
    """Return the part of a subspace (d, r) that the weight (d, d_out) downstream can read, or None if there is none.

    Activations x enter the next layer as ``x @ weight``, so what lies in the weight's nullspace cannot matter; yet a
    direction that varies with the label but is not read, added to one that is read but does not vary, carries its
    variation into that one (the interpretability illusion of Makelov, Lange & Nanda 2023, arXiv:2311.17030).
    Projecting each direction on the rowspace takes that away. Singular values below ``tolerance``, of the weight
    relative to its largest or of the projected basis, count as zero.
    """
    left, singular, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    read = left[:, singular > tolerance * singular[0]]
    projected = read @ (read.T @ basis.to(read))
    if float(projected.norm(dim=0).max()) <= tolerance:
        return None
    return orthonormal_basis(projected.T, tolerance)


def align_subspace(
    lm: Any, pairs: PromptPairs, hook_name: str, start: Tensor, steps: int, keep_answers: PromptPairs | None = None
) -> Tensor:
    """Learn the subspace whose interchange turns the base's answer into the donor's, by gradient on pairs.

    Distributed alignment search (Geiger, Wu, Potts, Icard & Goodman 2024, arXiv:2303.02536): on other pairs the ceiling
    beside which other subspaces of its rank stand. A free (d, r) matrix is orthonormalised by QR in every step; the
    loss is minus the log-probability of the donor's answer after the interchange. Adam, learning rate decaying linearly
    to zero. The model stays as it is.

    ``start`` (d, rank) has orthonormal columns: the span of the class means, say. ``keep_answers`` are pairs whose base
    answer must *not* follow the donor (another attribute is asked): their loss for the base's own answer is added, the
    multi-task form of RAVEL (Huang et al. 2024, arXiv:2402.17700). Returns the basis (d, rank), float64.
    """
    tasks = [(pairs, "foil"), *([] if keep_answers is None else [(keep_answers, "answer")])]
    donated = [donor_activations(lm, asked, hook_name) for asked, _ in tasks]
    generator = torch.Generator().manual_seed(0)
    # columns of norm sqrt(d), so that the learning rate means the same at every width
    free = (start.float() * len(start) ** 0.5).to(pairs.base.device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        basis, losses = torch.linalg.qr(free).Q, []
        for (asked, wanted), activations in zip(tasks, donated, strict=True):
            rows = torch.randperm(len(asked), generator=generator)[:PAIRS]
            batch, donors = asked.take(rows), activations[rows]  # of one pass: fewer than BATCH
            logits = edited_logits(lm, batch, hook_name, lambda x, _, r=donors, A=basis: mix(x, r, A, "ablate"))
            losses.append(-token_set_logits(logits.log_softmax(-1), getattr(batch, wanted)).mean())
        (free.grad,) = torch.autograd.grad(torch.stack(losses).mean(), [free])  # none for the model's own weights
        optimiser.step()
        schedule.step()
    return torch.linalg.qr(free.detach().cpu().double()).Q
