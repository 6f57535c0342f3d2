"""The prompts of 06: screened, split in three sets that never overlap, paired, as tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rkcnn_lib.measure.causal import NO_TOKEN, PromptPairs
from rkcnn_lib.protocols import rows_that_count
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.worlds.prompts.base import Prompt, pair_up, screen
from rkcnn_lib.worlds.prompts.tasks import task_prompts

MIN_ENTITIES = 4


@dataclass(frozen=True)
class Pairing:
    """Base and donor prompts, and the same as tensors."""

    drawn: list[tuple[Prompt, Prompt]]
    pairs: PromptPairs

    @property
    def bases(self) -> list[str]:
        """The entity of each base."""
        return [base.entity for base, _ in self.drawn]

    @property
    def donors(self) -> list[str]:
        """The entity of each donor."""
        return [donor.entity for _, donor in self.drawn]

    @property
    def answers(self) -> list[str]:
        """The class of each base's answer."""
        return [base.answer for base, _ in self.drawn]

    @property
    def foils(self) -> list[str]:
        """The class of each donor's answer."""
        return [donor.answer for _, donor in self.drawn]


@dataclass(frozen=True)
class Prompts:
    """What the model knows, asked in three sets of prompts that share none.

    ``known`` of ``asked`` entities were answered correctly in every screening prompt. ``training`` pairs, of
    selection prompts, are what subspaces are learnt and chosen on; ``judged`` pairs, of evaluation prompts, are
    what they are judged on. ``entities_held_out``: no entity is in both.
    """

    asked: int
    known: int
    screening: list[Prompt]
    selection: list[Prompt]
    evaluation: list[Prompt]
    training: Pairing
    judged: Pairing
    entities_held_out: bool


def known_prompts(lm: Any, p: CausalChecks, like: Prompts | None = None) -> Prompts:
    """Screen a task's entities by the model's own answers, and pair up the prompts about those it knows.

    Parameters
    ----------
    lm : TransformerBridge
    p : CausalChecks
    like : Prompts, optional
        Ask ``p.isolated`` instead of ``p.relation``, of the same entities on the same sides.

    Raises
    ------
    ValueError
        If fewer than four entities of a side are known, for there is nothing to explain then, or if the prompts on
        which subspaces are chosen span fewer dimensions than a rank.
    """
    task, sides = p.relation, None
    if like is not None:
        task, sides = p.isolated, ({x.entity for x in like.selection}, {x.entity for x in like.evaluation})
    asked = task_prompts(p.model, lm.tokenizer, task, sides)
    by_role = {role: [x for x in asked if x.role == role] for role in ("screening", "selection", "evaluation")}
    right = {x.text for x in screen(lm, by_role["screening"])}
    entities = {x.entity for x in by_role["screening"]}
    known = entities - {x.entity for x in by_role["screening"] if x.text not in right}
    selection, evaluation = (
        [x for x in by_role[role] if x.entity in known and _may_be_exchanged(lm, x, p.positions)]
        for role in ("selection", "evaluation")
    )
    for role, usable in (("selection", selection), ("evaluation", evaluation)):
        if len({x.entity for x in usable}) < MIN_ENTITIES:
            raise ValueError(
                f"relation = {task!r}: {p.model} knows {len(known)} of {len(entities)} entities, too few of them for "
                f"{role} (nothing is exchanged at position 0 or at special tokens, on which no SAE is trained); choose "
                "another relation, positions or model"
            )
    check_disjoint(by_role["screening"], selection, evaluation)
    spanned = (len(selection) - 1) * (2 if p.positions == "both" else 1)  # each position is centred
    if like is None and max(p.ranks) > spanned:
        raise ValueError(f"ranks = {p.ranks}: the {len(selection)} selection prompts span at most {spanned} dimensions")
    device = next(lm.parameters()).device
    sets = [pair_up(selection, 4 * p.n_pairs, seed=0), pair_up(evaluation, p.n_pairs, seed=0)]
    return Prompts(
        len(entities), len(known), by_role["screening"], selection, evaluation,
        *(Pairing(drawn, as_tensors(drawn, p.positions, device)) for drawn in sets),
        not {x.entity for x in selection} & {x.entity for x in evaluation},
    )  # fmt: skip


def shared_prompts(*sets: list[Prompt]) -> int:
    """Return how many prompts are in more than one of the sets."""
    texts = [{x.text for x in part} for part in sets]
    return sum(map(len, texts)) - len(set().union(*texts))


def check_disjoint(*sets: list[Prompt]) -> None:
    """Raise AssertionError if a prompt is in two of the sets."""
    if shared_prompts(*sets):
        raise AssertionError("screening, selection and evaluation prompts overlap: every result would be flattered")


def as_tensors(drawn: list[tuple[Prompt, Prompt]], positions: str = "both", device: Any = "cpu") -> PromptPairs:
    """Return pairs as tensors, the exchange being at the entity's last token, the last one, or both of them."""
    bases, donors = zip(*drawn, strict=True)
    width = max(len(x.ids) for x in bases)
    n_answers = max(len(x.answer_ids) for x in (*bases, *donors))

    def rows(values: Iterable[tuple[int, ...]], size: int, fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (size - len(row))] for row in values], device=device)

    return PromptPairs(
        base=rows((x.ids for x in bases), width, 0),
        donor=rows((x.ids for x in donors), width, 0),
        answer=rows((x.answer_ids for x in bases), n_answers, NO_TOKEN),
        foil=rows((x.answer_ids for x in donors), n_answers, NO_TOKEN),
        positions=torch.tensor([_exchanged(x, positions) for x in bases]),
        lengths=torch.tensor([len(x.ids) for x in bases]),
    )


def _exchanged(prompt: Prompt, positions: str) -> list[int]:
    """Return where a prompt's activations are exchanged."""
    entity, last = prompt.entity_position, len(prompt.ids) - 1
    return {"entity": [entity], "last": [last], "both": [entity, last]}[positions]


def _may_be_exchanged(lm: Any, prompt: Prompt, positions: str) -> bool:
    return bool(rows_that_count(lm, torch.tensor([prompt.ids]))[0, _exchanged(prompt, positions)].all())
