"""Indirect-object identification (Wang et al. 2022, arXiv:2211.00593): "When Mary and John went to the store, John
gave a drink to" -> " Mary". Sentences and names are the project's own; names are one token each, so that a prompt
and its donor, in which the other name is repeated, differ in one token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rkcnn_lib.worlds.prompts.base import ROLES, Prompt, is_one_token, written_prompt

NAMES = (
    "Mary", "John", "Alice", "Peter", "Anna", "Paul", "Sarah", "Tom", "Emma", "James", "Laura", "David", "Kate",
    "Mark", "Susan", "Robert", "Helen", "Frank", "Maria", "George", "Julia", "Henry", "Rachel", "Simon", "Linda",
    "Charles", "Jane", "Michael", "Lisa", "Daniel",
)  # fmt: skip
# role -> sentences; {a} and {b} are introduced in this order, {} is named again and gives
SENTENCES = {
    "screening": ("When {a} and {b} went to the store, {} gave a drink to",),
    "selection": (
        "After {a} and {b} had a long talk, {} handed the keys to",
        "While {a} and {b} were at the station, {} offered a seat to",
    ),
    "evaluation": (
        "Then {a} and {b} sat in the garden, and {} passed a book to",
        "When {a} and {b} met at the market, {} gave a basket to",
    ),
}


def prompts(tokenizer: Any) -> list[Prompt]:
    """Return the task's prompts: both orders of the names (ABB and ABA), names for choosing and judging disjoint."""
    names = [name for name in NAMES if is_one_token(tokenizer, name)]
    half = len(names) // 2
    of_role = {"screening": names, "selection": names[:half], "evaluation": names[half:]}
    found = []
    for role in ROLES:
        couples = pairwise([*of_role[role], *of_role[role][:1]]) if len(of_role[role]) > 2 else ()
        for first, second in couples:
            for sentence in SENTENCES[role]:
                template = sentence.replace("{a}", first).replace("{b}", second)
                for giver, receiver in ((second, first), (first, second)):
                    found.append(written_prompt(tokenizer, template, giver, receiver, role))
    return [_over_couples(prompt) for prompt in found]


def _over_couples(prompt: Prompt) -> Prompt:
    """Take the couple as the entity: a base and its donor are of one couple, and couples are what varies."""
    couple = " and ".join(sorted((prompt.entity, prompt.answer)))
    return Prompt(couple, *(getattr(prompt, name) for name in list(Prompt.__dataclass_fields__)[1:]))
