"""Fact prompts for any language model: written tables, one template, single-token answers, screened.

The embedded model has facts of its own (:func:`rkcnn_lib.worlds.atlas.fact_prompts`); for other models the
tables below are turned into prompts, of which only those are kept whose answer is one token of the model's
tokenizer and which the model answers correctly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "Russia": "Moscow", "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna",
    "Ireland": "Dublin", "Poland": "Warsaw", "Portugal": "Lisbon", "Sweden": "Stockholm", "Norway": "Oslo",
    "Cuba": "Havana", "Iran": "Tehran", "Iraq": "Baghdad", "Peru": "Lima", "Kenya": "Nairobi",
    "Thailand": "Bangkok", "Hungary": "Budapest", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "England": "London", "Canada": "Ottawa", "Turkey": "Ankara", "Syria": "Damascus", "Lebanon": "Beirut",
    "Vietnam": "Hanoi", "Belgium": "Brussels", "Ukraine": "Kiev", "Libya": "Tripoli", "Chile": "Santiago",
}  # fmt: skip
LANDMARKS = {
    "The Eiffel Tower": "Paris", "The Colosseum": "Rome", "Big Ben": "London", "The Kremlin": "Moscow",
    "The Parthenon": "Athens", "The Brandenburg Gate": "Berlin", "The Forbidden City": "Beijing",
    "The Louvre": "Paris", "The Statue of Liberty": "New", "The Space Needle": "Seattle",
    "The Prado Museum": "Madrid", "The Hagia Sophia": "Istanbul", "Buckingham Palace": "London",
    "The Golden Gate Bridge": "San", "The White House": "Washington", "The Western Wall": "Jerusalem",
    "The Vatican": "Rome", "The Empire State Building": "New", "The Sydney Opera House": "Sydney",
}  # fmt: skip
# relation -> (table, template to choose A on, template to judge A on)
RELATIONS = {
    "capital": (CAPITALS, "{subject}'s capital is the city of", "The capital of {subject} is the city of"),
    "landmark_city": (LANDMARKS, "{subject} stands in the city of", "{subject} is located in the city of"),
}


@dataclass(frozen=True)
class Fact:
    """A prompt, its token ids, and the single token that completes it."""

    subject: str
    prompt: str
    ids: tuple[int, ...]
    answer: str
    answer_id: int


def fact_prompts(model: str, tokenizer: Any, relation: str, held_out: bool) -> list[Fact]:
    """Return a model's fact prompts, before screening.

    Parameters
    ----------
    model : str
        ``"atlas"`` takes the embedded model's own facts, anything else the written tables.
    tokenizer
        The model's tokenizer.
    relation : str
        One of :data:`RELATIONS`, or for atlas one of its own relations.
    held_out : bool
        False: the templates on which subspaces are chosen; True: those on which they are judged.

    Raises
    ------
    ValueError
        For an unknown relation (the message lists the known ones), or if no answer is a single token.
    """
    if model == "atlas":
        from rkcnn_lib.worlds import atlas

        if relation not in atlas.relations():
            raise ValueError(f"relation = {relation!r}: atlas knows {', '.join(atlas.relations())}")
        found = atlas.fact_prompts(relation, held_out=held_out)
        return [Fact(f.subject, f.prompt, tuple(f.ids), f.answer, f.answer_id) for f in found]
    if relation not in RELATIONS:
        raise ValueError(f"relation = {relation!r}: known for {model} are {', '.join(RELATIONS)}")
    table, chosen_on, judged_on = RELATIONS[relation]
    template = judged_on if held_out else chosen_on
    facts = []
    for subject, answer in table.items():
        answer_ids = tokenizer.encode(" " + answer, add_special_tokens=False)
        if len(answer_ids) == 1:
            prompt = template.format(subject=subject)
            facts.append(Fact(subject, prompt, tuple(tokenizer.encode(prompt)), answer, answer_ids[0]))
    if not facts:
        raise ValueError(f"relation = {relation!r}: no answer is a single token of {model}'s tokenizer")
    return facts


@torch.no_grad()
def screen(lm: Any, facts: list[Fact]) -> list[Fact]:
    """Keep the facts that the model answers correctly (top-1)."""
    device = next(lm.parameters()).device
    kept = []
    for fact in facts:
        logits = lm(torch.tensor([fact.ids], device=device), return_type="logits")
        if int(logits[0, -1].argmax()) == fact.answer_id:
            kept.append(fact)
    return kept


def pair_up(facts: list[Fact], n_pairs: int, seed: int) -> list[tuple[Fact, Fact]]:
    """Draw (base, donor) pairs of equally long prompts with different answers, without repeats, seeded."""
    candidates = [
        (base, donor)
        for base in facts
        for donor in facts
        if base.answer_id != donor.answer_id and len(base.ids) == len(donor.ids)
    ]
    if not candidates:
        raise ValueError(f"{len(facts)} facts give no pair of equal length with different answers")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return [candidates[i] for i in order[:n_pairs]]
