"""Local files of text: found, read and cut into documents, or refused in one line that says where they are wrong.

Run as a script it reads a data set of the hub instead (:func:`write_hub_rows`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

HEADING = re.compile(r"^ ?= [^=].* = *$")  # " = Title = " and not " = = Section = = "
STRINGS = re.compile(r"null|(large_)?string(_view)?|dictionary<values=(large_)?string,.*")  # pyarrow's names of types


def local_file(text: str) -> Path:
    """Return the file that ``text`` names; ValueError if there is none or it is of another kind."""
    path, shown = Path(os.path.expanduser(text)), f"text = {text!r:.200}"
    if path.suffix not in READERS:
        raise ValueError(f"{shown}: allowed are auto, atlas, or a file ending in {', '.join(READERS)}")
    with readable(path):
        is_there = path.is_file()
    if not is_there:
        raise ValueError(f"{shown}: there is no such file")
    return path


def check_file(path: Path) -> None:
    """Read a file up to its first words; ValueError if it cannot be read that far or has none."""
    if not any(part.strip() for part in _parts(path)):
        raise ValueError(f"{path}: it holds no text")


def file_documents(path: Path) -> Iterator[str]:
    """Return the texts of a file's documents; it is checked at once, and a .txt looked through for headings."""
    check_file(path)
    if path.suffix != ".txt":
        return filter(str.strip, _parts(path))
    if any(HEADING.match(line.rstrip("\n")) for line in _parts(path)):
        return by_heading(_parts(path))
    groups = groupby(_parts(path), key=lambda line: bool(line.strip()))
    return ("".join(lines) for has_words, lines in groups if has_words)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one line, as a ValueError, why a file cannot be read."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {_not_utf8(path)}; texts are read as UTF-8: convert it first") from None
    except OSError as error:  # no right to read it, a name too long, a disk that fails
        raise ValueError(f"{path!s:.200} cannot be read: {error.strerror or error}") from None


def _not_utf8(path: Path) -> str:
    """Say where a file is not UTF-8: the decoder knows only its place in the piece that was read last."""
    before = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte {before + error.start} (in line {number}) is not UTF-8"
            before += len(line)
    return "it is not UTF-8"


def _parts(path: Path) -> Iterator[str]:
    """Yield the lines of a .txt, the texts of a .jsonl or .parquet ("" for null)."""
    with readable(path):
        yield from READERS[path.suffix](path)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        yield from file


def _json_texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f'{path}, line {number}: expected a JSON object with a field "text"') from None
        if not isinstance(text, str | None):
            kind = type(text).__name__
            raise ValueError(f'{path}, line {number}: "text" is of type {kind}, expected a string or null')
        yield text or ""


def _column(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        kinds = [str(field.type) for field in file.schema_arrow if field.name == "text"]
        if len(kinds) != 1:
            raise ValueError(f'{path}: expected a column "text", found {", ".join(file.schema_arrow.names):.300}')
        if not STRINGS.fullmatch(kinds[0]):
            raise ValueError(f'{path}: column "text" holds {kinds[0]:.100}, expected strings')
        for group in file.iter_batches(1024, columns=["text"]):
            yield from (text or "" for text in group.column("text").to_pylist())
    except UnicodeDecodeError:
        raise ValueError(f'{path}: column "text" holds bytes that are not UTF-8') from None
    except (pyarrow.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as parquet: {why:.200}") from None


READERS = {".txt": _lines, ".jsonl": _json_texts, ".parquet": _column}


def by_heading(lines: Iterable[str]) -> Iterator[str]:
    """Cut a wikitext into articles; what stands before the first heading is a document of its own."""
    lines_of_document: list[str] = []
    for line in lines:
        if HEADING.match(line.rstrip("\n")) and "".join(lines_of_document).strip():
            yield "".join(lines_of_document)
            lines_of_document = []
        lines_of_document.append(line)
    if "".join(lines_of_document).strip():
        yield "".join(lines_of_document)


def write_hub_rows(dataset: str, config: str, commit: str) -> None:
    """Write a hub data set's texts to standard output, from a process of its own (``python -P text_files.py ...``).

    One JSON string (or null) a row, the training split in order; last ``{"end": null}``, or ``{"end": "what went
    wrong"}``. A stream that hangs is ended with its process: threads of `datasets` and pyarrow that still wait when an
    interpreter exits abort it.
    """
    end = None
    try:
        from datasets import load_dataset

        for row in load_dataset(dataset, config or None, revision=commit, split="train", streaming=True):
            if not isinstance(row["text"], str | None):
                raise TypeError(f'"text" is of type {type(row["text"]).__name__}, expected a string or null')
            print(json.dumps(row["text"]))
    except BrokenPipeError:  # the reader has enough
        os._exit(0)
    except Exception as error:
        end = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(json.dumps({"end": end}), flush=True)
    os._exit(0)  # not the long way out, where those threads abort


if __name__ == "__main__":
    write_hub_rows(*sys.argv[1:])
