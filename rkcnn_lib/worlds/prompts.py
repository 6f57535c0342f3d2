"""Prompts with a known answer for causal checks, by task: facts, agreement, indirect-object identification, sums.

A task gives prompts in three roles. *Screening* prompts tell which entities the model knows; on *selection*
prompts subspaces are chosen and learnt; on *evaluation* prompts they are judged, in other sentences and, where
answers are shared between entities, about other entities. No prompt has two roles. Sentences and words are the
project's own (``assets/prompts.toml``); atlas has its own of both.

*Agreement* across a noun of the other number: "The player near the coaches" -> a singular verb (Linzen, Dupoux &
Goldberg 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", TACL 4). The answer is a class
of tokens; base and donor differ in the number of one noun.

*Indirect-object identification* (Wang et al. 2022, arXiv:2211.00593): "When Mary and John went to the store, John gave
a drink to" -> " Mary". Names are one token each, so that a prompt and its donor, in which the other name is repeated,
differ in one token.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.worlds import atlas
from rkcnn_lib.worlds.atlas.world import TABLES as ATLAS_TABLES
from rkcnn_lib.worlds.atlas.world import third_person
from rkcnn_lib.worlds.models import modadd

Role = Literal["screening", "selection", "evaluation"]
ROLES: tuple[Role, ...] = ("screening", "selection", "evaluation")
Sides = tuple[set[str], set[str]]  # entities to choose on, entities to judge on
MIN_HELD_OUT = 8  # evaluation entities below which entities are not held out
SCREENED_AT_ONCE = 16

TABLES = tomllib.loads((Path(__file__).parent / "assets/prompts.toml").read_text(encoding="utf-8"))


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
PAIRS_EACH = 2  # of sums for each residue, as far as there are so many pairs on each side


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


def task_prompts(model: str, tokenizer: Any, task: str, sides: Sides | None = None) -> list[Prompt]:
    """Return a task's prompts for a model, in all three roles, before screening.

    ``task`` is a relation of facts, "agreement", "ioi" (not for atlas) or "sum" (for models of modular addition only).
    Words that are not one token of the ``tokenizer`` are left out where one is needed. ``sides`` are the entities to
    choose and to judge on, for a second relation of the same entities; facts only. ValueError if the tokenizer leaves
    no prompt in some role.
    """
    if task == SUM:
        prompts = _sum_prompts(len(tokenizer) - 1)
    elif task == "agreement":
        prompts = _agreement_prompts(model, tokenizer)
    elif task == "ioi":
        prompts = _indirect_object_prompts(tokenizer)
    else:
        prompts = _fact_prompts(model, tokenizer, task, sides)
    if {p.role for p in prompts} != set(ROLES):
        raise ValueError(f"task {task!r}: {model}'s tokenizer leaves no prompt in some role; choose another task")
    return prompts


@torch.no_grad()
def screen(lm: LanguageModel, prompts: list[Prompt]) -> list[Prompt]:
    """Keep the prompts that the model answers correctly (its most likely token counts as the answer)."""
    device = next(lm.parameters()).device
    kept = []
    for start in range(0, len(prompts), SCREENED_AT_ONCE):
        batch = prompts[start : start + SCREENED_AT_ONCE]
        width = max(len(prompt.ids) for prompt in batch)
        tokens = torch.tensor([[*p.ids, *[0] * (width - len(p.ids))] for p in batch], device=device)
        best = lm(tokens, return_type="logits").argmax(-1)  # what fills up a row on the right is never looked at
        kept += [p for p, row in zip(batch, best.tolist(), strict=True) if row[len(p.ids) - 1] in p.answer_ids]
    return kept


def pair_up(prompts: list[Prompt], n_pairs: int, seed: int) -> list[tuple[Prompt, Prompt]]:
    """Draw (base, donor) pairs of one family with different answers and equal length, without repeats, seeded.

    Each prompt is a base as often as any other, as far as its donors last. ValueError if there is no such pair.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(some: list[Prompt]) -> list[Prompt]:
        return [some[i] for i in torch.randperm(len(some), generator=generator).tolist()]

    def shape(p: Prompt) -> tuple[str, int, int]:
        return p.family, len(p.ids), p.entity_position

    donors = {b: shuffled([p for p in prompts if shape(p) == shape(b) and p.answer != b.answer]) for b in prompts}
    if not any(donors.values()):
        lengths = sorted({len(p.ids) for p in prompts})
        raise ValueError(
            f"{len(prompts)} prompts of {lengths} tokens give no pair: donors must be of the same sentence, "
            "with names of equal token length and another answer"
        )
    pairs: list[tuple[Prompt, Prompt]] = []
    for turn in range(max(map(len, donors.values()))):
        bases = shuffled([base for base in donors if len(donors[base]) > turn])
        pairs += [(base, donors[base][turn]) for base in bases]
        if len(pairs) >= n_pairs:
            break
    return pairs[:n_pairs]


