"""Writing a store: shard by shard into a folder that gets its name when it is whole.

A capture that is killed leaves a folder ``<key>.partial`` from which the next one goes on; a lock keeps two captures
of one key apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rkcnn_lib.files import alone_at, give_name, plain, read_json, write_json, write_whole
from rkcnn_lib.worlds.activations.manifest import TOKENS_FILE, CacheError, file_record, shard_file
from rkcnn_lib.worlds.activations.store import ActivationStore
from rkcnn_lib.worlds.models.facts import ModelFacts
from rkcnn_lib.worlds.models.hooks import hook_name, hook_width

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LOCK_SECONDS = 6 * 3600
NAME_LENGTH = 100  # of a model's name in the key; what tells captures apart is the digest after it


class Target:
    """One store to be: where it goes, what it depends on, and how far it has come."""

    def __init__(self, root: Path, facts: ModelFacts, layer: int, hook: str, common: dict[str, Any]) -> None:
        self.layer, self.hook, self.name = layer, hook, hook_name(hook, layer)
        self.width = hook_width(facts, hook)
        self.inputs = {**common, "layer": layer, "hook": hook}
        digest = hashlib.sha256(json.dumps(self.inputs, sort_keys=True, default=plain).encode()).hexdigest()[:16]
        name = Path(facts.name).name if facts.source == "folder" else facts.name
        name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).lstrip(".-")[:NAME_LENGTH] or "model"
        self.key = f"{name}-{layer}-{hook}-{digest}"
        self.folder, self.partial = root / self.key, root / f"{self.key}.partial"
        self.dtype, self.shards = DTYPES[common["dtype"]], []

    @property
    def is_whole(self) -> bool:
        """Whether the finished folder is there (it gets its name when whole)."""
        return self.folder.exists()

    def open(self) -> ActivationStore:
        """Open the finished store; raise CacheError if its manifest is another capture's."""
        store = ActivationStore(self.folder)
        if store.manifest.get("inputs") != self.inputs:
            raise CacheError(
                f"{self.folder / 'manifest.json'} belongs to another capture. Delete the folder and capture again."
            )
        return store

    def resume(self) -> None:
        """Find out which shards are whole; start afresh if what is there cannot be used."""
        noted = self.partial / "progress.json"
        try:
            state = read_json(noted if noted.is_file() else self.partial / "manifest.json")
            whole = [s for s in state["shards"] if (self.partial / s["file"]).stat().st_size == s["bytes"]]
            if state["inputs"] == self.inputs and len(whole) == len(state["shards"]):
                self.shards = whole
        except (OSError, ValueError, KeyError, TypeError):
            self.shards = []

    def write(self, number: int, acts: torch.Tensor) -> None:
        """Write shard ``number`` and note that it is whole; a shard already written is left as it is."""
        if number < len(self.shards):
            return
        if not torch.isfinite(acts).all():
            raise ValueError(f"{self.name}: activations that are not finite, in shard {number}")
        scale, path = column_scales(acts, self.dtype), self.partial / shard_file(number)
        tensors = {"acts": (acts / scale).to(self.dtype).contiguous(), "scale": scale}
        write_whole(path, lambda new: save_file(tensors, new))
        self.shards.append(file_record(path, rows=len(acts)))
        write_json(self.partial / "progress.json", self._state)

    @property
    def _state(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "shards": self.shards}

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and give the folder its name."""
        manifest = manifest | self._state | {
            "key": self.key, "hook": self.hook, "hook_name": self.name, "layer": self.layer, "width": self.width,
            "dtype": self.inputs["dtype"], "tokens": file_record(self.partial / TOKENS_FILE),
        }  # fmt: skip
        write_json(self.partial / "manifest.json", manifest)
        (self.partial / "progress.json").unlink(missing_ok=True)  # a capture killed here goes on by the manifest
        give_name(self.partial, self.folder)


def column_scales(acts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what to divide each dimension of (n, d) activations by so that ``dtype`` holds it, (d,) float32.

    It is 1 but for a dimension that float16 does not hold as it is: values beyond 65504 are lost, of values below 6e-5
    the digits are, and below 3e-8 all. A dimension counts as such if rounding takes more of its values, in sum, than
    float16 takes at worst of one that is neither (2^-11). It is given the power of two that brings its largest value to
    2^14 or more, which changes no digit.
    """
    if dtype != torch.float16:  # bfloat16 has the range of float32
        return torch.ones(acts.shape[1])
    largest, taken = acts.abs().amax(0), (acts - acts.to(dtype).float()).abs().sum(0)
    is_held = (taken <= 2**-11 * acts.abs().sum(0)) & (largest <= torch.finfo(dtype).max)
    exponent = torch.frexp(largest).exponent - 15
    return torch.where(is_held, 1.0, torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 127)))


def check_room(missing: list[Target], n_tokens: int) -> None:
    """Raise CacheError if the disk cannot hold what is to be written."""
    root = missing[0].folder.parent
    done = sum(record["bytes"] for target in missing for record in target.shards)
    need = sum(n_tokens * (2 * target.width + 13) for target in missing) * 1.02 - done
    free = shutil.disk_usage(root).free
    if need > free:
        raise CacheError(
            f"the cache needs {need / 2**30:.2f} GiB and {root} has {free / 2**30:.2f} GiB free: "
            "make room, lower n_tokens, or ask for fewer layers"
        )


@contextlib.contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Hold the lock of every store's folder-to-be, in one order for all processes; wait for a process that holds one.

    The system gives a lock back when its holder dies, so a killed capture leaves none behind.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders):
            try:
                stack.enter_context(alone_at(folder, f"is capturing {folder.name}", LOCK_SECONDS))
            except TimeoutError as error:
                raise CacheError(f"{error} since {LOCK_SECONDS / 3600:.0f} h; end it, then try again") from None
        yield
