"""The grammar that writes Atlas's documents.

A document is a chain of sentences about one topic. Each sentence is drawn from weighted *patterns*, and each
slot of a pattern from a weighted list of words that depends on what was said before: the subject's number, the
entity last spoken of, the season. No two derivations give the same document, so the log-probability of a
document is the sum of the logarithms of the choices made.

In a pattern (``assets/atlas/world.toml``) a word stands for itself, ``$name`` for a slot (see ``Grammar._make_slot``),
``[...]`` for an optional part. A slot named after a relation is filled with the object of that relation for the
sentence's subject.
"""

import math
import random
from bisect import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, product

from rkcnn_lib.worlds.atlas.world import KINDS, RELATIONS, TABLES, World, third_person

PAD, BOS, UNK = "<pad>", "<bos>", "<unk>"
BOS_ID = 1
STOP = 0.3  # chance that a document ends after a sentence, once it has MIN_SENTENCES
MIN_SENTENCES = 3
FOCUS_SHARE = 0.5  # share of entity mentions that stay in the country last spoken of
SAME_SEASON = 0.8
SUBJECTS = tuple(TABLES["continuations"])  # the kinds of entities that sentences are about
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


class Grammar:
    """The documents that can be written about a world."""

    def __init__(self, world: World):
        self.world = world
        self.topics = tuple(world.topics)
        self.relations = tuple(RELATIONS)
        self.vocabulary: list[str] = [PAD, BOS, UNK]  # a word's position is its token id
        self.ids: dict[str, int] = {word: i for i, word in enumerate(self.vocabulary)}
        self.number: dict[int, int] = {}  # 1 singular, 2 plural; for the nouns and verbs of the topics
        self.kind = {self._id(name): kind for kind in KINDS for name in world.entities[kind]}
        self.country = {i: self._id(world.country_of(self.vocabulary[i]) or PAD) for i in self.kind}
        self.country[0] = 0
        self._slots: dict[tuple, Slot] = {}
        # by topic and situation: cumulative probabilities, log-probabilities and the sentences they belong to
        self.tables: dict[tuple[int, str], tuple[list[float], list[float], list[Sentence]]] = {}
        for topic in range(len(self.topics)):
            self._build_topic(topic)

    # ---- building -------------------------------------------------------------------------------------------

    def _id(self, word: str) -> int:
        if word not in self.ids:
            self.ids[word] = len(self.vocabulary)
            self.vocabulary.append(word)
        return self.ids[word]

    def _even(self, words: Iterable[str]) -> Options:
        return Options({self._id(word): 1.0 for word in words})

    def held_out(self, relation: str, subject: str) -> int:
        """Index of the one pattern of a relation in which a subject never occurs in any document."""
        return list(self.world.facts[relation]).index(subject) % len(TABLES["facts"][relation])

    def _entity_slot(self, kind: str, relation: str | None, pattern: int) -> Slot:
        """An entity as the sentence's subject; those whose fact is held out of this pattern are left out."""
        names = [
            name
            for name in self.world.entities[kind]
            if relation is None or (name in self.world.facts[relation] and self.held_out(relation, name) != pattern)
        ]
        options = {}
        for country in {0, *(self.country[self.ids[name]] for name in self.world.entities["country"])}:
            weights = {self.ids[name]: 1.0 / len(names) for name in names}
            near = [i for i in weights if country and self.country[i] == country]
            if near:
                extra = dict.fromkeys(near, FOCUS_SHARE / len(near))
                weights = {i: (1 - FOCUS_SHARE) * w + extra.get(i, 0.0) for i, w in weights.items()}
            options[country] = Options(weights)
        return Slot(options, reads=COUNTRY, sets=SUBJECT)

    def _word_slot(self, name: str, topic: int) -> Slot:
        """A slot filled with words of the topic."""
        words = self.world.topics[self.topics[topic]]
        if name == "adjective":
            return Slot({0: self._even(words.adjectives)})
        part, _, form = name.partition("_")
        source = {"noun": words.nouns, "other": words.nouns, "verb": words.verbs, "act": words.transitive_verbs}[part]
        is_verb, sets = part in ("verb", "act"), NUMBER if part == "noun" else NOTHING
        forms: dict[int, int] = {}
        for word in source:
            singular, plural = (third_person(word), word) if is_verb else (word, third_person(word))
            forms |= {self._id(singular): 1, self._id(plural): 2}
        self.number |= forms
        by_number = {n: Options({i: 1.0 for i, m in forms.items() if m == n}) for n in (1, 2)}
        if form:
            return Slot({0: by_number[1 if form == "singular" else 2]}, sets=sets)
        return Slot(by_number, reads=NUMBER) if is_verb else Slot({0: Options(dict.fromkeys(forms, 1.0))}, sets=sets)

    def _make_slot(self, name: str, topic: int, relation: str | None, pattern: int) -> Slot:
        facts = self.world.facts
        if name in RELATIONS:
            options = {self._id(s): self._even([o]) for s, o in facts[name].items()}
            return Slot(options, reads=SUBJECT, relation=1 + self.relations.index(name))
        if name in SUBJECTS:
            return self._entity_slot(name, relation, pattern)
        if name == "pronoun":
            return Slot({self._id(p): self._even([w]) for p, w in self.world.pronouns.items()}, reads=SUBJECT)
        if name == "season":
            seasons = [self._id(season) for season in TABLES["seasons"]]
            other = (1 - SAME_SEASON) / (len(seasons) - 1)
            kept = {now: Options({i: SAME_SEASON if i == now else other for i in seasons}) for now in seasons}
            return Slot({0: Options(dict.fromkeys(seasons, 1.0)), **kept}, reads=SEASON, sets=SEASON)
        if name == "weather":
            table = {s: {self._id(w): p for w, p in words.items()} for s, words in TABLES["seasons"].items()}
            return Slot({self._id(season): Options(words) for season, words in table.items()}, reads=SEASON)
        if name == "speech":
            return Slot({0: Options({self._id(w): p for w, p in TABLES["speech_verbs"].items()})})
        if name == "speaker":
            return Slot({0: self._even(self.world.entities["person"])})
        if name in ("adverb", "preposition"):
            return Slot({0: self._even(TABLES[f"{name}s"].split())})
        return self._word_slot(name, topic)

    def _slot(self, symbol: str, topic: int, relation: str | None, pattern: int) -> Slot:
        """The slot for one symbol of a pattern, made once: patterns that share a beginning share its slots."""
        is_word, name = not symbol.startswith("$"), symbol.removeprefix("$")
        if is_word:
            key: tuple = (symbol,)
        elif name in SUBJECTS and relation is not None:
            key = (symbol, relation, pattern)
        else:
            key = (symbol, topic)
        if key not in self._slots:
            self._slots[key] = (
                Slot({0: self._even([symbol])}) if is_word else self._make_slot(name, topic, relation, pattern)
            )
        return self._slots[key]

    def _sentence(self, symbols: list[str], topic: int, relation: str | None = None, pattern: int = 0) -> Sentence:
        return Sentence(
            slots=tuple(self._slot(symbol, topic, relation, pattern) for symbol in symbols),
            names_subject=any(s[:1] == "$" and s[1:] in SUBJECTS for s in symbols),
            reveals_topic=any(s.startswith(("$noun", "$other", "$verb", "$act")) for s in symbols),
        )

    def _build_topic(self, topic: int) -> None:
        """Weighted sentences for each situation: how a document opens, and what was last spoken of."""
        favoured = self.world.topics[self.topics[topic]].favoured
        # Words get their token ids in the order of these groups: the trained model knows them by it.
        written = {**TABLES["patterns"], "fact": (), **TABLES["continuations"]}
        groups: dict[str, list[tuple[float, list[str], str | None, int]]] = {
            name: [(w, s, None, 0) for text in texts for w, s in expand(text)] for name, texts in written.items()
        }
        groups["fact"] = [
            (3.0 if relation in favoured else 1.0, text.split(), relation, i)
            for relation, texts in TABLES["facts"].items()
            for i, text in enumerate(texts)
        ]
        ready: dict[str, list[tuple[float, Sentence]]] = {}
        for name, members in groups.items():
            total = sum(weight for weight, *_ in members)
            ready[name] = [
                (weight / total * share, self._sentence(symbols, topic, relation, pattern))
                for weight, plain, relation, pattern in members
                for share, symbols in wrap(plain)
            ]
        for situation, shares in kind_weights(self.topics[topic]).items():
            weighted = [(share * w, s) for name, share in shares.items() for w, s in ready[name]]
            total = sum(w for w, _ in weighted)
            cumulative = list(accumulate(w / total for w, _ in weighted))
            cumulative[-1] = 1.0
            logs = [math.log(w / total) for w, _ in weighted]
            self.tables[topic, situation] = (cumulative, logs, [s for _, s in weighted])

    # ---- sampling -------------------------------------------------------------------------------------------

    def situation(self, sentences: int, revealed: bool, focus: int) -> str:
        return "opening" if sentences == 0 else self.kind.get(focus, "plain") if revealed else "reveal"

    def sample(self, generator: random.Random) -> tuple[list[int], int, list[Step], float]:
        """Draw one document: token ids, index of its topic, steps, log-probability; see ``atlas.Document``."""
        uniform = generator.random
        topic = int(uniform() * len(self.topics))
        total = -math.log(len(self.topics))
        ids, steps = [BOS_ID], []
        focus, season, revealed = 0, 0, False
        while True:
            situation = self.situation(len(steps), revealed, focus)
            cumulative, logs, sentences = self.tables[topic, situation]
            which = bisect(cumulative, uniform())
            total += logs[which]
            sentence = sentences[which]
            environment = [0, self.country[focus], season, 0, focus]
            start = len(ids)
            for slot in sentence.slots:
                options = slot.options[environment[slot.reads]]
                if len(options.ids) == 1:
                    word = options.ids[0]
                else:
                    word = options.draw(uniform())
                    total += options.log_probability[word]
                ids.append(word)
                if slot.sets:
                    environment[slot.sets] = self.number[word] if slot.sets == NUMBER else word
            _, _, season, number, subject = environment
            steps.append(Step(sentence, start, subject, number))
            focus = subject if sentence.names_subject else focus
            revealed = revealed or sentence.reveals_topic
            if len(steps) >= MIN_SENTENCES:
                ends = uniform() < STOP
                total += math.log(STOP if ends else 1 - STOP)
                if ends:
                    return ids, topic, steps, total
