"""The tasks that a model can be asked, by name: facts, agreement, indirect-object identification, sums.

Sentences and words are the project's own (``assets/prompts.toml``); atlas has its own of both. What a model knows of
them is for :func:`rkcnn_lib.worlds.prompts.base.screen` to find.

*Agreement* across a noun of the other number: "The player near the coaches" -> a singular verb (Linzen, Dupoux &
Goldberg 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", TACL 4). The answer is a class
of tokens, singular or plural verbs; base and donor differ in the number of one noun.

*Indirect-object identification* (Wang et al. 2022, arXiv:2211.00593): "When Mary and John went to the store, John gave
a drink to" -> " Mary". Names are one token each, so that a prompt and its donor, in which the other name is repeated,
differ in one token.

*Sums* modulo p: a pair is screened in one order and asked in the other.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.prompts.base import ROLES, Prompt, Role, Sides, hold_out_entities, is_one_token, written_prompt

TABLES = tomllib.loads((Path(__file__).parents[1] / "assets/prompts.toml").read_text(encoding="utf-8"))


def _table(text: str) -> dict[str, str]:
    """Return the pairs of "one: other; one: other"."""
    return dict(entry.split(": ") for entry in " ".join(text.split()).split("; "))


# relation -> (table, sentences to screen, to choose A and to judge it on)
RELATIONS = {name: (_table(facts["table"]), *facts["sentences"]) for name, facts in TABLES["facts"].items()}
NOUNS = _table(TABLES["agreement"]["nouns"])
ATTRACTORS = tuple(_table(TABLES["agreement"]["attractors"]).items())
VERBS = {"singular": ("is", "was", "has"), "plural": ("are", "were", "have")}
PREPOSITIONS = {"screening": "near", "selection": "beside", "evaluation": "behind"}
FRAME, ATLAS_FRAME = "I know that the {{}} {} the", "The {{}} {} the"  # a bare start leaves small models too free
SUM = "sum"
SUM_FAMILY = "{} + {} ="
PAIRS_EACH = 2  # of sums for each residue, as far as there are so many pairs on each side


def task_prompts(model: str, tokenizer: Any, task: str, sides: Sides | None = None) -> list[Prompt]:
    """Return a task's prompts for a model, in all three roles, before screening.

    ``"atlas"`` has facts, sentences and verbs of its own; every other model gets the written ones, without the words
    that are not one token of its ``tokenizer`` where one is needed.

    ``task`` is a relation of facts, ``"agreement"`` (a verb owes its subject a number, across a noun of the other
    number), ``"ioi"`` (indirect-object identification; not for atlas) or ``"sum"`` (modular addition; for its models
    only). ``sides`` are the entities to choose and to judge on, for a second relation of the same entities; facts only.

    ValueError for an unknown task (the message lists the known ones), or one without a prompt for this tokenizer.
    """
    if task == SUM:
        prompts = _sum_prompts(tokenizer)
    elif task == "agreement":
        prompts = _agreement_prompts(model, tokenizer)
    elif task == "ioi" and model != "atlas":
        prompts = _indirect_object_prompts(tokenizer)
    else:
        prompts = _fact_prompts(model, tokenizer, task, sides)
    if {p.role for p in prompts} != set(ROLES):
        raise ValueError(f"task {task!r}: {model}'s tokenizer leaves no prompt in some role; choose another task")
    if len({p.text for p in prompts}) < len(prompts):
        raise AssertionError(f"task {task!r}: screening, selection and evaluation prompts overlap")
    return prompts


def _fact_prompts(model: str, tokenizer: Any, relation: str, sides: Sides | None) -> list[Prompt]:
    """Return prompts that show no entity to both the choice of A and its judgement.

    Of atlas's four sentences a relation, each entity is left out of one in the training text: that one judges; of
    the other three one screens and two choose. Of the written tables' three sentences each has one role.
    """
    if model == "atlas":
        prompts = _atlas_prompts(relation)
    elif relation in RELATIONS:
        table, *templates = RELATIONS[relation]
        prompts = [
            written_prompt(tokenizer, template, entity, answer, role)
            for role, template in zip(ROLES, templates, strict=True)
            for entity, answer in table.items()
            if is_one_token(tokenizer, answer)
        ]
    else:
        raise ValueError(f"relation = {relation!r}: known for {model} are {', '.join(RELATIONS)}, agreement, ioi")
    chosen, judged = sides or hold_out_entities(prompts)
    allowed = {"screening": chosen | judged, "selection": chosen, "evaluation": judged}
    return [p for p in prompts if p.entity in allowed[p.role]]


def _atlas_prompts(relation: str) -> list[Prompt]:
    from rkcnn_lib.worlds import atlas

    if relation not in atlas.relations():
        raise ValueError(f"relation = {relation!r}: atlas knows {', '.join(atlas.relations())}, agreement")
    return atlas.fact_prompts(relation, held_out=False) + atlas.fact_prompts(relation, held_out=True)


def _agreement_prompts(model: str, tokenizer: Any) -> list[Prompt]:
    """Nouns for choosing and judging are disjoint; atlas's prompts are made of its own words."""
    if model == "atlas":
        return _atlas_agreement_prompts()
    nouns = {one: many for one, many in NOUNS.items() if all(is_one_token(tokenizer, n) for n in (one, many))}
    prompts = []
    for role in ROLES:
        for i, (one, many) in enumerate(nouns.items()):
            if not _takes_part(role, i):
                continue
            attractors = ATTRACTORS[i % len(ATTRACTORS)]
            for noun, number, other in ((one, "singular", attractors[1]), (many, "plural", attractors[0])):
                sentence = FRAME.format(PREPOSITIONS[role])
                prompt = written_prompt(tokenizer, f"{sentence} {other}", noun, number, role, accepted=VERBS[number])
                # A noun is an entity in both its numbers, and all nouns of a sentence are each other's donors.
                prompts.append(replace(prompt, entity=one, family=sentence))
    return prompts


