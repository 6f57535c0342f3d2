"""The manifest of an activation cache, and its files held to the names, sizes and checksums in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rkcnn_lib.files import read_json, sha256_of

# The version is in every key. 2: shards have scales; null is no document; white space at the ends of a text does not
# decide its split.
FORMAT, FORMAT_VERSION = "rkcnn-activations", 2
TOKENS_FILE = "tokens.safetensors"


class CacheError(RuntimeError):
    """A cache on disk is damaged, incomplete or not the one asked for."""


def shard_file(number: int) -> str:
    """Return a shard's name. A manifest may name no other: a path in it would be read wherever it leads."""
    return f"acts-{number:05d}.safetensors"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``; raise CacheError unless it is one of ours and of this version."""
    path = folder / "manifest.json"
    try:
        if not path.is_file():
            raise CacheError(f"{folder} is no activation cache: it has no manifest.json (written last of all)")
        manifest = read_json(path)
        version = (manifest["format"], manifest["version"])
        lacking = {"key", "width", "context_size", "held_out_share", "shards", "tokens"} - manifest.keys()
        is_sound = bool(lacking) or _is_sound(manifest)
    except (ValueError, KeyError, TypeError):
        raise damaged(folder, path.name, "is not an activation cache's manifest") from None
    except OSError as error:
        raise damaged(folder, path.name, f"cannot be read ({error.strerror})") from None
    if version != (FORMAT, FORMAT_VERSION):
        raise damaged(folder, path.name, f"says format {version!r:.100}, expected {(FORMAT, FORMAT_VERSION)}")
    if lacking:
        raise damaged(folder, path.name, f"lacks {', '.join(sorted(lacking))}")
    if not is_sound:
        raise damaged(folder, path.name, "holds sizes or names of files that are not a cache's")
    return manifest


def _is_sound(manifest: dict[str, Any]) -> bool:
    """Whether sizes are counts and the files are those that a capture writes; else TypeError or KeyError."""
    shards = manifest["shards"]
    files = [record["file"] for record in (*shards, manifest["tokens"])]
    counts = [manifest["width"], manifest["context_size"], *(shard["rows"] for shard in shards)]
    return (
        files == [*map(shard_file, range(len(shards))), TOKENS_FILE]
        and all(type(count) is int and count > 0 for count in counts)
        and 0 < manifest["held_out_share"] < 1
    )


def file_record(path: Path, **more: Any) -> dict[str, Any]:
    """Return a manifest's entry for a file: name, size in bytes, SHA-256."""
    return {"file": path.name, **more, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def check_size(folder: Path, record: dict[str, Any]) -> None:
    """Raise CacheError unless a file is there in its full size."""
    try:
        size = (folder / record["file"]).stat().st_size
    except OSError as error:
        raise damaged(folder, record["file"], f"is missing ({error.strerror})") from None
    if size != record["bytes"]:
        raise damaged(folder, record["file"], f"has {size} bytes instead of {record['bytes']}")


def check_sum(folder: Path, record: dict[str, Any]) -> None:
    """Raise CacheError unless a file is there and its content is the one recorded."""
    check_size(folder, record)
    try:
        digest = sha256_of(folder / record["file"])
    except OSError as error:
        raise damaged(folder, record["file"], f"cannot be read ({error.strerror})") from None
    if digest != record["sha256"]:
        raise damaged(folder, record["file"], "differs from its checksum in manifest.json")


def load_checked(folder: Path, record: dict[str, Any], names: Iterable[str]) -> list[torch.Tensor]:
    """Compare a file with its checksum and map its tensors of these names into memory; CacheError if it differs."""
    check_sum(folder, record)
    return load_tensors(folder, record["file"], names)


def load_tensors(folder: Path, file: str, names: Iterable[str]) -> list[torch.Tensor]:
    """Map a file's tensors of these names into memory; CacheError if that cannot be done."""
    try:
        tensors = load_file(folder / file)
        return [tensors[name] for name in names]
    except (SafetensorError, OSError, KeyError) as error:
        raise damaged(folder, file, f"cannot be read ({error})") from None


def damaged(folder: Path, file: str, what: str) -> CacheError:
    """Return the error to raise: what is wrong with which file, and what to do."""
    if not folder.is_dir():
        return CacheError(f"{folder} is gone: it was removed while it was read. Capture it again.")
    return CacheError(f"{folder / file} {what}. Delete the folder {folder} and capture again.")
