"""Atlas: a miniature language model with known facts, its corpus and its labels.

Atlas is a GPT-2 of about 0.9 million weights (4 blocks, 128 wide) trained on documents about one fixed world
(``world``). They come from a grammar of ours (``grammar``), so that all that a measurement needs is known exactly: the
topic, the entities and facts, the number a verb owes its subject, quotes and brackets. Each subject is left out of one
pattern of each relation, in which its fact is never written: prompts made of these pairs test knowledge, not memory of
a sentence. ``benchmarks/embedded/atlas.py`` made the weights and measures them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rkcnn_lib.tensors import one_of, whole
from rkcnn_lib.worlds.atlas.grammar import Grammar, Step
from rkcnn_lib.worlds.atlas.world import KINDS, PLURAL_WORDS, RELATIONS, SINGULAR_WORDS, make_world

FOLDER = Path(__file__).parents[1] / "assets" / "atlas"
LABELS = ("topic", "entity", "kind", "number", "owed", "in_quotes", "in_brackets", "fact", "fact_subject")


@cache
def grammar() -> Grammar:
    """The grammar of Atlas's documents, built once."""
    return Grammar(make_world())


@dataclass(frozen=True)
class Document:
    """One document with its derivation."""

    ids: tuple[int, ...]  # token ids, <bos> first
    topic: int  # counted from 1, as in the labels
    steps: tuple[Step, ...]  # its derivation, a step a sentence
    log_probability: float  # natural logarithm, with the probability of ending where it does

    @property
    def tokens(self) -> list[str]:
        """Its words, ``<bos>`` first."""
        words = grammar().vocabulary
        return [words[i] for i in self.ids]

    @property
    def text(self) -> str:
        """Its words but ``<bos>``, with single spaces between them."""
        return " ".join(self.tokens[1:])

    @property
    def labels(self) -> dict[str, list[int]]:
        """Ground truth of each token, by name (:func:`label_names` says what the numbers stand for).

        ``topic`` of the document (0 on ``<bos>``); ``entity`` and ``kind`` named by the token; ``number`` of nouns and
        verbs (names have none); ``owed``: the number of a subject noun whose verb has yet to come; ``in_quotes`` and
        ``in_brackets``: whether a span is open *after* the token; ``fact``: the relation that the token completes, and
        ``fact_subject`` whose fact.
        """
        entity, kind, number = _token_labels()
        ids = np.asarray(self.ids)
        owed, fact, fact_subject = ([0] * len(ids) for _ in range(3))
        for step in self.steps:
            for i, relation in enumerate(step.sentence.facts, step.start):
                if relation:
                    fact[i], fact_subject[i] = relation, int(entity[step.subject])
            first, last = step.sentence.owed
            owed[step.start + first : step.start + last] = [step.number] * (last - first)
        quote, left, right = (grammar().ids[sign] for sign in '"()')
        return {
            "topic": [0] + [self.topic] * (len(ids) - 1), "entity": entity[ids].tolist(), "kind": kind[ids].tolist(),
            "number": number[ids].tolist(), "owed": owed, "in_quotes": (np.cumsum(ids == quote) % 2).tolist(),
            "in_brackets": (np.cumsum(ids == left) - np.cumsum(ids == right)).tolist(),
            "fact": fact, "fact_subject": fact_subject,
        }  # fmt: skip


@cache
def _token_labels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that depend on the token alone, by token id: entity, kind, number."""
    known = grammar()
    entity, kind, number = (np.zeros(len(known.vocabulary), dtype=int) for _ in range(3))
    for rank, (token, name) in enumerate(known.kind.items(), 1):
        entity[token], kind[token] = rank, 1 + KINDS.index(name)
    for words, value in ((SINGULAR_WORDS, 1), (PLURAL_WORDS, 2)):
        number[[known.ids[word] for word in words]] = value
    for token, value in known.number.items():
        number[token] = value
    return entity, kind, number


def label_names() -> dict[str, list[str]]:
    """Class names of each label: ``label_names()["topic"][labels["topic"]]``."""
    known = grammar()
    entities, numbers = [known.vocabulary[token] for token in known.kind], ["singular", "plural"]
    classes = {
        "topic": known.topics, "entity": entities, "kind": KINDS, "number": numbers, "owed": numbers,
        "fact": known.relations, "fact_subject": entities,
    }  # fmt: skip
    return {label: ["none", *classes[label]] if label in classes else ["outside", "inside"] for label in LABELS}


def document_stream(seed: int | str, held_out: bool = False) -> Iterator[Document]:
    """The endless stream of documents of a seed, the same on every platform; held-out ones have one of their own."""
    generator = random.Random(f"atlas/{'held out' if held_out else 'open'}/{seed}")
    while True:
        ids, topic, steps, log_probability = grammar().sample(generator)
        yield Document(tuple(ids), topic + 1, tuple(steps), log_probability)


def packed(seed: int | str, context_size: int, held_out: bool = False) -> Iterator[list[tuple[int, Document]]]:
    """Endless contexts, each a list of (number, document) whose tokens fill it; what is too long is cut."""
    stream = enumerate(document_stream(seed, held_out))
    while True:
        context, length = [], 0
        while length < context_size:
            number, document = next(stream)
            context.append((number, document))
            length += len(document.ids)
        yield context


@dataclass(frozen=True)
class LabelledContexts:
    """Whole documents packed one after the other, with the labels of each token."""

    token_ids: torch.Tensor  # (n, context_size) long; each context starts with <bos>, its last document may be cut
    labels: dict[str, np.ndarray]  # label -> (n, context_size) integers, see `Document.labels`
    names: dict[str, list[str]]  # label -> class names
    document_ids: np.ndarray  # (n, context_size) numbers of documents in the order of generation


def labelled_contexts(n_contexts: int, context_size: int = 128, seed: int = 0) -> LabelledContexts:
    """Documents of a seed's stream packed into contexts of 2 to 128 tokens, with ground truth for every token."""
    whole("n_contexts", n_contexts)
    whole("context_size", context_size, 2, 128)
    columns: dict[str, list[list[int]]] = {name: [] for name in ("ids", "document", *LABELS)}
    for context in islice(packed(seed, context_size), n_contexts):
        parts = [
            {"ids": document.ids, "document": [number] * len(document.ids), **document.labels}
            for number, document in context
        ]
        for name, rows in columns.items():
            rows.append([value for part in parts for value in part[name]][:context_size])
    arrays = {name: np.array(rows) for name, rows in columns.items()}
    return LabelledContexts(torch.from_numpy(arrays.pop("ids")), arrays, label_names(), arrays.pop("document"))


def facts(relation: str) -> dict[str, str]:
    """{subject: object} of a relation; ValueError, with those there are, for an unknown one."""
    return dict(grammar().world.facts[one_of("relation", relation, RELATIONS)])