def _takes_part(role: str, i: int) -> bool:
    """Screen on all nouns, choose on every other one, judge on the rest."""
    return role == "screening" or (i % 2 == 0) == (role == "selection")


def _atlas_agreement_prompts() -> list[Prompt]:
    from rkcnn_lib.worlds.atlas.documents import grammar
    from rkcnn_lib.worlds.atlas.grammar import BOS
    from rkcnn_lib.worlds.atlas.world import third_person

    known = grammar()
    verbs = {verb for t in known.world.topics.values() for verb in (*t.verbs, *t.transitive_verbs)}
    accepted = {
        "singular": tuple(known.ids[third_person(verb)] for verb in sorted(verbs)),
        "plural": tuple(known.ids[verb] for verb in sorted(verbs)),
    }
    prompts = []
    for topic in known.world.topics.values():
        for i, noun in enumerate(topic.nouns):
            other = topic.nouns[(i + 1) % len(topic.nouns)]  # of the same topic, as the grammar has it
            forms = ((noun, "singular", third_person(other)), (third_person(noun), "plural", other))
            for role in ROLES:
                for word, number, attractor in forms if _takes_part(role, i) else ():
                    sentence = ATLAS_FRAME.format(PREPOSITIONS[role])
                    words = (*sentence.format(word).split(), attractor)
                    ids = tuple(known.ids[w] for w in (BOS, *words))
                    prompts.append(Prompt(noun, " ".join(words), ids, number, accepted[number], sentence, 2, role))
    return prompts


def _indirect_object_prompts(tokenizer: Any) -> list[Prompt]:
    """Both orders of the names (ABB and ABA); names for choosing and judging are disjoint."""
    tables = TABLES["indirect_object"]
    names = [name for name in tables["names"].split() if is_one_token(tokenizer, name)]
    half = len(names) // 2
    of_role = {"screening": names, "selection": names[:half], "evaluation": names[half:]}
    prompts = []
    for role in ROLES:
        couples = pairwise([*of_role[role], *of_role[role][:1]]) if len(of_role[role]) > 2 else ()
        for first, second in couples:
            couple = " and ".join(sorted((first, second)))  # the entity: a base and its donor are of one couple
            for sentence in tables[role]:
                template = sentence.replace("{a}", first).replace("{b}", second)
                for giver, receiver in ((second, first), (first, second)):
                    prompt = written_prompt(tokenizer, template, giver, receiver, role)
                    prompts.append(replace(prompt, entity=couple))
    return prompts


def check_positions(positions: str) -> None:
    """Raise ValueError unless the exchange is at the ``=``: no other place holds the sum."""
    if positions != "last":
        raise ValueError(f"positions = {positions!r}: of a pair only the = carries the sum; choose last")


def _sum_prompts(tokenizer: Any) -> list[Prompt]:
    """An entity is an unordered pair of two numbers. It is screened as (a, b) with a < b and asked as (b, a).

    Selection prompts are of pairs that the model may have been trained on, evaluation prompts of others.
    """
    p = len(tokenizer) - 1
    if tokenizer.get_vocab() != modadd.tokenizer(p).get_vocab():
        raise ValueError(f"relation = {SUM!r}: only a modular-addition model (`modadd`) is asked for sums")
    pairs, held_out = modadd.all_pairs(p), modadd.held_out_pairs(p)
    generator, prompts = torch.Generator().manual_seed(0), []
    roles: tuple[tuple[Role, bool], ...] = (("selection", False), ("evaluation", True))
    for role, side in roles:
        drawn = pairs[(held_out == side) & (pairs[:, 0] < pairs[:, 1])]
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        count: dict[int, int] = {}
        for a, b in drawn.tolist():
            answer = (a + b) % p
            if count.setdefault(answer, 0) < PAIRS_EACH:
                count[answer] += 1
                prompts += [_sum_prompt(a, b, answer, p, "screening"), _sum_prompt(b, a, answer, p, role)]
    return prompts


def _sum_prompt(a: int, b: int, answer: int, p: int, role: Role) -> Prompt:
    entity = f"{min(a, b)} + {max(a, b)}"
    return Prompt(entity, f"{a} {b} =", (a, b, p), str(answer), (answer,), SUM_FAMILY, 1, role)
