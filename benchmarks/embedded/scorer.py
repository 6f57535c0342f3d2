"""Exact conditional probabilities of the tokens of Atlas's documents.

Between tokens several derivations of a document may be open: its topic is hidden until the first noun, and many
patterns begin alike. :class:`Scorer` carries all of them with their weights, as the forward algorithm for hidden
Markov models does (Rabiner 1989, "A tutorial on hidden Markov models", Proc. IEEE 77), so each token's
probability is exact and the best any model can know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from rkcnn_lib.worlds.atlas import Document, grammar
from rkcnn_lib.worlds.atlas.grammar import BOS_ID, MIN_SENTENCES, NUMBER, SEASON, STOP, SUBJECT, Grammar, Slot


@dataclass(eq=False)
class Node:
    """A node of the prefix tree of one situation's sentences.

    ``mass`` is the probability of the sentences that pass it, ``inner`` of those that go on from it; ``ends``
    holds the rest, by (names a subject, reveals the topic).
    """

    mass: float = 0.0
    inner: float = 0.0
    children: dict[Slot, Node] = field(default_factory=dict)
    ends: dict[tuple[bool, bool], float] = field(default_factory=dict)


_END = Node()  # behind a document's closing token: nothing follows


@cache
def build_tree(grammar: Grammar, topic: int, situation: str) -> Node:
    """Prefix tree of the sentences that may come in a situation."""
    root = Node()
    _, logs, sentences = grammar.tables[topic, situation]
    for log_weight, sentence in zip(logs, sentences, strict=True):
        weight, node = math.exp(log_weight), root
        node.mass += weight
        for slot in sentence.slots:
            node.inner += weight
            node = node.children.setdefault(slot, Node())
            node.mass += weight
        end = (sentence.names_subject, sentence.reveals_topic)
        node.ends[end] = node.ends.get(end, 0.0) + weight
    return root


@dataclass(frozen=True)
class _Open:
    """A derivation that is still open: what it knows of the document, and its place in a sentence."""

    topic: int
    sentences: int  # counted up to MIN_SENTENCES
    revealed: bool
    focus: int
    environment: tuple[int, ...]
    node: Node | None  # None between sentences


class Scorer:
    """Exact next-token probabilities of a grammar, token after token.

    A new scorer stands behind a document's ``<bos>``. ``probabilities()`` is the distribution of the next token,
    ``advance(token)`` moves on and returns the logarithm of that token's conditional probability. A closing
    ``<bos>`` is the document's end.

    Parameters
    ----------
    grammar : whose documents are scored; its prefix trees are built once and shared by all its scorers.
    """

    def __init__(self, grammar: Grammar):
        self.grammar = grammar
        n = len(grammar.topics)
        self._open: dict[_Open, float] = {_Open(t, 0, False, 0, (0,) * 5, None): 1 / n for t in range(n)}

    def _tree(self, state: _Open) -> Node:
        situation = self.grammar.situation(state.sentences, state.revealed, state.focus)
        return build_tree(self.grammar, state.topic, situation)

    def _moves(self, state: _Open, token: int | None) -> Iterator[tuple[int, float, _Open]]:
        """What may follow a derivation (only ``token``, if given): (token, probability, the next derivation)."""
        grammar, scale = self.grammar, 1.0
        node, environment = state.node, state.environment
        if node is None:
            stop = STOP if state.sentences >= MIN_SENTENCES else 0.0
            if stop and token in (None, BOS_ID):
                yield BOS_ID, stop, _Open(0, 0, False, 0, (), _END)
            scale = 1 - stop
            node = self._tree(state)
            environment = (0, grammar.country[state.focus], environment[SEASON], 0, state.focus)
        for slot, child in node.children.items():
            probability = slot.options[environment[slot.reads]].probability
            words = probability if token is None else (token,) if token in probability else ()
            for word in words:
                after = environment
                if slot.sets:
                    value = grammar.number[word] if slot.sets == NUMBER else word
                    after = (*environment[: slot.sets], value, *environment[slot.sets + 1 :])
                weight = scale * child.mass / node.inner * probability[word]
                for share, landed in self._landings(state, child, after):
                    yield word, weight * share, landed

    def _landings(self, state: _Open, node: Node, environment: tuple[int, ...]) -> Iterator[tuple[float, _Open]]:
        """Where a derivation stands once it reached a node: within the sentence, or behind it."""
        if node.children:
            inside = _Open(state.topic, state.sentences, state.revealed, state.focus, environment, node)
            yield node.inner / node.mass, inside
        for (names_subject, reveals), mass in node.ends.items():
            focus = environment[SUBJECT] if names_subject else state.focus
            count = min(state.sentences + 1, MIN_SENTENCES)
            rest = (0, 0, environment[SEASON], 0, 0)
            yield mass / node.mass, _Open(state.topic, count, state.revealed or reveals, focus, rest, None)

    def probabilities(self) -> dict[int, float]:
        """Probability of each token that may come next, given all tokens so far; they sum to one."""
        result: dict[int, float] = {}
        for state, weight in self._open.items():
            for word, probability, _ in self._moves(state, None):
                result[word] = result.get(word, 0.0) + weight * probability
        return result

    def advance(self, token: int) -> float:
        """Read one token; returns log P(token | tokens so far), in nats.

        Raises
        ------
        ValueError : if the grammar cannot go on with that token.
        """
        after: dict[_Open, float] = {}
        for state, weight in self._open.items():
            for _, probability, landed in self._moves(state, token):
                after[landed] = after.get(landed, 0.0) + weight * probability
        total = sum(after.values())
        if total == 0:
            known = 0 <= token < len(self.grammar.vocabulary)
            word = self.grammar.vocabulary[token] if known else token
            raise ValueError(f"the grammar cannot go on with {word!r} here: score only documents that it wrote")
        self._open = {state: weight / total for state, weight in after.items()}
        return math.log(total)


def log_probabilities(document: Document) -> list[float]:
    """log P(token | tokens before it) of each token behind the first, in nats, and of the ``<bos>`` that ends it."""
    scorer = Scorer(grammar())
    return [scorer.advance(token) for token in (*document.ids[1:], BOS_ID)]


def entropy(documents: Sequence[Document]) -> float:
    """The grammar's own cross-entropy on documents, in nats a predicted token: what a perfect model would lose.

    Predicted are all tokens behind the first, and the ``<bos>`` that closes the document.
    """
    if not documents:
        raise ValueError("entropy needs at least one document")
    return -sum(d.log_probability for d in documents) / sum(len(d.ids) for d in documents)
