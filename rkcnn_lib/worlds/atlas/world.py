"""The fixed world that Atlas's documents are about: places, people, facts, the words of each topic.

It is a table in ``assets/atlas/world.toml``. Seventeen countries are real and three (Valdoria, Norvane, Kestria)
invented, and so are the people. Facts about the real places are roughly true; what matters is that they are fixed.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLES = tomllib.loads((Path(__file__).parents[1] / "assets/atlas/world.toml").read_text(encoding="utf-8"))
# relation -> (kind of its subject, kind of its object)
RELATIONS = {relation: tuple(relation.replace("capital", "city").split("_")) for relation in TABLES["facts"]}
KINDS = ("landmark", "city", "country", "person", "language", "currency", "material", "job")
SINGULAR_WORDS = frozenset(TABLES["singular"].split()).union(TABLES["seasons"], *TABLES["seasons"].values())
PLURAL_WORDS = frozenset(TABLES["plural"].split())


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