# ---- facts ----------------------------------------------------------------------------------------------------------


def is_one_token(tokenizer: Any, word: str) -> bool:
    """Say whether a word within a sentence is one token of the tokenizer."""
    return len(tokenizer.encode("in " + word)) == len(tokenizer.encode("in")) + 1


def written_prompt(
    tokenizer: Any, template: str, entity: str, answer: str, role: Role, accepted: Iterable[str | int] = ()
) -> Prompt:
    """Return the prompt of a template with ``{}`` for the entity, its tokenisation checked.

    ``accepted`` are the words, or token ids, that count as the answer; by default the answer alone. ValueError if a
    word is not one token, or the entity's tokens merge with its surroundings.
    """
    text = template.format(entity)
    ids = tuple(tokenizer.encode(text))
    head = tuple(tokenizer.encode(text[: text.rindex(entity) + len(entity)]))
    if ids[: len(head)] != head:
        raise ValueError(f"{entity!r} in {text!r}: its tokens merge with what follows; change the template")
    answers = [token for token in accepted if isinstance(token, int)]
    for word in () if answers else accepted or (answer,):
        *before, last = tokenizer.encode(f"{text} {word}")
        if tuple(before) != ids:
            raise ValueError(f"answer {word!r} is not one token behind {text!r}: choose answers of one token")
        answers.append(last)
    return Prompt(entity, text, ids, answer, tuple(answers), template, len(head) - 1, role)


def _fact_prompts(model: str, tokenizer: Any, relation: str, sides: Sides | None) -> list[Prompt]:
    """Return prompts that show no entity to both the choice of A and its judgement.

    Of atlas's four sentences a relation, each entity is left out of one in the training text: that one judges; of
    the other three one screens and two choose. Of the written tables' three sentences each has one role.
    """
    if model == "atlas":
        prompts = [p for held_out in (False, True) for p in atlas_fact_prompts(tokenizer, relation, held_out)]
    else:
        table, *templates = RELATIONS[relation]
        prompts = [
            written_prompt(tokenizer, template, entity, answer, role)
            for role, template in zip(ROLES, templates, strict=True)
            for entity, answer in table.items()
            if is_one_token(tokenizer, answer)
        ]
    chosen, judged = sides or hold_out_entities(prompts)
    allowed = {"screening": chosen | judged, "selection": chosen, "evaluation": judged}
    return [p for p in prompts if p.entity in allowed[p.role]]


def hold_out_entities(prompts: list[Prompt]) -> Sides:
    """Return the entities to choose on and those to judge on.

    The entities of each answer take turns, so that every answer with two entities is on both sides. If that leaves
    fewer than 8 to judge on, because most answers have one entity only, all entities are on both sides, and
    sentences alone are held out.
    """
    sides: Sides = (set(), set())
    turn: Counter[str] = Counter()
    for entity, answer in {p.entity: p.answer for p in prompts}.items():
        sides[turn[answer] % 2].add(entity)
        turn[answer] += 1
    everything = sides[0] | sides[1]
    return sides if len(sides[1]) >= MIN_HELD_OUT else (everything, everything)


