"""Activation caches kept elsewhere: any place that fsspec reaches (``s3://``, ``gs://``, ``sftp://``, a folder).

With ``RKCNN_CACHE_URL`` set, a cache that this machine lacks is fetched from there and checked against its manifest
before it gets its name; what is not there either is captured. ``rkcnn cache push`` puts caches there.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import fsspec

from rkcnn_lib.worlds.manifest import CacheError, read_manifest
from rkcnn_lib.worlds.shards import locked
from rkcnn_lib.worlds.store import ActivationStore

VARIABLE = "RKCNN_CACHE_URL"
FILE = re.compile(r"tokens\.safetensors|acts-\d{5}\.safetensors")  # a manifest from elsewhere names these, no paths


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
    target, own = f"{base}/{folder.name}", (folder / "manifest.json").read_bytes()
    try:
        there_already = _is_there(files, f"{target}/manifest.json")
        if there_already and files.cat_file(f"{target}/manifest.json") == own:
            return str(files.unstrip_protocol(target))
        if there_already:  # first, so that it never stands over files of both
            files.rm_file(f"{target}/manifest.json")
        files.makedirs(target, exist_ok=True)
        for name in _files_of(read_manifest(folder)):
            files.put_file(str(folder / name), f"{target}/{name}")
    except Exception as error:  # each kind of storage has errors of its own
        raise CacheError(f"{target} cannot be written: {type(error).__name__}: {error}") from error
    return str(files.unstrip_protocol(target))


def pull(folder: Path) -> bool:
    """Fetch the cache of this name from ``$RKCNN_CACHE_URL``; return whether it was there. The caller holds its lock.

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
    work = folder.with_name(f".{folder.name}.fetched")
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
    try:
        if not _is_there(files, f"{source}/manifest.json"):
            return False
        work.mkdir(parents=True)
        _fetch(files, source, work, folder.name)
        work.rename(folder)
        return True
    except CacheError as error:
        raise CacheError(f"{source} was not taken over: {error}. Remove it there, or unset {VARIABLE}.") from error
    except Exception as error:  # each kind of storage has errors of its own
        raise CacheError(
            f"{source} cannot be read: {type(error).__name__}: {error}. Unset {VARIABLE} to capture here instead."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pull_where_missing(folder: Path) -> None:
    """Fetch the cache of this name unless it is here; of several processes that lack it one does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked([folder]):
        if not folder.exists():
            pull(folder)


def _fetch(files: Any, source: str, work: Path, key: str) -> None:
    """Copy a cache into ``work`` and check it there."""
    files.get_file(f"{source}/manifest.json", str(work / "manifest.json"))
    manifest = read_manifest(work)
    if manifest["key"] != key:
        raise CacheError(f"its manifest is that of {manifest['key']}")
    need, free = sum(r["bytes"] for r in _records(manifest)), shutil.disk_usage(work).free
    if need > free:
        raise CacheError(f"it needs {need / 2**30:.2f} GiB and the disk has {free / 2**30:.2f} GiB free")
    for name in _files_of(manifest)[:-1]:
        files.get_file(f"{source}/{name}", str(work / name))
    try:
        ActivationStore(work).verify()
    except CacheError as error:  # its advice, to delete the folder, is not for the one here
        raise CacheError(str(error).partition(". ")[0].removeprefix(f"{work}/")) from None


def _is_there(files: Any, path: str) -> bool:
    """Say whether a file is there; unlike fsspec's ``exists``, do not take a place out of reach for an empty one."""
    try:
        files.info(path)
    except FileNotFoundError:
        return False
    return True


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
    """Return a cache's files, the manifest last: what has one is whole. CacheError for a name that is none of ours."""
    names = [record["file"] for record in _records(manifest)]
    strange = [name for name in names if not FILE.fullmatch(name)]
    if strange:
        raise CacheError(f"its manifest names a file {strange[0]!r}")
    return [*names, "manifest.json"]
