"""Atlas: a miniature language model with known facts, its corpus and its labels.

Atlas is a GPT-2 of about 0.9 million weights (4 blocks, 128 wide) trained on documents about one fixed world
(:mod:`~rkcnn_lib.worlds.atlas_world`). They come from a grammar of ours
(:mod:`~rkcnn_lib.worlds.atlas_grammar`), so that all that a measurement needs is known exactly: the probability
of every token, the topic, the entities and facts, the number a verb owes its subject, quotes and brackets. Each
subject is left out of one pattern of each relation, in which its fact is never written: prompts made of these
pairs test knowledge, not memory of a sentence.

``python -m rkcnn_lib.worlds.atlas train`` makes the weights, ``... check`` measures them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rkcnn_lib.worlds.atlas_documents import (
    LABELS,
    Document,
    document_stream,
    documents_text,
    entropy,
    generate_documents,
    grammar,
    label_names,
    packed,
)
from rkcnn_lib.worlds.atlas_grammar import BOS
from rkcnn_lib.worlds.atlas_patterns import FACT_PATTERNS
from rkcnn_lib.worlds.atlas_world import RELATIONS

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent / "assets" / "atlas"
__all__ = [
    "FOLDER",
    "Document",
    "FactPrompt",
    "LabelledContexts",
    "document_stream",
    "documents_text",
    "entropy",
    "fact_prompts",
    "facts",
    "generate_documents",
    "label_names",
    "labelled_contexts",
    "relations",
]


@dataclass(frozen=True)
class LabelledContexts:
    """Whole documents packed one after the other, with the labels of each token.

    Attributes
    ----------
    token_ids : (n, context_size) long tensor; each context starts with ``<bos>``, its last document may be cut.
    labels : {label: (n, context_size) integer array}, see :attr:`Document.labels`.
    names : {label: list of class names}
    document_ids : (n, context_size) integer array, the number of the document in the order of generation.
    """

    token_ids: torch.Tensor
    labels: dict[str, np.ndarray]
    names: dict[str, list[str]]
    document_ids: np.ndarray


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


def labelled_contexts(
    n_contexts: int, context_size: int = 128, seed: int = 0, held_out: bool = False
) -> LabelledContexts:
    """Documents packed into contexts of equal length, with ground truth for every token.

    Parameters
    ----------
    n_contexts : number of contexts, at least 1.
    context_size : tokens a context, 2 to 128 (what the model can read).
    seed, held_out : the stream of documents, as in :func:`generate_documents`.

    Raises
    ------
    ValueError : a size out of range.
    """
    import torch

    if n_contexts < 1:
        raise ValueError(f"n_contexts is {n_contexts}: ask for at least 1")
    if not 2 <= context_size <= 128:
        raise ValueError(f"context_size is {context_size}: Atlas reads 2 to 128 tokens")
    columns: dict[str, list[list[int]]] = {name: [] for name in ("ids", "document", *LABELS)}
    for context in islice(packed(seed, context_size, held_out), n_contexts):
        rows: dict[str, list[int]] = {name: [] for name in columns}
        for number, document in context:
            rows["ids"].extend(document.ids)
            rows["document"].extend([number] * len(document.ids))
            for name, values in document.labels.items():
                rows[name].extend(values)
        for name, row in rows.items():
            columns[name].append(row[:context_size])
    arrays = {name: np.array(rows) for name, rows in columns.items()}
    token_ids = torch.from_numpy(arrays.pop("ids"))
    document_ids = arrays.pop("document")
    return LabelledContexts(token_ids, arrays, label_names(), document_ids)


def relations() -> tuple[str, ...]:
    """Names of the relations; each reads SUBJECT_OBJECT, as in ``landmark_city``."""
    return tuple(RELATIONS)


def facts(relation: str) -> dict[str, str]:
    """{subject: object} of a relation.

    Raises
    ------
    ValueError : an unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}: choose one of {', '.join(RELATIONS)}")
    return dict(grammar().world.facts[relation])


def fact_prompts(relation: str, held_out: bool = True) -> list[FactPrompt]:
    """Every subject of a relation in each pattern that no document has it in (or, ``held_out=False``, has).

    Returns
    -------
    list of FactPrompt, ordered by template, then subject. Each subject occurs once among the held-out ones and
    three times among the others.

    Raises
    ------
    ValueError : an unknown relation.
    """
    known, prompts = grammar(), []
    for pattern, text in enumerate(FACT_PATTERNS.get(relation, ())):
        symbols = text.split()[:-2]  # without the answer and the full stop
        slot = f"${RELATIONS[relation][0]}"
        for subject, answer in facts(relation).items():
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
    if not prompts:
        facts(relation)  # names the relations there are
    return prompts


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: ``train`` makes the weights, ``check`` measures those of a folder."""
    from rkcnn_lib.worlds.atlas_training import STEPS, check, train

    parser = argparse.ArgumentParser(prog="python -m rkcnn_lib.worlds.atlas", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("train", help="train from a seed; goes on where it was interrupted")
    making.add_argument("--out", type=Path, default=Path("outputs/atlas"), help="folder to write")
    making.add_argument("--steps", type=int, default=STEPS, help="training steps")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--device", default="cpu")
    measuring = commands.add_parser("check", help="held-out loss, entropy and facts of a trained folder")
    measuring.add_argument("--model", type=Path, default=FOLDER, help="folder to measure")
    given = parser.parse_args(arguments)
    try:
        if given.command == "train":
            train(given.out, steps=given.steps, seed=given.seed, device=given.device)
            print(f"trained model written to {given.out}")
            folder = given.out
        else:
            folder = given.model
        for name, value in check(folder).items():
            print(f"{name:40s} {value:.4f}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
