"""Where documents come from.

``text=None`` or ``"auto"`` is an ordered list of hub datasets for any model but atlas, and atlas's own generator
for atlas. Every source that is tried and fails is named with its reason, in one line each; invented text is used
only where it is asked for by name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rkcnn_lib.files import sha256_of
from rkcnn_lib.worlds.models.hub import hub_problem, patiently, refusal
from rkcnn_lib.worlds.text.files import by_heading, check_file, file_documents, local_file, readable

# Dataset, configuration, revision, whether its rows are lines of a wikitext rather than documents.
HUB_TEXTS = (
    ("Skylion007/openwebtext", None, "refs/convert/parquet", False),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", None, True),
    ("Salesforce/wikitext", "wikitext-2-raw-v1", None, True),
)
WAYS_ON = "Ways on without the hub: a local file, `text: /path/file.txt` (or .jsonl, .parquet), or `text: atlas`."
SILENT_SECONDS = 60.0  # without a byte from the hub's text, at its beginning or later: it is given up
READER = Path(__file__).with_name("files.py")


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
    identity: str  # in the cache key: the file's SHA-256, the dataset's name and (pinned) commit, the generator's seed
    open: Callable[[], Iterator[Document]]  # raises TextUnavailable with one line
    continued: bool = True  # whether a document cut at a context's end goes on in the next one; not atlas's
    pin: Callable[[], TextSource] | None = None  # see `pinned`

    def pinned(self) -> TextSource:
        """Return the source with its data set's commit in the identity; TextUnavailable if that cannot be told."""
        return self if self.pin is None else self.pin()


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
        return [TextSource(name, name, functools.partial(_generate, own), continued=not own)]
    if text in (None, "auto"):
        problem = functools.cache(hub_problem)  # the hub is asked once, and only if a source must be opened
        return [_hub(*entry, problem) for entry in HUB_TEXTS]
    path = local_file(text)
    with readable(path):
        digest = sha256_of(path)
    return [TextSource(f"file: {path.name}", f"sha256:{digest}", functools.partial(_open, path))]


def check_text(text: str | None) -> None:
    """Read a local text up to its first words: ValueError, naming file and place, before anything is computed.

    The hub's texts and atlas's are left alone.
    """
    if text not in (None, "auto", "atlas"):
        check_file(local_file(text))


def _open(path: Path) -> Iterator[Document]:
    check_file(path)  # now, not with the first document: before the model is loaded
    return map(Document, file_documents(path))


def _hub(
    dataset: str, config: str | None, revision: str | None, is_lines: bool, problem: Callable[[], str | None]
) -> TextSource:
    name = " ".join(filter(None, ("hub:", dataset, config, revision and f"at {revision}", "(train)")))

    def pin() -> TextSource:
        commit = _commit(name, dataset, revision, problem)

        def open_() -> Iterator[Document]:
            if problem():
                raise TextUnavailable(f"{name}: {problem()}")
            texts = _rows(name, [dataset, config or "", commit])
            documents = map(Document, by_heading(texts) if is_lines else filter(str.strip, texts))
            first = next(documents, None)  # it must come before the stream counts as silent
            if first is None:
                raise TextUnavailable(f"{name}: it holds no text")
            return chain([first], documents)

        return TextSource(name, f"{name} commit:{commit}", open_)

    return TextSource(name, name, lambda: pin().open(), pin=pin)


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


def _generate(own_ids: bool) -> Iterator[Document]:
    """Generate documents without end; for other models than atlas as text alone."""
    from rkcnn_lib.worlds.atlas import document_stream

    for document in document_stream("text 0"):  # a stream apart from those that labels and tests draw from
        yield Document(document.text, document.ids if own_ids else None)
