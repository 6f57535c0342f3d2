"""Prompts of modular addition: a pair is screened in one order and asked in the other, on pairs of its own."""

from __future__ import annotations

from typing import Any

import torch

from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.prompts.base import Prompt, Role

TASK = "sum"
FAMILY = "{} + {} ="
PAIRS_EACH = 2  # for each residue, as far as there are so many pairs on each side


def check_positions(positions: str) -> None:
    """Raise ValueError unless the exchange is at the ``=``: no other place holds the sum."""
    if positions != "last":
        raise ValueError(f"positions = {positions!r}: of a pair only the = carries the sum; choose last")


def prompts(tokenizer: Any) -> list[Prompt]:
    """Return prompts (a, b, =) in all roles, before screening; see :func:`rkcnn_lib.worlds.prompts.tasks.task_prompts`.

    An entity is an unordered pair of two numbers. It is screened as (a, b) with a < b and asked as (b, a). Selection
    prompts are of pairs that the model may have been trained on, evaluation prompts of pairs that it never was.

    Raises
    ------
    ValueError
        If the tokenizer is none of a modular-addition model.
    """
    p = len(tokenizer) - 1
    if tokenizer.get_vocab() != modadd.tokenizer(p).get_vocab():
        raise ValueError(f"relation = {TASK!r}: only a modular-addition model (`modadd`) is asked for sums")
    pairs, held_out = modadd.all_pairs(p), modadd.held_out_pairs(p)
    generator, found = torch.Generator().manual_seed(0), []
    roles: tuple[tuple[Role, bool], ...] = (("selection", False), ("evaluation", True))
    for role, side in roles:
        mine = pairs[(held_out == side) & (pairs[:, 0] < pairs[:, 1])]
        mine = mine[torch.randperm(len(mine), generator=generator)]
        count: dict[int, int] = {}
        for a, b in mine.tolist():
            answer = (a + b) % p
            if count.setdefault(answer, 0) < PAIRS_EACH:
                count[answer] += 1
                found += [_prompt(a, b, answer, p, "screening"), _prompt(b, a, answer, p, role)]
    return found


def _prompt(a: int, b: int, answer: int, p: int, role: Role) -> Prompt:
    entity = f"{min(a, b)} + {max(a, b)}"
    return Prompt(entity, f"{a} {b} =", (a, b, p), str(answer), (answer,), FAMILY, 1, role)
