"""Where documents come from.

``text=None`` or ``"auto"`` is an ordered list of hub datasets for any model but atlas, and atlas's own generator
for atlas. Every source that is tried and fails is named with its reason, in one line each; invented text is used
only where it is asked for by name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rkcnn_lib.worlds.hub import hub_problem

__all__ = ["Document", "TextSource", "TextUnavailable", "text_sources"]

# Dataset, configuration, revision, whether its rows are lines of a wikitext rather than documents.
HUB_TEXTS = (
    ("Skylion007/openwebtext", None, "refs/convert/parquet", False),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", None, True),
    ("Salesforce/wikitext", "wikitext-2-raw-v1", None, True),
)
WAYS_ON = "Ways on without the hub: a local file, `text: /path/file.txt` (or .jsonl, .parquet), or `text: atlas`."
SUFFIXES = (".txt", ".jsonl", ".parquet")
HEADING = re.compile(r"^ ?= [^=].* = *$")  # " = Title = " and not " = = Section = = "
FIRST_DOCUMENT_SECONDS = 60.0


class TextUnavailable(RuntimeError):
    """No text: names each source that was tried and why it failed, and the ways on."""


@dataclass(frozen=True)
class Document:
    """A document's text, and its token ids where it comes with ids of the model's own."""

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TextSource:
    """A named source of documents.

    Attributes
    ----------
    name : str
        For the manifest, such as ``"hub: Salesforce/wikitext wikitext-2-raw-v1 (train)"``.
    identity : str
        What the cache key holds: the file's SHA-256, the dataset's name and revision, or the generator's seed.
    open : callable
        Returns an iterator over :class:`Document`; raises :class:`TextUnavailable` with one line.
    continued : bool
        Whether a document cut at a context's end goes on in the next one. Not so for atlas, whose contexts always
        begin with a document.
    """

    name: str
    identity: str
    open: Callable[[], Iterator[Document]]
    continued: bool = True


def text_sources(text: str | None, model: str, seed: int = 0) -> list[TextSource]:
    """Return the sources to try, in this order.

    Parameters
    ----------
    text : str or None
        None or ``"auto"``: atlas's generator for atlas, else the hub's OpenWebText (Gokaslan & Cohen 2019; by its
        parquet revision, since the dataset itself is a script), WikiText-103, WikiText-2 (Merity et al. 2016),
        streamed. These three were written against the libraries' documentation and could not be tried where
        this was written, for want of a network. ``"atlas"``: atlas's generator. Else a local file: ``.txt``
        (a document starts at a heading `` = Title = `` where there are such, else at a blank line), ``.jsonl``
        (field ``text``) or ``.parquet`` (column ``text``).
    model : str
        Atlas takes the generator's own token ids.
    seed : int
        For the generator.

    Raises
    ------
    ValueError
        If the text is none of these, or the file is not there.
    """
    if text in (None, "auto"):
        if model == "atlas":
            return [_atlas(model, seed)]
        problem = functools.cache(hub_problem)  # the hub is asked once, and only if a source must be opened
        return [_hub(*entry, problem) for entry in HUB_TEXTS]
    if text == "atlas":
        return [_atlas(model, seed)]
    path = Path(text).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"text = {text!r}: allowed are auto, atlas, or a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"text = {text!r}: there is no such file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [TextSource(f"file: {path.name}", f"sha256:{digest}", functools.partial(_read, path))]


def _read(path: Path) -> Iterator[Document]:
    """Read a local file's documents."""
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as file:
            has_headings = any(HEADING.match(line.rstrip("\n")) for line in file)
        with path.open(encoding="utf-8") as file:
            yield from _by_heading(file) if has_headings else _by_blank_line(file)
        return
    for text in _texts(path):
        if text.strip():
            yield Document(text)


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield str(json.loads(line)["text"])
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f'{path}, line {number}: expected a JSON object with a field "text"') from None
        return
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise ValueError(f'{path}: expected a column "text", found {", ".join(file.schema_arrow.names)}')
    for group in file.iter_batches(columns=["text"]):
        yield from (text or "" for text in group.column("text").to_pylist())


def _by_heading(lines: Iterable[str]) -> Iterator[Document]:
    """Cut a wikitext into articles; what stands before the first heading is a document of its own."""
    held: list[str] = []
    for line in lines:
        if HEADING.match(line.rstrip("\n")) and "".join(held).strip():
            yield Document("".join(held))
            held = []
        held.append(line)
    if "".join(held).strip():
        yield Document("".join(held))


def _by_blank_line(lines: Iterable[str]) -> Iterator[Document]:
    held: list[str] = []
    for line in chain(lines, [""]):
        if line.strip():
            held.append(line)
        elif held:
            yield Document("".join(held))
            held = []


def _hub(
    dataset: str, config: str | None, revision: str | None, is_lines: bool, problem: Callable[[], str | None]
) -> TextSource:
    name = " ".join(filter(None, ("hub:", dataset, config, revision and f"at {revision}", "(train)")))

    def open_() -> Iterator[Document]:
        if problem():
            raise TextUnavailable(f"{name}: {problem()}")
        return _stream(name, dataset, config, revision, is_lines)

    return TextSource(name, name, open_)


def _stream(name: str, dataset: str, config: str | None, revision: str | None, is_lines: bool) -> Iterator[Document]:
    """Open a hub dataset as a stream; the first document must come within a minute."""

    def begin() -> Iterator[Document]:
        from datasets import load_dataset

        rows = load_dataset(dataset, config, revision=revision, split="train", streaming=True)
        texts = (row["text"] for row in rows)
        documents = _by_heading(texts) if is_lines else (Document(text) for text in texts if text.strip())
        return chain([next(documents)], documents)

    outcome = _within(FIRST_DOCUMENT_SECONDS, begin)
    if isinstance(outcome, BaseException):
        reason = (str(outcome).strip().splitlines() or [""])[0]
        raise TextUnavailable(f"{name}: {type(outcome).__name__} {reason}".rstrip())
    return _guarded(name, outcome)


def _guarded(name: str, documents: Iterator[Document]) -> Iterator[Document]:
    """Turn whatever a remote stream breaks off with into TextUnavailable."""
    try:
        yield from documents
    except Exception as error:
        raise TextUnavailable(f"{name}: broke off, {type(error).__name__} {error}".replace("\n", " ")) from None


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return what a function returns, or the exception it ends in; TimeoutError if it takes too long."""
    outcome: list[Any] = [TimeoutError(f"nothing came within {seconds:.0f} s")]

    def work() -> None:
        try:
            outcome[0] = function()
        except BaseException as error:
            outcome[0] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]


def _atlas(model: str, seed: int) -> TextSource:
    own, identity = model == "atlas", f"atlas generator, seed {seed}"
    return TextSource(identity, identity, lambda: _generate(own, seed), continued=not own)


def _generate(own_ids: bool, seed: int) -> Iterator[Document]:
    """Generate documents without end; for other models than atlas as text alone."""
    from rkcnn_lib.worlds.atlas import document_stream

    for document in document_stream(f"text {seed}"):  # a stream apart from those that labels and tests draw from
        yield Document(document.text, document.ids if own_ids else None)
