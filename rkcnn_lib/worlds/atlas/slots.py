"""What Atlas's sentences are made of: weighted word lists, slots, sentences, and the readings of a pattern."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, product

from rkcnn_lib.worlds.atlas.patterns import BRACKETED_SHARE, OPTIONAL_SHARE, QUOTED_SHARE

# What a slot may read, and what a word may set: positions in the environment of a sentence.
NOTHING, COUNTRY, SEASON, NUMBER, SUBJECT = range(5)


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
