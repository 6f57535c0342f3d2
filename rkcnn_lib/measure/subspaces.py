"""Subspaces of activation space: bases, random ones of equal rank or variance, the rowspace part, the learnt one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.causal import PromptPairs, donor_activations, edited_logits, mix
from rkcnn_lib.measure.effects import token_set_logits
from rkcnn_lib.tensors import as_matrix, number, scaled, whole


def orthonormal_basis(directions: Tensor | np.ndarray, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis (d, rank), float64 columns, of the span of some directions (r, d).

    Near-dependent rows do not count twice: singular values below ``tolerance`` times the largest are taken as zero.
    ValueError if there are no directions, or they are not finite, or all zero.
    """
    rows = scaled(as_matrix(directions, "directions"))
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > tolerance * singular[0]).sum()) if singular[0] > 0 else 0
    if rank == 0:
        raise ValueError("all directions are zero: they span nothing")
    return right[:rank].T


def leading_basis(directions: Tensor, rank: int, name: str = "A") -> Tensor:
    """Return an orthonormal basis (d, rank) of the first rows of ``directions`` (r, d) that span ``rank`` dimensions.

    Rows that add no dimension are passed over, so that subspaces are compared at equal rank, not at equal count.
    ValueError if ``rank`` is below 1 or above the width, or the rows span fewer dimensions.
    """
    directions = as_matrix(directions, name)
    whole("rank", rank, 1, directions.shape[1])
    for count in range(rank, len(directions) + 1):
        basis = orthonormal_basis(directions[:count], tolerance=1e-4)
        if basis.shape[1] == rank:
            return basis
    raise ValueError(f"rank = {rank}: {name} supplies {len(directions)} directions that span less; lower the ranks")


def captured_variance(basis: Tensor, X: Tensor) -> float:
    """Return the share of the variance of X (n, d) that lies inside the subspace ``basis`` (d, r), in [0, 1]."""
    X = scaled(as_matrix(X))
    centred = X - X.mean(0)
    total = float(centred.square().sum())
    if total == 0:
        raise ValueError("X does not vary: no subspace holds a share of its variance")
    basis = as_matrix(basis, "basis").to(centred)
    if len(basis) != X.shape[1]:
        raise ValueError(f"basis lives in {len(basis)} dimensions, X in {X.shape[1]}")
    return float((centred @ basis).square().sum()) / total


def random_basis(d: int, rank: int, generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis (d, rank) of a subspace drawn uniformly."""
    whole("rank", rank, 1, whole("d", d))
    return torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64)).Q


def random_basis_of_variance(X: Tensor, rank: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random subspace (d, rank) that holds a given share, in [0, 1], of the variance of X (n, d).

    ``span(S^t Z)`` with S the covariance and Z Gaussian is uniform at t = 0 and turns towards the leading principal
    components as t grows, towards the trailing ones as it falls; the variance inside grows monotonically with t, so
    bisection finds the t that matches, or the nearest in reach at this rank.
    """
    X = scaled(as_matrix(X))
    d = X.shape[1]
    whole("rank", rank, 1, d)
    number("share", share, "[0, 1]")
    centred = X - X.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(X))
    values = values.clamp_min(float(values[-1]) * 1e-9)
    start = torch.randn(d, rank, generator=generator, dtype=torch.float64).to(X.device)
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
    weight = scaled(as_matrix(weight, "weight"))
    if weight.shape[0] != basis.shape[0]:
        raise ValueError(f"the subspace lives in {basis.shape[0]} dimensions, the weight reads {tuple(weight.shape)}")
    left, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    read = left[:, singular > tolerance * singular[0]]
    projected = read @ (read.T @ basis.to(read))
    if float(projected.norm(dim=0).max()) <= tolerance:
        return None
    return orthonormal_basis(projected.T, tolerance)


def align_subspace(
    lm: Any,
    pairs: PromptPairs,
    hook_name: str,
    rank: int,
    *,
    steps: int = 150,
    batch_size: int = 32,
    lr: float = 0.05,
    seed: int = 0,
    start: Tensor | None = None,
    keep_answers: PromptPairs | None = None,
) -> tuple[Tensor, list[float]]:
    """Learn the rank-r subspace whose interchange turns the base's answer into the donor's, by gradient on pairs.

    Distributed alignment search (Geiger, Wu, Potts, Icard & Goodman 2024, arXiv:2303.02536): given the labels and the
    model's own gradient, it is on other pairs the ceiling beside which other subspaces of its rank stand. A free (d, r)
    matrix is orthonormalised by QR in every step; the loss is minus the log-probability of the donor's answer after the
    interchange. Adam, learning rate decaying linearly to zero. The model stays as it is.

    `seed` draws the batches and the start, a random subspace unless ``start`` (d, rank) is given: the span of the class
    means, say. ``keep_answers`` are pairs whose base answer must *not* follow the donor (another attribute is asked):
    their loss for the base's own answer is added, the multi-task form of RAVEL (Huang et al. 2024, arXiv:2402.17700).
    Returns the basis (d, rank), float64 with orthonormal columns, and the training loss of each step, in nats.
    """
    steps, batch_size, lr = whole("steps", steps), whole("batch_size", batch_size), number("lr", lr, "(0, inf)")
    tasks = [(pairs, donor_activations(lm, pairs, hook_name), "foil")]
    if keep_answers is not None:
        tasks.append((keep_answers, donor_activations(lm, keep_answers, hook_name), "answer"))
    d = tasks[0][1].shape[-1]
    rank = whole("rank", rank, 1, d)
    generator = torch.Generator().manual_seed(seed)
    device = pairs.base.device
    if start is not None and start.shape != (d, rank):
        raise ValueError(f"start is {tuple(start.shape)}: ({d}, {rank}) is needed")
    # columns of norm sqrt(d), as random ones have, so that the learning rate means the same from either start
    first = torch.randn(d, rank, generator=generator) if start is None else start.float() * d**0.5
    free = first.to(device).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    history = []
    with _frozen(lm):
        for _ in range(steps):
            basis = torch.linalg.qr(free).Q
            losses = [_loss(lm, *task, hook_name, basis, batch_size, generator) for task in tasks]
            loss = torch.stack(losses).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            history.append(loss.item())
    return torch.linalg.qr(free.detach().cpu().double()).Q, history


def _loss(
    lm: Any, pairs: PromptPairs, donated: Tensor, wanted: str, hook_name: str, basis: Tensor, batch_size: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    rows = torch.randperm(len(pairs), generator=generator)[:batch_size].to(donated.device)
    batch, donors = pairs.take(rows), donated[rows]
    logits = edited_logits(
        lm, batch, hook_name, lambda clean, part: mix(clean, donors[part], basis, "ablate"), batch_size
    )
    return -token_set_logits(logits.log_softmax(-1), getattr(batch, wanted)).mean()


@contextmanager
def _frozen(lm: Any) -> Iterator[None]:
    """Keep gradients off the model's own weights, and put back which of them had any."""
    weights = [w for w in lm.parameters() if w.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
