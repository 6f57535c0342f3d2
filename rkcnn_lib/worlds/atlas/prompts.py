"""What atlas knows, as facts and as prompts: sentences that no document has a subject in test knowledge, not memory."""

from __future__ import annotations

from dataclasses import dataclass

from rkcnn_lib.worlds.atlas.documents import grammar
from rkcnn_lib.worlds.atlas.grammar import BOS
from rkcnn_lib.worlds.atlas.patterns import FACT_PATTERNS
from rkcnn_lib.worlds.atlas.world import RELATIONS


@dataclass(frozen=True)
class FactPrompt:
    """A sentence's beginning that asks for one fact.

    Attributes
    ----------
    prompt, answer : text; ``ids`` (``<bos>`` first) and ``answer_id`` the same in token ids.
    subject, relation : the fact asked for.
    template : the pattern with ``{}`` for the subject. All prompts of a template have the same length.
    subject_position : where the subject stands in ``ids``.
    held_out : whether no document ever has this subject in this pattern.
    """

    prompt: str
    ids: tuple[int, ...]
    answer: str
    answer_id: int
    subject: str
    relation: str
    template: str
    subject_position: int
    held_out: bool


def relations() -> tuple[str, ...]:
    """Names of the relations; each reads SUBJECT_OBJECT, as in ``landmark_city``."""
    return tuple(RELATIONS)


def facts(relation: str) -> dict[str, str]:
    """{subject: object} of a relation; ValueError, with those there are, for an unknown one."""
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}: choose one of {', '.join(RELATIONS)}")
    return dict(grammar().world.facts[relation])


def fact_prompts(relation: str, held_out: bool = True) -> list[FactPrompt]:
    """Every subject of a relation in each pattern that no document has it in (or, ``held_out=False``, has).

    Ordered by template, then subject: each subject once among the held-out ones, three times among the others.
    """
    known, prompts, answers = grammar(), [], facts(relation)
    for pattern, text in enumerate(FACT_PATTERNS[relation]):
        symbols = text.split()[:-2]  # without the answer and the full stop
        slot = f"${RELATIONS[relation][0]}"
        for subject, answer in answers.items():
            if (known.held_out(relation, subject) == pattern) != held_out:
                continue
            words = [subject if symbol == slot else symbol for symbol in symbols]
            prompts.append(
                FactPrompt(
                    prompt=" ".join(words),
                    ids=tuple(known.ids[word] for word in (BOS, *words)),
                    answer=answer,
                    answer_id=known.ids[answer],
                    subject=subject,
                    relation=relation,
                    template=" ".join(symbols).replace(slot, "{}"),
                    subject_position=1 + symbols.index(slot),
                    held_out=held_out,
                )
            )
    return prompts