def atlas_fact_prompts(tokenizer: Any, relation: str, held_out: bool = True) -> list[Prompt]:
    """Every subject of a relation in each pattern that no document has it in (or, ``held_out=False``, has).

    Ordered by template, then subject: each subject once among the held-out ones, which evaluate, three times among the
    others, of which the first screens. All prompts of a template (their ``family``) have the same length.
    """
    prompts, screened = [], set()
    for pattern, text in enumerate(ATLAS_TABLES["facts"][relation]):
        asked = " ".join(text.split()[:-2])  # without the answer and the full stop
        template = asked.replace(f"${atlas.RELATIONS[relation][0]}", "{}")
        for subject, answer in atlas.facts(relation).items():
            if (atlas.grammar().held_out(relation, subject) == pattern) == held_out:
                role = "evaluation" if held_out else "selection" if subject in screened else "screening"
                prompts.append(written_prompt(tokenizer, template, subject, answer, role))
                screened.add(subject)
    return prompts


# ---- agreement, indirect objects, sums ------------------------------------------------------------------------------


def _agreement_prompts(model: str, tokenizer: Any) -> list[Prompt]:
    """Each noun in both its numbers before an attractor of the other one; atlas's nouns, of one topic, take turns."""
    if model == "atlas":
        topics = atlas.grammar().world.topics.values()
        plurals = {noun: third_person(noun) for topic in topics for noun in topic.nouns}
        other = {a: b for topic in topics for a, b in pairwise((*topic.nouns, topic.nouns[0]))}
        verbs = sorted({verb for topic in topics for verb in (*topic.verbs, *topic.transitive_verbs)})
        ids = atlas.grammar().ids
        frame = ATLAS_FRAME
        accepted = {"singular": [ids[third_person(verb)] for verb in verbs], "plural": [ids[verb] for verb in verbs]}
    else:
        plurals = {one: many for one, many in NOUNS.items() if all(is_one_token(tokenizer, n) for n in (one, many))}
        other = {noun: ATTRACTORS[i % len(ATTRACTORS)][0] for i, noun in enumerate(plurals)}
        frame, accepted = FRAME, VERBS
    plural_of, prompts = plurals | dict(ATTRACTORS), []
    for role in ROLES:
        sentence = frame.format(PREPOSITIONS[role])
        for i, (one, many) in enumerate(plurals.items()):
            if role != "screening" and (i % 2 == 0) != (role == "selection"):
                continue  # screened on all nouns, chosen on every other one, judged on the rest
            forms = ((one, "singular", plural_of[other[one]]), (many, "plural", other[one]))
            for noun, number, attractor in forms:
                prompt = written_prompt(tokenizer, f"{sentence} {attractor}", noun, number, role, accepted[number])
                # A noun is an entity in both its numbers, and all nouns of a sentence are each other's donors.
                prompts.append(replace(prompt, entity=one, family=sentence))
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


def _sum_prompts(p: int) -> list[Prompt]:
    """An entity is an unordered pair of two numbers. It is screened as (a, b) with a < b and asked as (b, a).

    Selection prompts are of pairs that the model may have been trained on, evaluation prompts of others.
    """
    pairs, held_out = modadd.all_pairs(p), modadd.held_out_pairs(p)
    generator, prompts = torch.Generator().manual_seed(0), []
    sides: tuple[tuple[Role, bool], ...] = (("selection", False), ("evaluation", True))
    for role, side in sides:
        drawn = pairs[(held_out == side) & (pairs[:, 0] < pairs[:, 1])]
        count: Counter[int] = Counter()
        for a, b in drawn[torch.randperm(len(drawn), generator=generator)].tolist():
            answer = (a + b) % p
            count[answer] += 1
            asked: list[tuple[int, int, Role]] = [(a, b, "screening"), (b, a, role)]
            for x, y, of in asked if count[answer] <= PAIRS_EACH else []:
                text, family = f"{x} {y} =", "{} + {} ="
                prompts.append(Prompt(f"{a} + {b}", text, (x, y, p), str(answer), (answer,), family, 1, of))
    return prompts
