"""Where documents come from, and how they become contexts of token ids, held-out documents apart from the rest.

Every source that is tried and fails is named with its reason, in one line each; invented text is used only where it is
asked for by name, and for atlas.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from rkcnn_lib.files import sha256_of
from rkcnn_lib.worlds.atlas import document_stream
from rkcnn_lib.worlds.models.hub import hub_problem, patiently, refusal
from rkcnn_lib.worlds.text_files import by_heading, check_file, file_documents, local_file, readable

# Dataset, configuration, revision, whether its rows are lines of a wikitext rather than documents.
HUB_TEXTS = (
    ("Skylion007/openwebtext", None, "refs/convert/parquet", False),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", None, True),
    ("Salesforce/wikitext", "wikitext-2-raw-v1", None, True),
)
WAYS_ON = "Ways on without the hub: a local file, `text: /path/file.txt` (or .jsonl, .parquet), or `text: atlas`."
SILENT_SECONDS = 60.0  # without a byte from the hub's text, at its beginning or later: it is given up
READER = Path(__file__).with_name("text_files.py")
SPLITS = ("train", "mine", "heldout")
MINE_SHARE, HELD_OUT_SHARE = 0.2, 0.1
TOKENIZE_BATCH = 256
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can hold one alone, UTF-8 and tokenizers cannot


class TextUnavailable(RuntimeError):
    """No text: names each source that was tried and why it failed, and the ways on."""


@dataclass(frozen=True)
class Document:
    """A document's text, and its token ids where it comes with ids of the model's own."""

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TextSource:
    """A named source of documents."""

    name: str  # for the manifest, such as "hub: Salesforce/wikitext wikitext-2-raw-v1 (train)"
    identity: Callable[[], str]  # in the cache key: with a file's SHA-256, a data set's commit, a generator's seed
    open: Callable[[], Iterator[Document]]  # this and the identity may raise TextUnavailable, with one line
    continued: bool = True  # whether a document cut at a context's end goes on in the next one; not atlas's


def text_sources(text: str | None, model: str) -> list[TextSource]:
    """Return the sources to try, in this order; ValueError if the text is none of these or cannot be read.

    ``text`` None or ``"auto"``: atlas's generator for atlas, else the hub's OpenWebText (Gokaslan & Cohen 2019; by its
    parquet revision, since the dataset itself is a script), WikiText-103, WikiText-2 (Merity et al. 2016), streamed.
    ``"atlas"``: atlas's generator, whose own token ids the model atlas takes. Else a local file, UTF-8: ``.txt`` (a
    document starts at a heading `` = Title = `` where there are such, else at a blank line), ``.jsonl`` (field
    ``text``) or ``.parquet`` (column ``text``); a null text is no document.
    """
    if text == "atlas" or (text in (None, "auto") and model == "atlas"):
        own, name = model == "atlas", "atlas generator, seed 0"

        def generated() -> Iterator[Document]:  # a stream apart from those that labels and tests draw from
            return (Document(d.text, d.ids if own else None) for d in document_stream("text 0"))

        return [TextSource(name, lambda: name, generated, continued=not own)]
    if text in (None, "auto"):
        problem = functools.cache(hub_problem)  # the hub is asked once, and only if a source must be opened
        return [_hub(*entry, problem) for entry in HUB_TEXTS]
    path = local_file(text)
    with readable(path):
        digest = sha256_of(path)
    # opened before the model is loaded: then the file is checked
    return [TextSource(f"file: {path.name}", lambda: f"sha256:{digest}", lambda: map(Document, file_documents(path)))]


def check_text(text: str | None) -> None:
    """Read a local text up to its first words: ValueError, naming file and place, before anything is computed.

    The hub's texts and atlas's are left alone.
    """
    if text not in (None, "auto", "atlas"):
        check_file(local_file(text))


def _hub(
    dataset: str, config: str | None, revision: str | None, is_lines: bool, problem: Callable[[], str | None]
) -> TextSource:
    name = " ".join(filter(None, ("hub:", dataset, config, revision and f"at {revision}", "(train)")))
    commit = functools.cache(lambda: _commit(name, dataset, revision, problem))

    def open_() -> Iterator[Document]:
        if problem():
            raise TextUnavailable(f"{name}: {problem()}")
        texts = _rows(name, [dataset, config or "", commit()])
        documents = map(Document, by_heading(texts) if is_lines else filter(str.strip, texts))
        first = next(documents, None)  # it must come before the stream counts as silent
        if first is None:
            raise TextUnavailable(f"{name}: it holds no text")
        return chain([first], documents)

    return TextSource(name, lambda: f"{name} commit:{commit()}", open_)


def _commit(name: str, dataset: str, revision: str | None, problem: Callable[[], str | None]) -> str:
    """Return a data set's commit: the one this machine took before, as with models, else the hub's own.

    So a second run finds the first one's capture, with the hub or without it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    repository = {"repo_id": dataset, "repo_type": "dataset", "revision": revision}
    with contextlib.suppress(RevisionResolutionError):
        return HfApi().resolve_revision(**repository, local_files_only=True).resolved
    if problem():
        raise TextUnavailable(f"{name}: {problem()}")
    try:
        return patiently(lambda: HfApi().resolve_revision(**repository)).resolved  # noted beside the hub's cached files
    except Exception as error:
        raise TextUnavailable(f"{name}: {refusal(error, dataset, revision, 'dataset')}") from None


