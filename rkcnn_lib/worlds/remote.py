"""Activation caches kept elsewhere: any place that fsspec reaches (``s3://``, ``gs://``, ``sftp://``, a folder).

With ``RKCNN_CACHE_URL`` set, a cache that this machine lacks is fetched from there and checked against its manifest
before it gets its name; what is not there either is captured. ``rkcnn cache push`` puts caches there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from rkcnn_lib.worlds.store import ActivationStore, CacheError, read_manifest

VARIABLE = "RKCNN_CACHE_URL"


def push(folder: Path) -> str:
    """Copy a whole, verified cache to ``$RKCNN_CACHE_URL``, its manifest last; return where it lies then.

    Raises
    ------
    CacheError
        If the variable is not set, the cache is damaged, or the place cannot be written to.
    """
    there = _place()
    if there is None:
        raise CacheError(f"{VARIABLE} is not set: give the place to push to, such as {VARIABLE}=s3://bucket/folder")
    files, base = there
    ActivationStore(folder).verify()
    target = f"{base}/{folder.name}"
    try:
        files.makedirs(target, exist_ok=True)
        for name in _files_of(read_manifest(folder)):
            files.put_file(str(folder / name), f"{target}/{name}")
    except Exception as error:  # each kind of storage has errors of its own
        raise CacheError(f"{target} cannot be written: {type(error).__name__}: {error}") from error
    return str(files.unstrip_protocol(target))


def pull(folder: Path) -> bool:
    """Fetch the cache of this name from ``$RKCNN_CACHE_URL``; return whether it was there.

    Raises
    ------
    CacheError
        If the place cannot be read, the disk has too little room, or what came does not fit its manifest.
    """
    there = _place()
    if there is None:
        return False
    files, base = there
    source = f"{base}/{folder.name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if not files.exists(f"{source}/manifest.json"):
            return False
        files.get_file(f"{source}/manifest.json", str(work / "manifest.json"))
        manifest = json.loads((work / "manifest.json").read_text())
        need, free = sum(r["bytes"] for r in _records(manifest)), shutil.disk_usage(work).free
        if need > free:
            raise CacheError(f"{source} needs {need / 2**30:.2f} GiB, {folder.parent} has {free / 2**30:.2f} GiB free")
        for name in _files_of(manifest)[:-1]:
            files.get_file(f"{source}/{name}", str(work / name))
        ActivationStore(work).verify()
        _name(work, folder)
        return True
    except CacheError as error:
        raise CacheError(f"{source} was not taken over: {error}") from error
    except Exception as error:
        raise CacheError(
            f"{source} cannot be read: {type(error).__name__}: {error}. Unset {VARIABLE} to capture here instead."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _place() -> tuple[Any, str] | None:
    """Return the file system and path of ``$RKCNN_CACHE_URL``, or None where it is not set."""
    url = os.environ.get(VARIABLE)
    if not url:
        return None
    try:
        files, base = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CacheError(f"{VARIABLE} = {url!r} cannot be used: {error}") from None
    return files, base.rstrip("/")


def _records(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest["tokens"], *manifest["shards"]]


def _files_of(manifest: dict[str, Any]) -> list[str]:
    """Return a cache's files, the manifest last: what has one is whole."""
    return [*(record["file"] for record in _records(manifest)), "manifest.json"]


def _name(work: Path, folder: Path) -> None:
    """Give a fetched cache its name, unless another process was first."""
    work.chmod(0o755)
    try:
        work.rename(folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise
