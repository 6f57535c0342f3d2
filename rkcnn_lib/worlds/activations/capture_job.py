"""One pass of a model over a text: its settings, its text in contexts, and the stores that it fills.

A store is written shard by shard into a folder ``<key>.partial``, from which the next capture goes on if this one is
killed, and gets its name when it is whole. A lock keeps two captures of one key apart.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from rkcnn_lib.files import alone_at, give_name, plain, read_json, write_json, write_whole
from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.tokens import asked, first_position, rows_that_count
from rkcnn_lib.worlds.activations.store import (
    FORMAT,
    FORMAT_VERSION,
    TOKENS_FILE,
    ActivationStore,
    CacheError,
    file_record,
    load_tensors,
    shard_file,
)
from rkcnn_lib.worlds.models.hooks import activations, check_hooks, contexts_at_once, hook_name, hook_width, own_layers
from rkcnn_lib.worlds.models.load import ModelFacts, bos_token_id, load_model
from rkcnn_lib.worlds.text import HELD_OUT_SHARE, Document, Packed, TextSource, pack, tokenize

SHARD_TOKENS = 16384
LOGIT_BYTES = 2**29  # logits of a batch may take so much: vocabularies reach 262,144
LOSS_CONTEXTS = 32
MIN_CONTEXTS = 20  # fewer could not be split by document
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LOCK_SECONDS = 6 * 3600
NAME_LENGTH = 100  # of a model's name in the key; what tells captures apart is the digest after it


@dataclass(frozen=True)
class Job:
    """What all stores of one pass share."""

    facts: ModelFacts
    revision: str | None
    source: TextSource
    failed: tuple[str, ...]
    n_tokens: int
    context_size: int
    batch_size: int | None


def fill(missing: list[Target], job: Job, lm: LanguageModel | None, device: str | torch.device | None) -> None:
    """Capture the stores that are missing, in one pass."""
    with locked(target.folder for target in missing):
        missing = [target for target in missing if not target.is_whole]  # another process may have filled them
        if not missing:
            return
        for target in missing:
            target.resume()
        saved = next((file for t in missing if (file := t.partial / TOKENS_FILE).is_file()), None)
        # The source is opened before the model is loaded: a text out of reach is known in seconds.
        text = saved or job.source.open()
        check_room(missing, job.n_tokens)
        lm = load_model(job.facts.name, job.revision, device) if lm is None else lm
        sizes = (lm.cfg.n_layers, lm.cfg.d_model, lm.cfg.d_vocab)
        if sizes != (job.facts.n_layers, job.facts.d_model, job.facts.vocab_size):
            raise ValueError(f"lm has (blocks, width, vocabulary) {sizes}: that is not {job.facts.name}")
        check_hooks(lm, {target.name: target.width for target in missing})
        packed = pack_text(missing, job, lm, text)
        manifest = shared_manifest(packed, job, lm)
        _run(missing, job, lm, packed)
        for target in missing:
            target.finish(manifest)


def _run(missing: list[Target], job: Job, lm: LanguageModel, packed: Packed) -> None:
    """Run the model over all contexts that some target still needs."""
    names = [target.name for target in missing]
    per_shard = max(1, SHARD_TOKENS // job.context_size)  # whatever the batch size: a pass may go on with another
    n_shards, done = -(-len(packed.tokens) // per_shard), min(len(target.shards) for target in missing)
    if done == n_shards:  # interrupted between the last shard and the manifest
        return
    size = job.batch_size or contexts_at_once(lm, job.context_size)
    label = f"{job.facts.title}: {', '.join(names[:2])}{' ...' * (len(names) > 2)}"
    before = done * per_shard * job.context_size
    bar = tqdm(total=packed.tokens.size, initial=before, unit="token", unit_scale=True, desc=label)
    with bar, own_layers(lm, torch.from_numpy(packed.tokens[:1]).long(), names):
        for shard in range(done, n_shards):
            ids = torch.from_numpy(packed.tokens[shard * per_shard : (shard + 1) * per_shard]).long()
            batches = []
            for batch in ids.split(size):
                batches.append({name: acts.float().cpu() for name, acts in activations(lm, batch, names).items()})
                bar.update(batch.numel())
            for target in missing:
                target.write(shard, torch.cat([acts[target.name] for acts in batches]))


def pack_text(missing: list[Target], job: Job, lm: LanguageModel, text: Path | Iterator[Document]) -> Packed:
    """Pack documents, or read back what an interrupted pass packed; each target keeps the text with its columns."""
    if isinstance(text, Path):
        names = ("tokens", "document_ids", "document_hashes", "held_out", "halves")
        read = [column.numpy() for column in load_tensors(text.parent, {"file": text.name}, names)]
        tokens, owners, hashes, held_out, halves = read
        shape = (-1, job.context_size)
        packed = Packed(tokens.reshape(shape), owners.reshape(shape), hashes, held_out.astype(bool), int(halves[0]))
    else:
        count: Counter[str] = Counter()
        documents = tokenize(text, lm.tokenizer, lm.cfg.d_vocab, count)
        n_contexts = job.n_tokens // job.context_size
        packed = pack(documents, n_contexts, job.context_size, bos_token_id(lm), job.source.continued)
        packed = replace(packed, halves=count["halves"])
    if len(packed.tokens) < MIN_CONTEXTS or not packed.held_out.any() or packed.held_out.all():
        raise ValueError(
            f"{job.source.name}: {len(packed.document_hashes)} documents, {len(packed.tokens)} contexts, of which "
            f"{int(packed.held_out.sum())} held out: raise n_tokens, or give a text with more and shorter documents"
        )
    mask = rows_that_count(lm, torch.from_numpy(packed.tokens)).numpy()
    n_contexts, size = packed.tokens.shape
    columns = {
        "tokens": packed.tokens.reshape(-1), "document_ids": packed.document_ids.reshape(-1),
        "positions": np.tile(np.arange(size, dtype=np.int32), n_contexts), "mask": mask.reshape(-1).astype(np.uint8),
        "document_hashes": packed.document_hashes, "held_out": packed.held_out.astype(np.uint8),
        "halves": np.array([packed.halves]),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    for target in missing:
        write_whole(target.partial / TOKENS_FILE, lambda new: save_file(tensors, new))
    return packed


def shared_manifest(packed: Packed, job: Job, lm: LanguageModel) -> dict[str, Any]:
    """Return what the manifests of all targets say alike."""
    facts, notes = job.facts, []
    if packed.halves:
        notes.append(f"{packed.halves:,} lone halves of surrogate pairs in the text were read as U+FFFD")
    if packed.tokens.size < job.n_tokens - job.n_tokens % job.context_size:
        notes.append(f"the text ended after {packed.tokens.size} of the {job.n_tokens} tokens asked for")
    for note in notes:
        warnings.warn(f"{job.source.name}: {note}", stacklevel=2)
    held_out = packed.document_hashes[np.unique(packed.document_ids[packed.held_out])]
    return {
        "format": FORMAT, "version": FORMAT_VERSION, "model": facts.name, "title": facts.title,
        "identity": facts.identity, "revision": job.revision, "facts": asdict(facts),
        "text": {"name": job.source.name, "identity": job.source.identity(), "failed_before": list(job.failed)},
        "n_tokens": int(packed.tokens.size), "n_tokens_asked": job.n_tokens, "n_contexts": len(packed.tokens),
        "context_size": job.context_size, "n_contexts_held_out": int(packed.held_out.sum()),
        "n_documents": len(np.unique(packed.document_ids)), "n_documents_held_out": len(held_out),
        "held_out_share": HELD_OUT_SHARE, "bos_token_id": bos_token_id(lm), "first_position": first_position(lm),
        "loss": _loss(lm, packed), "notes": notes,
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer-lens")},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _loss(lm: LanguageModel, packed: Packed) -> dict[str, Any]:
    """Return the model's mean cross-entropy in nats on the first held-out contexts, special tokens aside.

    A trained model is far below log(vocabulary): the number shows a wrong tokenizer or damaged weights at a glance.
    """
    chosen = np.flatnonzero(packed.held_out)[:LOSS_CONTEXTS]
    positions = packed.tokens.shape[1]
    size = max(1, min(contexts_at_once(lm, positions), LOGIT_BYTES // (4 * lm.cfg.d_vocab * positions)))
    total, count = 0.0, 0
    for start in range(0, len(chosen), size):
        ids = torch.from_numpy(packed.tokens[chosen[start : start + size]]).long().to(lm.cfg.device)
        where, right, counted = asked(lm, ids, rows_that_count(lm, ids))
        with torch.no_grad():
            logits = lm(ids, return_type="logits")[:, where].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), right, reduction="none")
        total, count = total + float(losses[counted].double().sum()), count + int(counted.sum())
    return {"nats": total / count if count else None, "n_tokens": count, "split": "heldout"}


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
        return self.folder.exists()  # it gets its name when whole

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
        write_json(self.partial / "progress.json", {"inputs": self.inputs, "shards": self.shards})

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and give the folder its name."""
        manifest = manifest | {
            "inputs": self.inputs, "shards": self.shards, "key": self.key, "hook": self.hook, "hook_name": self.name,
            "layer": self.layer, "width": self.width, "dtype": self.inputs["dtype"],
            "tokens": file_record(self.partial / TOKENS_FILE),
        }  # fmt: skip
        write_json(self.partial / "manifest.json", manifest)
        (self.partial / "progress.json").unlink(missing_ok=True)  # a capture killed here goes on by the manifest
        give_name(self.partial, self.folder)


def column_scales(acts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what to divide each dimension of (n, d) activations by so that ``dtype`` holds it, (d,) float32.

    It is 1 but for a dimension that float16 does not hold as it is (values beyond 65504, or below 6e-5): one of which
    rounding takes more, in sum, than float16 takes at worst of any other (2^-11). That is given the power of two that
    brings its largest value to 2^14 or more, which changes no digit.
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
    """Hold the lock of every folder-to-be, in one order for all processes; wait for a process that holds one."""
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders):
            try:
                stack.enter_context(alone_at(folder, f"is capturing {folder.name}", LOCK_SECONDS))
            except TimeoutError as error:
                raise CacheError(f"{error} since {LOCK_SECONDS / 3600:.0f} h; end it, then try again") from None
        yield
