"""From documents to contexts of token ids, held-out documents apart from the rest; and which documents those are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from rkcnn_lib.worlds.text.sources import Document

SPLITS = ("train", "mine", "heldout")
MINE_SHARE, HELD_OUT_SHARE = 0.2, 0.1
TOKENIZE_BATCH = 256
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can hold one alone, UTF-8 and tokenizers cannot


def document_hash(text: str) -> int:
    """Return a stable 63-bit hash of a document's text, without the white space at its ends: it decides the split."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big") >> 1


def split_of(document_hashes: np.ndarray, seed: int = 0, held_out_share: float = HELD_OUT_SHARE) -> np.ndarray:
    """Say for each document which split it belongs to under a seed.

    ``"heldout"`` for a share of the hashes (n_documents,), the same ones for every seed; of the rest ``"mine"`` for the
    20 % that hash and seed decide, and ``"train"``.
    """
    hashes = np.asarray(document_hashes, dtype=np.int64)
    held_out = is_held_out(hashes, held_out_share)
    mine = _mix(hashes.astype(np.uint64), seed) / 2.0**64 < MINE_SHARE
    return np.where(held_out, "heldout", np.where(mine, "mine", "train"))


def is_held_out(document_hashes: np.ndarray, share: float = HELD_OUT_SHARE) -> np.ndarray:
    """Return which documents are held out: those whose hash lies in the lowest share of its range."""
    return np.asarray(document_hashes, dtype=np.int64) < int(share * 2.0**63)


def _mix(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Hash (document hash, seed) to 64 bits: SplitMix64's finaliser (Steele, Lea & Flood 2014), twice."""
    with np.errstate(over="ignore"):
        x = hashes + np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def without_halves(documents: Iterable[Document], count: Counter[str]) -> Iterator[Document]:
    """Yield documents with U+FFFD for every lone half of a surrogate pair, added up in ``count["halves"]``."""
    for document in documents:
        text, n = HALF.subn("\ufffd", document.text)
        count["halves"] += n
        yield replace(document, text=text) if n else document


def tokenize(documents: Iterable[Document], tokenizer: Any, vocab_size: int) -> Iterator[tuple[list[int], int]]:
    """Yield each document's token ids, without added special tokens, and its hash; ValueError past the vocabulary."""
    documents = iter(documents)
    while group := list(islice(documents, TOKENIZE_BATCH)):
        if group[0].ids is not None:
            encoded = [list(document.ids or ()) for document in group]
        else:
            texts = [document.text for document in group]
            encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(group, encoded, strict=True):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise ValueError(f"token id {max(ids)}: the model's vocabulary ends at {vocab_size - 1}")
            if ids:
                yield ids, document_hash(document.text)


@dataclass(frozen=True)
class Packed:
    """Documents packed into contexts."""

    tokens: np.ndarray  # (n_contexts, context_size) int32
    document_ids: np.ndarray  # the same
    document_hashes: np.ndarray  # (n_documents,) int64
    held_out: np.ndarray  # (n_contexts,) bool: contexts of held-out documents, which share none with others
    halves: int = 0  # of surrogate pairs, alone, that were read as U+FFFD


def pack(
    documents: Iterable[tuple[list[int], int]],
    n_contexts: int,
    context_size: int,
    bos: int | None,
    continued: bool = True,
) -> Packed:
    """Pack documents, pairs of token ids and a hash, into at most ``n_contexts`` full ones, held-out ones apart.

    Each document begins with ``bos`` if the model has such a token, and so does each context: a document longer than a
    context goes on in the next one, if ``continued``. Whichever of the two streams fills a context first gives the next
    one, so the order depends on the documents alone; what does not fill a last context is left out.
    """
    tokens = np.zeros((n_contexts, context_size), dtype=np.int32)
    owners = np.zeros((n_contexts, context_size), dtype=np.int32)
    held_out = np.zeros(n_contexts, dtype=bool)
    hashes: list[int] = []
    pending: tuple[list[int], list[int]] = ([], [])  # ids of the other documents, of the held-out ones
    pending_owners: tuple[list[int], list[int]] = ([], [])
    filled = 0
    for ids, content in documents:
        if filled == n_contexts:
            break
        side = int(is_held_out(np.array([content]))[0])
        ids = ids if bos is None or ids[0] == bos else [bos, *ids]
        stream, of = pending[side], pending_owners[side]
        stream.extend(ids)
        of.extend([len(hashes)] * len(ids))
        hashes.append(content)
        used = 0
        while filled < n_contexts:
            first = [] if bos is None or used >= len(stream) or stream[used] == bos else [bos]
            need = context_size - len(first)
            if len(stream) - used < need:
                break
            tokens[filled] = first + stream[used : used + need]
            owners[filled] = of[used : used + 1] * len(first) + of[used : used + need]
            held_out[filled] = bool(side)
            used, filled = used + need if continued else len(stream), filled + 1
        del stream[:used], of[:used]
    return Packed(tokens[:filled], owners[:filled], np.array(hashes, dtype=np.int64), held_out[:filled])
