"""``rkcnn cache``: which activations lie on this machine and are whole; remove them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rkcnn_lib.files import alone_at, outputs_root, remove_folder
from rkcnn_lib.strings import cut, visible
from rkcnn_lib.worlds.activations.manifest import CacheError, read_manifest
from rkcnn_lib.worlds.activations.store import ActivationStore

PARTIAL = ".partial"
LINE = 400  # characters shown of a cache


def cache_folders(root: Path | None = None) -> list[Path]:
    """Return the folders of whole and unfinished captures, and of removals that were stopped, by name."""
    root = outputs_root() / "cache" if root is None else root
    return sorted(p for p in root.iterdir() if p.is_dir() and (p.name[0] != "." or is_left(p))) if root.is_dir() else []


def is_left(folder: Path) -> bool:
    """Say whether a folder is what a removal leaves that is stopped: it has lost its name already."""
    return folder.name[0] == "." and ".part-" in folder.name


def chosen(names: Iterable[str], root: Path | None = None) -> list[Path]:
    """Return the folders that the names or unambiguous beginnings of names stand for; all for no name.

    Raises
    ------
    ValueError
        For a name that stands for no folder or for several; the message lists what there is.
    """
    folders, named = cache_folders(root), []
    for name in names:
        if not name:
            raise ValueError("an empty name stands for no cache: give one that `rkcnn cache ls` shows")
        fits = [path for path in folders if path.name == name] or [p for p in folders if p.name.startswith(name)]
        if len(fits) != 1:
            listed = "\n".join(f"  {_one_line(path.name)}" for path in folders) or "  none"
            raise ValueError(f"{name!r} stands for {len(fits)} caches; there are\n{listed}")
        named += fits
    return named or folders


def describe(folder: Path) -> str:
    """Return one line: name, size, rows, what of which model, or that it is unfinished, damaged or no cache.

    What comes from the disk is shown with its control characters spelled out: a terminal would obey them.
    """
    size = 0
    with contextlib.suppress(OSError):  # files come and go while they are counted
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _one_line(f"{folder.name}  {size / 2**20:9.1f} MiB  {_state(folder)}")


def _state(folder: Path) -> str:
    if folder.name.endswith(PARTIAL):
        return "unfinished; the same run goes on with it"
    if is_left(folder):
        return "left by a removal that was stopped, or just going; `rkcnn cache rm` removes it"
    try:
        m = read_manifest(folder)
        return f"{m['n_tokens']:>11,} rows  {m['title']}, {m['hook_name']}, {m['text']['name']}, {m['created']}"
    except (CacheError, LookupError, TypeError, ValueError):
        has_manifest = (folder / "manifest.json").exists()
        return "damaged: `rkcnn cache verify` says what is wrong" if has_manifest else "no activation cache"


def _one_line(text: str) -> str:
    return cut(visible(re.sub(r"[\t\n\r]", " ", text)), LINE)


def show() -> int:
    """List the caches."""
    folders = cache_folders()
    print("\n".join(map(describe, folders)) if folders else f"no caches in {outputs_root() / 'cache'}")
    return 0


def verify(names: list[str]) -> int:
    """Compare every file of the caches with its checksum; return 1 if one is damaged."""
    damaged = 0
    for folder in chosen(names):
        if folder.name.endswith(PARTIAL) or is_left(folder):
            print(describe(folder))
            continue
        try:
            ActivationStore(folder).verify()
            print(_one_line(f"{folder.name}: whole"))
        except CacheError as error:
            damaged += 1
            print(_one_line(f"{folder.name}: {error}"), file=sys.stderr)
    return min(damaged, 1)


def remove(names: list[str]) -> int:
    """Remove the caches named (never all of them unnamed), unless one is being written; list first what will go."""
    if not names:
        raise ValueError("rkcnn cache rm needs names, such as `rkcnn cache ls` shows")
    folders = chosen(names)
    print("\n".join(f"removing {describe(folder)}" for folder in folders), flush=True)
    for folder in folders:
        whole = folder.with_name(folder.name.removesuffix(PARTIAL))
        try:
            with alone_at(whole, f"is writing {folder.name}", timeout=0):
                remove_folder(folder)
        except TimeoutError as error:
            raise ValueError(f"{error}; end it first") from None
        print(_one_line(f"removed {folder.name}"))
    return 0
