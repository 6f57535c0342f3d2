"""Prompts with a known answer for causal checks: three disjoint sets of them, each answer one token, paired up.

A task gives prompts in three roles. *Screening* prompts tell which entities the model knows; on *selection*
prompts subspaces are chosen and learnt; on *evaluation* prompts they are judged, in other sentences and, where
answers are shared between entities, about other entities. No prompt has two roles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rkcnn_lib.protocols import LanguageModel

Role = Literal["screening", "selection", "evaluation"]
ROLES: tuple[Role, ...] = ("screening", "selection", "evaluation")
Sides = tuple[set[str], set[str]]  # entities to choose on, entities to judge on
MIN_HELD_OUT = 8  # evaluation entities below which entities are not held out


@dataclass(frozen=True)
class Prompt:
    """A sentence's beginning, its token ids, and what completes it."""

    entity: str  # what the prompt asks about; intervals run over entities
    text: str
    ids: tuple[int, ...]
    answer: str  # the class of the answer
    answer_ids: tuple[int, ...]  # the tokens that count as it: one, but for classes such as "plural verb"
    family: str  # prompts of one family are each other's donors: the same sentence but for the entity
    entity_position: int  # place of the entity's last token in `ids`
    role: Role


def answer_token(tokenizer: Any, prompt: str, answer: str) -> int:
    """Return the one token that ``" " + answer`` adds to a prompt; ValueError unless it adds just one."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(f"{prompt} {answer}")
    if after[: len(before)] != before or len(after) != len(before) + 1:
        added = after[len(before) :] if after[: len(before)] == before else after
        raise ValueError(
            f"answer {answer!r} is {len(added)} tokens behind {prompt!r}: choose answers of one token, or drop it"
        )
    return after[-1]


def is_one_token(tokenizer: Any, word: str) -> bool:
    """Say whether a word within a sentence is one token of the tokenizer."""
    return len(tokenizer.encode("in " + word)) == len(tokenizer.encode("in")) + 1


def written_prompt(
    tokenizer: Any, template: str, entity: str, answer: str, role: Role, accepted: Iterable[str] = ()
) -> Prompt:
    """Return the prompt of a template with ``{}`` for the entity, its tokenisation checked.

    ``accepted`` are the words that count as the answer, the answer itself where none are given. ValueError if one is
    not one token, or the entity's tokens merge with its surroundings.
    """
    text = template.format(entity)
    ids = tuple(tokenizer.encode(text))
    head = tuple(tokenizer.encode(text[: text.rindex(entity) + len(entity)]))
    if ids[: len(head)] != head:
        raise ValueError(f"{entity!r} in {text!r}: its tokens merge with what follows; change the template")
    answers = tuple(answer_token(tokenizer, text, word) for word in (tuple(accepted) or (answer,)))
    return Prompt(entity, text, ids, answer, answers, template, len(head) - 1, role)


@torch.no_grad()
def screen(lm: LanguageModel, prompts: list[Prompt], batch_size: int = 16) -> list[Prompt]:
    """Keep the prompts that the model answers correctly (its most likely token counts as the answer)."""
    device = next(lm.parameters()).device
    kept = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(len(prompt.ids) for prompt in batch)
        tokens = torch.tensor([[*p.ids, *[0] * (width - len(p.ids))] for p in batch], device=device)
        best = lm(tokens, return_type="logits").argmax(-1)  # what fills up a row on the right is never looked at
        kept += [p for p, row in zip(batch, best.tolist(), strict=True) if row[len(p.ids) - 1] in p.answer_ids]
    return kept


def hold_out_entities(prompts: list[Prompt]) -> Sides:
    """Return the entities to choose on and those to judge on.

    The entities of each answer take turns, so that every answer with two entities is on both sides. If that leaves
    fewer than 8 to judge on, because most answers have one entity only, all entities are on both sides, and
    sentences alone are held out.
    """
    sides: tuple[set[str], set[str]] = (set(), set())
    count: dict[str, int] = {}
    for entity, answer in dict.fromkeys((p.entity, p.answer) for p in prompts):
        if entity in sides[0] | sides[1]:
            continue
        sides[count.get(answer, 0) % 2].add(entity)
        count[answer] = count.get(answer, 0) + 1
    everything = sides[0] | sides[1]
    return sides if len(sides[1]) >= MIN_HELD_OUT else (everything, everything)


def pair_up(prompts: list[Prompt], n_pairs: int, seed: int) -> list[tuple[Prompt, Prompt]]:
    """Draw (base, donor) pairs of one family with different answers and equal length, without repeats, seeded.

    Each prompt is a base as often as any other, as far as its donors last. ValueError if there is no such pair.
    """
    generator = torch.Generator().manual_seed(seed)
    families: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.family, []).append(prompt)
    donors = {}
    for base in prompts:
        differing = [p for p in families[base.family] if p.answer != base.answer]
        fitting = [p for p in differing if len(p.ids) == len(base.ids) and p.entity_position == base.entity_position]
        order = torch.randperm(len(fitting), generator=generator).tolist()
        donors[base] = [fitting[i] for i in order]
    if not any(donors.values()):
        lengths = sorted({len(p.ids) for p in prompts})
        raise ValueError(
            f"{len(prompts)} prompts of {lengths} tokens give no pair: donors must be of the same sentence, "
            "with names of equal token length and another answer"
        )
    pairs: list[tuple[Prompt, Prompt]] = []
    for turn in range(max(map(len, donors.values()))):
        bases = [base for base in donors if len(donors[base]) > turn]
        order = torch.randperm(len(bases), generator=generator).tolist()
        pairs += [(bases[i], donors[bases[i]][turn]) for i in order]
        if len(pairs) >= n_pairs:
            break
    return pairs[:n_pairs]
