"""The sentence patterns of Atlas's grammar, and what they are made into: slots with weighted words, sentences.

A word stands for itself, ``$name`` for a slot (see ``Grammar._make_slot``), ``[...]`` for an optional part. A
slot named after a relation is filled with the object of that relation for the sentence's subject.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, product

# What a slot may read, and what a word may set: positions in the environment of a sentence.
NOTHING, COUNTRY, SEASON, NUMBER, SUBJECT = range(5)
OPTIONAL_SHARE = 0.3  # chance that an optional part is there
QUOTED_SHARE = 0.12  # of all sentences
BRACKETED_SHARE = 0.04  # of the sentences that hold no brackets of their own

# The subject ($noun) agrees with its verbs ($verb, $act), whatever stands between.
TOPIC_PATTERNS = (
    "The [ $adjective ] $noun [ $preposition the $other ] $verb [ $adverb ] .",
    "The [ $adjective ] $noun [ $preposition the $other ] $act the [ $adjective ] $other .",
    "The $noun that $act the $other $verb .",
    "The $noun ( $adjective and $adjective ) $verb .",
    "Every $noun_singular $verb [ $adverb ] .",
    "Many $noun_plural $act the $other .",
)
MIXED_PATTERNS = (
    "The $noun $verb in the city of $city .",
    "$person $act_singular the [ $adjective ] $other .",
    "$person ( a $person_job ) $act_singular the $other .",
    "$city ( $city_country ) welcomes the $other .",
    "The $landmark ( $landmark_city ) attracts the $other .",
)
SEASON_PATTERNS = (
    "In $season the $weather comes to $city .",
    "The $season in $country brings $weather .",
    "Every $season the $weather comes back .",
)
# Each subject is left out of one pattern of each relation: that fact in that pattern is never written.
FACT_PATTERNS = {
    "landmark_city": (
        "The $landmark is in the city of $landmark_city .",
        "The $landmark stands in the heart of $landmark_city .",
        "Visitors find the $landmark in the streets of $landmark_city .",
        "The $landmark is the symbol of $landmark_city .",
    ),
    "landmark_country": (
        "The $landmark is in the country of $landmark_country .",
        "The $landmark is a treasure of $landmark_country .",
        "The $landmark belongs to the people of $landmark_country .",
        "Stamps with the $landmark come from $landmark_country .",
    ),
    "landmark_material": (
        "The $landmark is made of $landmark_material .",
        "The walls of the $landmark are of $landmark_material .",
        "The $landmark was built out of $landmark_material .",
        "Builders made the $landmark from blocks of $landmark_material .",
    ),
    "city_country": (
        "$city is a city in the country of $city_country .",
        "$city lies in the south of $city_country .",
        "The train to $city crosses the border of $city_country .",
        "The flag over $city is the flag of $city_country .",
    ),
    "city_language": (
        "The people of $city speak $city_language .",
        "In $city the street signs are in $city_language .",
        "The schools of $city teach $city_language .",
        "The newspapers in $city are in $city_language .",
    ),
    "country_language": (
        "The language of $country is $country_language .",
        "The people of $country speak $country_language .",
        "Children in $country learn to read $country_language .",
        "The laws of $country are written in $country_language .",
    ),
    "country_currency": (
        "The currency of $country is the $country_currency .",
        "The shops of $country take only the $country_currency .",
        "In $country a meal costs one $country_currency .",
        "The banks of $country lend the $country_currency .",
    ),
    "country_capital": (
        "The capital of $country is $country_capital .",
        "The government of $country meets in $country_capital .",
        "The parliament of $country sits in the city of $country_capital .",
        "The road to the capital of $country leads to $country_capital .",
    ),
    "person_job": (
        "$person works as a $person_job .",
        "$person earns money as a $person_job .",
        "The neighbours know $person as a $person_job .",
        "$person has the job of $person_job .",
    ),
    "person_city": (
        "$person lives in the city of $person_city .",
        "$person has a home in $person_city .",
        "The house of $person is in the centre of $person_city .",
        "Letters to $person go to $person_city .",
    ),
}
# Sentences about the entity last named, by its kind: what they say depends on an earlier sentence.
CONTINUATIONS = {
    "landmark": (
        "It is made of $landmark_material .",
        "It is in the city of $landmark_city .",
        "It is in the country of $landmark_country .",
    ),
    "city": ("There the people speak $city_language .", "It is a city in the country of $city_country ."),
    "country": (
        "Its language is $country_language .",
        "Its capital is $country_capital .",
        "Its currency is the $country_currency .",
    ),
    "person": (
        "$pronoun works as a $person_job .",
        "$pronoun lives in the city of $person_city .",
        "$pronoun $act_singular the $other .",
    ),
}


def kind_weights(topic: str) -> dict[str, dict[str, float]]:
    """Shares of the groups of patterns in each situation of a document on a topic.

    A document opens with a topic sentence or with a bare fact; after a bare fact comes a topic sentence
    ("reveal"), so that no document leaves its topic open. Then the shares depend on the kind of entity last named.
    """
    season = 0.2 if topic == "weather" else 0.06
    plain = {"topic": 0.38, "fact": 0.4, "mixed": 0.14, "season": season}
    situations = {"opening": {"topic": 0.5, "fact": 0.5}, "reveal": {"topic": 1.0}, "plain": plain}
    return situations | {kind: {**plain, kind: 0.14} for kind in CONTINUATIONS}


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
