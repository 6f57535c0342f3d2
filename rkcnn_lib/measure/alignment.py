"""Distributed alignment search: the subspace whose exchange moves the answer best, learnt by gradient on pairs.

Geiger, Wu, Potts, Icard & Goodman 2024, "Finding alignments between interpretable causal variables and distributed
neural representations" (CLeaR; arXiv:2303.02536). It is given the labels and the model's own gradient, so on pairs
it was not trained on it is the ceiling beside which other subspaces of its rank stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import PromptPairs, donor_activations, edited_logits, mix
from rkcnn_lib.measure.effects import token_set_logits
from rkcnn_lib.tensors import number, whole


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
    """Learn the rank-r subspace whose interchange turns the base's answer into the donor's.

    A free (d, r) matrix is orthonormalised by QR in every step; the loss is minus the log-probability of the
    donor's answer after the interchange. Adam, learning rate decaying linearly to zero. The model stays as it is.

    Parameters
    ----------
    lm : TransformerBridge
    pairs : PromptPairs
        Training pairs only: judge the result on others.
    hook_name : str
    rank : int
        1 to the width of the activations.
    steps, batch_size, lr, seed
        Of the training; the seed draws the start, unless one is given, and the batches.
    start : (d, rank) tensor, optional
        Where to begin: the span of the class means, say. By default a random subspace.
    keep_answers : PromptPairs, optional
        Pairs whose base answer must *not* follow the donor (another attribute is asked): their loss for the base's
        own answer is added, the multi-task form of RAVEL (Huang et al. 2024, arXiv:2402.17700).

    Returns
    -------
    basis : (d, rank) float64 tensor with orthonormal columns
    history : list of float
        The training loss of each step, in nats.

    Raises
    ------
    ValueError
        For a rank above the width or below 1, or no steps.
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
        lm, batch, hook_name, lambda clean, here: mix(clean, donors[here], basis, "ablate"), batch_size
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
