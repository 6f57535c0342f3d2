"""Atlas: a miniature language model with known facts, its corpus and its labels.

Atlas is a GPT-2 of about 0.9 million weights (4 blocks, 128 wide) trained on documents about one fixed world
(``world``). They come from a grammar of ours (``grammar``), so that all that a measurement needs is known exactly: the
topic, the entities and facts, the number a verb owes its subject, quotes and brackets. Each subject is left out of one
pattern of each relation, in which its fact is never written: prompts made of these pairs test knowledge, not memory of
a sentence. ``benchmarks/embedded/atlas.py`` made the weights and measures them.
"""

from __future__ import annotations

from pathlib import Path

from rkcnn_lib.worlds.atlas.documents import (
    Document,
    LabelledContexts,
    document_stream,
    facts,
    generate_documents,
    grammar,
    label_names,
    labelled_contexts,
    relations,
)

FOLDER = Path(__file__).parents[1] / "assets" / "atlas"
__all__ = [
    "FOLDER", "Document", "LabelledContexts", "document_stream", "facts",
    "generate_documents", "grammar", "label_names", "labelled_contexts", "relations",
]  # fmt: skip
