"""``rkcnn cache``: which activations lie on this machine and are whole; remove them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rkcnn_lib.files import alone_at, outputs_root, remove_folder
from rkcnn_lib.worlds.manifest import CacheError, read_manifest
from rkcnn_lib.worlds.store import ActivationStore

PARTIAL = ".partial"


def cache_folders(root: Path | None = None) -> list[Path]:
    """Return the folders of whole and unfinished captures, by name."""
    root = outputs_root() / "cache" if root is None else root
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".") if root.is_dir() else []


def chosen(names: Iterable[str], root: Path | None = None) -> list[Path]:
    """Return the folders that the names or unambiguous beginnings of names stand for; all for no name.

    Raises
    ------
    ValueError
        For a name that stands for no folder or for several; the message lists what there is.
    """
    folders, found = cache_folders(root), []
    for name in names:
        if not name:
            raise ValueError("an empty name stands for no cache: give one that `rkcnn cache ls` shows")
        fits = [path for path in folders if path.name == name] or [p for p in folders if p.name.startswith(name)]
        if len(fits) != 1:
            there = "\n".join(f"  {path.name}" for path in folders) or "  none"
            raise ValueError(f"{name!r} stands for {len(fits)} caches; there are\n{there}")
        found += fits
    return found or folders


def describe(folder: Path) -> str:
    """Return one line: name, size, rows, what of which model, or that it is unfinished or no cache."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    try:
        m = read_manifest(folder)
        told = f"{m['n_tokens']:>11,} rows  {m['title']}, {m['hook_name']}, {m['text']['name']}, {m['created']}"
    except CacheError:
        told = "unfinished; the same run goes on with it" if PARTIAL in folder.name else "no activation cache"
    return f"{folder.name}  {size:9.1f} MiB  {told}"


def show() -> int:
    """List the caches."""
    folders = cache_folders()
    print("\n".join(map(describe, folders)) if folders else f"no caches in {outputs_root() / 'cache'}")
    return 0


def verify(names: list[str]) -> int:
    """Compare every file of the caches with its checksum; return 1 if one is damaged."""
    damaged = 0
    for folder in chosen(names):
        if PARTIAL in folder.name:
            print(f"{folder.name}: unfinished")
            continue
        try:
            ActivationStore(folder).verify()
            print(f"{folder.name}: whole")
        except CacheError as error:
            damaged += 1
            print(f"{folder.name}: {error}", file=sys.stderr)
    return min(damaged, 1)


def remove(names: list[str]) -> int:
    """Remove the caches named (never all of them unnamed), unless one is being written; list first what will go."""
    if not names:
        raise ValueError("rkcnn cache rm needs names, such as `rkcnn cache ls` shows")
    folders = chosen(names)
    print("\n".join(f"removing {describe(folder)}" for folder in folders), flush=True)
    for folder in folders:
        whole = folder.with_name(folder.name.partition(PARTIAL)[0])
        try:
            with alone_at(whole, f"is writing {folder.name}", timeout=0):
                remove_folder(folder)
        except TimeoutError as error:
            raise ValueError(f"{error}; end it first") from None
        print(f"removed {folder.name}")
    return 0
