"""Subspaces of activation space: bases, random ones of equal rank or variance, the rowspace part, the learnt one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import PromptPairs, donor_activations, edited_logits, mix
from rkcnn_lib.measure.effects import token_set_logits

BATCH, LEARNING_RATE = 32, 0.05  # of the alignment


def orthonormal_basis(directions: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis (d, rank), float64 columns, of the span of some directions (r, d).

    Near-dependent rows do not count twice: singular values below ``tolerance`` times the largest are taken as zero.
    """
    _, singular, right = torch.linalg.svd(directions.double(), full_matrices=False)
    return right[: int((singular > tolerance * singular[0]).sum())].T


def leading_basis(directions: Tensor, rank: int, name: str = "A") -> Tensor:
    """Return an orthonormal basis (d, rank) of the first rows of ``directions`` (r, d) that span ``rank`` dimensions.

    Rows that add no dimension are passed over, so that subspaces are compared at equal rank, not at equal count.
    ValueError if the rows span fewer dimensions.
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
    components as t grows, towards the trailing ones as it falls; the variance inside grows monotonically with t, so
    bisection finds the t that matches, or the nearest in reach at this rank.
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

    Activations x enter the next layer as ``x @ weight``, so what lies in the weight's nullspace cannot matter. A
    subspace may still show an effect through such a part: a direction that varies with the label but is not read, added
    to one that is read but does not vary, carries the variation of the first into the second (the interpretability
    illusion of Makelov, Lange & Nanda 2023, arXiv:2311.17030). Projecting each direction on the rowspace takes that
    away. Singular values below ``tolerance``, of the weight relative to its largest or of the projected basis, count as
    zero.
    """
    left, singular, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    read = left[:, singular > tolerance * singular[0]]
    projected = read @ (read.T @ basis.to(read))
    if float(projected.norm(dim=0).max()) <= tolerance:
        return None
    return orthonormal_basis(projected.T, tolerance)


def align_subspace(
    lm: Any,
    pairs: PromptPairs,
    hook_name: str,
    start: Tensor,
    steps: int = 150,
    keep_answers: PromptPairs | None = None,
) -> Tensor:
    """Learn the subspace whose interchange turns the base's answer into the donor's, by gradient on pairs.

    Distributed alignment search (Geiger, Wu, Potts, Icard & Goodman 2024, arXiv:2303.02536): given the labels and the
    model's own gradient, it is on other pairs the ceiling beside which other subspaces of its rank stand. A free (d, r)
    matrix is orthonormalised by QR in every step; the loss is minus the log-probability of the donor's answer after the
    interchange. Adam, learning rate decaying linearly to zero. The model stays as it is.

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
            rows = torch.randperm(len(asked), generator=generator)[:BATCH].to(activations.device)
            batch, donors = asked.take(rows), activations[rows]

            def exchange(clean: Tensor, part: slice, donors: Tensor = donors, basis: Tensor = basis) -> Tensor:
                return mix(clean, donors[part], basis, "ablate")

            logits = edited_logits(lm, batch, hook_name, exchange)
            losses.append(-token_set_logits(logits.log_softmax(-1), getattr(batch, wanted)).mean())
        (free.grad,) = torch.autograd.grad(torch.stack(losses).mean(), [free])  # none for the model's own weights
        optimiser.step()
        schedule.step()
    return torch.linalg.qr(free.detach().cpu().double()).Q