def _rows(name: str, words: list[str]) -> Iterator[str]:
    """Yield the rows of a hub dataset, read by a process that is ended with the iterator or when nothing comes."""
    command = [sys.executable, "-P", str(READER), *words]
    reader = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert reader.stdout is not None
    count, rest = 0, b""

    def broken(why: str) -> TextUnavailable:  # no shorter text: what it is would depend on the network
        lost = f"broke off after {count:,} rows, which are thrown away: " if count else ""
        return TextUnavailable(f"{name}: {lost}{why}")

    try:
        while True:
            is_ready, _, _ = select.select([reader.stdout], [], [], SILENT_SECONDS)
            if not is_ready:
                raise broken(f"nothing came for {SILENT_SECONDS:.0f} s")
            raw = os.read(reader.stdout.fileno(), 2**16)
            if not raw:
                raise broken(f"its reader ended with {reader.wait()}")
            *lines, rest = (rest + raw).split(b"\n")
            for row in map(json.loads, lines):
                if isinstance(row, dict) and row["end"]:
                    raise broken(row["end"])
                if isinstance(row, dict):
                    return
                count += 1
                yield row or ""
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


# ---- contexts and splits ---------------------------------------------------------------------------------------------


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


def tokenize(
    documents: Iterable[Document], tokenizer: Any, vocab_size: int, count: Counter[str]
) -> Iterator[tuple[list[int], int]]:
    """Yield each document's token ids, without added special tokens, and its hash; ValueError past the vocabulary.

    Every lone half of a surrogate pair is read as U+FFFD and added up in ``count["halves"]``.
    """
    documents = iter(documents)
    while group := list(islice(documents, TOKENIZE_BATCH)):
        read = [HALF.subn("\ufffd", document.text) for document in group]
        count["halves"] += sum(n for _, n in read)
        if group[0].ids is not None:
            encoded = [list(document.ids or ()) for document in group]
        else:
            encoded = tokenizer([text for text, _ in read], add_special_tokens=False, verbose=False)["input_ids"]
        for (text, _), ids in zip(read, encoded, strict=True):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise ValueError(f"token id {max(ids)}: the model's vocabulary ends at {vocab_size - 1}")
            if ids:
                yield ids, document_hash(text)


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
    # (token, document) of what fills no context yet, of the other documents and of the held-out ones
    pending: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    filled = 0
    for ids, content in documents:
        if filled == n_contexts:
            break
        side = int(is_held_out(np.array([content]))[0])
        stream, used = pending[side], 0
        stream.extend((token, len(hashes)) for token in (ids if bos is None or ids[0] == bos else [bos, *ids]))
        hashes.append(content)
        while filled < n_contexts:
            first = [] if bos is None or used >= len(stream) or stream[used][0] == bos else [(bos, stream[used][1])]
            need = context_size - len(first)
            if len(stream) - used < need:
                break
            tokens[filled], owners[filled] = zip(*first, *stream[used : used + need], strict=True)
            held_out[filled] = bool(side)
            used, filled = used + need if continued else len(stream), filled + 1
        del stream[:used]
    return Packed(tokens[:filled], owners[:filled], np.array(hashes, dtype=np.int64), held_out[:filled])
