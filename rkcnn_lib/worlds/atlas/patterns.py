"""What the sentence patterns of Atlas's grammar (``assets/atlas/world.toml``) are made into: slots, sentences.

A word stands for itself, ``$name`` for a slot (see ``Grammar._make_slot``), ``[...]`` for an optional part. A
slot named after a relation is filled with the object of that relation for the sentence's subject.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, product

from rkcnn_lib.worlds.atlas.world import TABLES

# What a slot may read, and what a word may set: positions in the environment of a sentence.
NOTHING, COUNTRY, SEASON, NUMBER, SUBJECT = range(5)
OPTIONAL_SHARE = 0.3  # chance that an optional part is there
QUOTED_SHARE = 0.12  # of all sentences
BRACKETED_SHARE = 0.04  # of the sentences that hold no brackets of their own


def kind_weights(topic: str) -> dict[str, dict[str, float]]:
    """Shares of the groups of patterns in each situation of a document on a topic.

    A document opens with a topic sentence or with a bare fact; after a bare fact comes a topic sentence
    ("reveal"), so that no document leaves its topic open. Then the shares depend on the kind of entity last named.
    """
    season = 0.2 if topic == "weather" else 0.06
    plain = {"topic": 0.38, "fact": 0.4, "mixed": 0.14, "season": season}
    situations = {"opening": {"topic": 0.5, "fact": 0.5}, "reveal": {"topic": 1.0}, "plain": plain}
    return situations | {kind: {**plain, kind: 0.14} for kind in TABLES["continuations"]}


class Options:
    """A weighted list of distinct words (token ids) one of which fills a slot."""

    __slots__ = ("cumulative", "ids", "log_probability", "probability")

    def __init__(self, weights: Mapping[int, float]):
        total = sum(weights.values())
        self.ids = list(weights)
        self.probability = {word: weight / total for word, weight in weights.items()}
        self.log_probability = {word: math.log(p) for word, p in self.probability.items()}
        self.cumulative = list(accumulate(self.probability.values()))
        self.cumulative[-1] = 1.0

    def draw(self, uniform: float) -> int:
        return self.ids[bisect(self.cumulative, uniform)]


@dataclass(eq=False)
class Slot:
    """One place of a sentence: its options by the value of what it reads, and what its word sets."""

    options: dict[int, Options]
    reads: int = NOTHING
    sets: int = NOTHING
    relation: int = 0  # the relation that this word completes (0: none)


@dataclass(eq=False)
class Sentence:
    """A pattern made ready for one topic: its slots in order."""

    slots: tuple[Slot, ...]
    names_subject: bool  # whether it names an entity that later sentences may refer to
    reveals_topic: bool
    has_brackets: bool

    def __post_init__(self) -> None:
        self.facts = [slot.relation for slot in self.slots]
        noun = [i for i, slot in enumerate(self.slots) if slot.sets == NUMBER]
        verb = [i for i, slot in enumerate(self.slots) if slot.reads == NUMBER]
        # from the subject noun up to the word before its main verb, the verb's number is still owed
        self.owed = (noun[0], verb[-1]) if noun and verb else (0, 0)


@dataclass(frozen=True)
class Step:
    """One sentence of a derivation: the sentence, where it starts, its subject and the subject's number."""

    sentence: Sentence
    start: int
    subject: int
    number: int


def expand(pattern: str) -> list[tuple[float, list[str]]]:
    """All readings of a pattern whose parts in [brackets] are optional, with their shares."""
    parts: list[list[tuple[float, list[str]]]] = []
    for piece in pattern.replace("[", "|[").replace("]", "|").split("|"):
        if piece.startswith("["):
            parts.append([(OPTIONAL_SHARE, piece[1:].split()), (1 - OPTIONAL_SHARE, [])])
        else:
            parts.append([(1.0, piece.split())])
    return [
        (math.prod(share for share, _ in reading), [word for _, words in reading for word in words])
        for reading in product(*parts)
    ]


def wrap(symbols: list[str]) -> list[tuple[float, list[str]]]:
    """A sentence as it is, as quoted speech, and (where it holds no brackets yet) in brackets."""
    quoted = ["$speaker", "$speech", ":", '"', *symbols, '"']
    if "(" in symbols:
        return [(1 - QUOTED_SHARE, symbols), (QUOTED_SHARE, quoted)]
    plain = 1 - QUOTED_SHARE - BRACKETED_SHARE
    return [(plain, symbols), (QUOTED_SHARE, quoted), (BRACKETED_SHARE, ["(", *symbols, ")"])]
