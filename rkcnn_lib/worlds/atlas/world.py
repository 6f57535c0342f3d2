"""The fixed world that Atlas's documents are about (places, people, facts, words of each topic), and its sentences.

Both are tables in ``assets/atlas/world.toml``. Seventeen countries are real and three (Valdoria, Norvane, Kestria)
invented, and so are the people. Facts about the real places are roughly true; what matters is that they are fixed.

Sentences are patterns, which the grammar makes into slots. A word stands for itself, ``$name`` for a slot (see
``Grammar._make_slot``), ``[...]`` for an optional part. A slot named after a relation is filled with the object of that
relation for the sentence's subject.
"""

import math
import tomllib
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

TABLES = tomllib.loads((Path(__file__).parents[1] / "assets/atlas/world.toml").read_text(encoding="utf-8"))
# relation -> (kind of its subject, kind of its object)
RELATIONS = {relation: tuple(relation.replace("capital", "city").split("_")) for relation in TABLES["facts"]}
KINDS = ("landmark", "city", "country", "person", "language", "currency", "material", "job")
SINGULAR_WORDS = frozenset(TABLES["singular"].split()).union(TABLES["seasons"], *TABLES["seasons"].values())
PLURAL_WORDS = frozenset(TABLES["plural"].split())

# What a slot may read, and what a word may set: positions in the environment of a sentence.
NOTHING, COUNTRY, SEASON, NUMBER, SUBJECT = range(5)
OPTIONAL_SHARE = 0.3  # chance that an optional part is there
QUOTED_SHARE = 0.12  # of all sentences
BRACKETED_SHARE = 0.04  # of the sentences that hold no brackets of their own


@dataclass(frozen=True)
class Topic:
    """One subject matter: base forms of its words, and the relations its documents favour."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    transitive_verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    favoured: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Entities, the facts that relate them, and the topics."""

    entities: dict[str, tuple[str, ...]]  # kind -> names
    facts: dict[str, dict[str, str]]  # relation -> {subject: object}
    pronouns: dict[str, str]  # person -> "She" or "He"
    topics: dict[str, Topic]

    def country_of(self, name: str) -> str | None:
        """The country an entity belongs to (None for languages, jobs, ...)."""
        for relation in ("person_city", "landmark_city"):
            name = self.facts[relation].get(name, name)
        name = self.facts["city_country"].get(name, name)
        return name if name in self.entities["country"] else None


def make_world(n_countries: int = 20, n_people: int = 35, n_topics: int = 8, n_words: int = 8) -> World:
    """The world of Atlas, or a smaller part of it (for tests that enumerate every sentence), in the tables' order.

    ``n_words`` is how many nouns, verbs, transitive verbs and adjectives a topic has at most.
    """
    facts: dict[str, dict[str, str]] = {relation: {} for relation in RELATIONS}
    for country, row in list(TABLES["countries"].items())[:n_countries]:
        language, currency, *cities = row.split(", ")
        facts["country_language"][country] = language
        facts["country_currency"][country] = currency
        facts["country_capital"][country] = cities[0]
        for city in cities:
            facts["city_country"][city] = country
            facts["city_language"][city] = language
    cities = tuple(facts["city_country"])
    for landmark, row in TABLES["landmarks"].items():
        city, material = row.split(", ")
        if city in cities:
            facts["landmark_city"][landmark] = city
            facts["landmark_country"][landmark] = facts["city_country"][city]
            facts["landmark_material"][landmark] = material
    # The strides are prime to the counts: job and city of a person tell nothing about each other.
    pronouns = dict.fromkeys(TABLES["women"].split(), "She") | dict.fromkeys(TABLES["men"].split(), "He")
    jobs = TABLES["jobs"].split()
    pronouns = dict(list(pronouns.items())[:n_people])
    for i, person in enumerate(pronouns):
        facts["person_job"][person] = jobs[(i * 4 + i // 15) % len(jobs)]
        facts["person_city"][person] = cities[(i * 11 + 3) % len(cities)]
    entities: dict[str, tuple[str, ...]] = {kind: () for kind in KINDS}
    for relation, (subject_kind, object_kind) in RELATIONS.items():
        entities[subject_kind] = tuple(dict.fromkeys((*entities[subject_kind], *facts[relation])))
        entities[object_kind] = tuple(dict.fromkeys((*entities[object_kind], *facts[relation].values())))
    topics = {
        name: Topic(**{part: tuple(words.split()[:n_words]) for part, words in parts.items()})
        for name, parts in list(TABLES["topics"].items())[:n_topics]
    }
    return World(entities, facts, pronouns, topics)


def third_person(word: str) -> str:
    """A verb's singular, or (by the same spelling rules) a noun's plural: ferry -> ferries, pass -> passes."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


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
    parts = [
        [(OPTIONAL_SHARE, piece[1:].split()), (1 - OPTIONAL_SHARE, [])] if piece[:1] == "[" else [(1.0, piece.split())]
        for piece in pattern.replace("[", "|[").replace("]", "|").split("|")
    ]
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
