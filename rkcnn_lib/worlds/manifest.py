"""The manifest of an activation cache, and its files held to the sizes and checksums in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rkcnn_lib.files import read_json

__all__ = [
    "FORMAT", "FORMAT_VERSION", "CacheError", "check_size", "check_sum", "damaged", "file_record", "load_checked",
    "read_manifest",
]  # fmt: skip

FORMAT, FORMAT_VERSION = "rkcnn-activations", 1
ADVICE = "Delete the folder {folder} and capture again."


class CacheError(RuntimeError):
    """A cache on disk is damaged, incomplete or not the one asked for."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``; raise CacheError unless it is one of ours and of this version."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise CacheError(f"{folder} is no activation cache: it has no manifest.json (written last, when all is there)")
    try:
        manifest = read_json(path)
        version = (manifest["format"], manifest["version"])
        lacking = {"key", "width", "context_size", "held_out_share", "shards", "tokens"} - manifest.keys()
    except (ValueError, KeyError, TypeError):
        raise damaged(folder, "manifest.json", "is not an activation cache's manifest") from None
    if version != (FORMAT, FORMAT_VERSION):
        raise damaged(folder, "manifest.json", f"says format {version}, expected {(FORMAT, FORMAT_VERSION)}")
    if lacking:
        raise damaged(folder, "manifest.json", f"lacks {', '.join(sorted(lacking))}")
    return manifest


def file_record(path: Path, **more: Any) -> dict[str, Any]:
    """Return a manifest's entry for a file: name, size in bytes, SHA-256."""
    return {"file": path.name, **more, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(folder: Path, record: dict[str, Any]) -> None:
    path = folder / record["file"]
    if not path.is_file():
        raise damaged(folder, record["file"], "is missing")
    if path.stat().st_size != record["bytes"]:
        raise damaged(folder, record["file"], f"has {path.stat().st_size} bytes instead of {record['bytes']}")


def check_sum(folder: Path, record: dict[str, Any]) -> None:
    if _sha256(folder / record["file"]) != record["sha256"]:
        raise damaged(folder, record["file"], "differs from its checksum in manifest.json")


def load_checked(folder: Path, record: dict[str, Any]) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / record["file"])
    except (SafetensorError, OSError) as error:
        raise damaged(folder, record["file"], f"cannot be read ({error})") from None


def damaged(folder: Path, file: str, what: str) -> CacheError:
    return CacheError(f"{folder / file} {what}. {ADVICE.format(folder=folder)}")
