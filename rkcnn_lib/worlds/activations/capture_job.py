"""What all stores of one pass of a model share: its settings, its text in contexts, and what the manifests say."""

from __future__ import annotations

import datetime
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from rkcnn_lib.files import write_whole
from rkcnn_lib.tensors import asked, first_position, rows_that_count
from rkcnn_lib.worlds.activations.manifest import FORMAT, FORMAT_VERSION, TOKENS_FILE, load_tensors
from rkcnn_lib.worlds.activations.shards import Target
from rkcnn_lib.worlds.models.facts import ModelFacts
from rkcnn_lib.worlds.models.forward import contexts_at_once
from rkcnn_lib.worlds.models.load import bos_token_id
from rkcnn_lib.worlds.text.packing import Packed, pack, tokenize, without_halves
from rkcnn_lib.worlds.text.sources import TextSource

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["MIN_CONTEXTS", "Job", "pack_text", "saved_tokens", "shared_manifest"]

SHARD_TOKENS = 16384
LOGIT_BYTES = 2**29  # logits of a batch may take so much: vocabularies reach 262,144
LOSS_CONTEXTS = 32
MIN_CONTEXTS = 20  # fewer could not be split by document


@dataclass(frozen=True)
class Job:
    """What all stores of one pass share."""

    facts: ModelFacts
    revision: str | None
    source: TextSource
    failed: tuple[str, ...]
    n_tokens: int
    context_size: int
    held_out_share: float
    batch_size: int | None

    @property
    def shard_contexts(self) -> int:
        """Contexts a shard; no function of the batch size, so that a pass may go on with another."""
        return max(1, SHARD_TOKENS // self.context_size)


def pack_text(
    missing: list[Target], job: Job, lm: TransformerBridge, stream: Iterator[Any] | None
) -> tuple[Packed, np.ndarray]:
    """Return the packed text and which of its rows count; read it back if an interrupted pass left it."""
    bos = bos_token_id(lm)
    if stream is None:
        path, names = saved_tokens(missing), ("tokens", "document_ids", "document_hashes", "held_out", "halves")
        tokens, owners, hashes, held_out, halves = (c.numpy() for c in load_tensors(path.parent, path.name, names))
        shape = (-1, job.context_size)
        packed = Packed(tokens.reshape(shape), owners.reshape(shape), hashes, held_out.astype(bool), int(halves[0]))
    else:
        count: Counter[str] = Counter()
        documents = tokenize(without_halves(stream, count), lm.tokenizer, lm.cfg.d_vocab)
        n_contexts = job.n_tokens // job.context_size
        packed = pack(documents, n_contexts, job.context_size, bos, job.held_out_share, job.source.continued)
        packed = replace(packed, halves=count["halves"])
    if len(packed.tokens) < MIN_CONTEXTS or not packed.held_out.any() or packed.held_out.all():
        raise ValueError(
            f"{job.source.name}: {len(packed.document_hashes)} documents, {len(packed.tokens)} contexts, of which "
            f"{int(packed.held_out.sum())} held out: raise n_tokens, or give a text with more and shorter documents"
        )
    mask = rows_that_count(lm, torch.from_numpy(packed.tokens)).numpy()
    columns = _columns(packed, mask)
    for target in missing:
        write_whole(target.partial / TOKENS_FILE, lambda new: save_file(columns, new))
    return packed, mask


def _columns(packed: Packed, mask: np.ndarray) -> dict[str, torch.Tensor]:
    n_contexts, size = packed.tokens.shape
    columns = {
        "tokens": packed.tokens.reshape(-1), "document_ids": packed.document_ids.reshape(-1),
        "positions": np.tile(np.arange(size, dtype=np.int32), n_contexts), "mask": mask.reshape(-1).astype(np.uint8),
        "document_hashes": packed.document_hashes, "held_out": packed.held_out.astype(np.uint8),
        "halves": np.array([packed.halves]),
    }  # fmt: skip
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def saved_tokens(missing: list[Target]) -> Path | None:
    """Return the text an interrupted pass left, if any: it is the same for all targets of a pass."""
    return next((p for t in missing if (p := t.partial / TOKENS_FILE).is_file()), None)


def shared_manifest(packed: Packed, mask: np.ndarray, job: Job, lm: TransformerBridge) -> dict[str, Any]:
    """Return what the manifests of all targets say alike."""
    facts, notes = job.facts, []
    if packed.halves:
        notes.append(f"{packed.halves:,} lone halves of surrogate pairs in the text were read as U+FFFD")
        warnings.warn(f"{job.source.name}: {notes[-1]}", stacklevel=2)
    if packed.tokens.size < job.n_tokens - job.n_tokens % job.context_size:
        notes.append(f"the text ended after {packed.tokens.size} of the {job.n_tokens} tokens asked for")
        warnings.warn(f"{job.source.name}: {notes[-1]}", stacklevel=2)
    held_out = packed.document_hashes[np.unique(packed.document_ids[packed.held_out])]
    return {
        "format": FORMAT, "version": FORMAT_VERSION, "model": facts.name, "title": facts.title,
        "identity": facts.identity, "revision": job.revision, "facts": asdict(facts),
        "text": {"name": job.source.name, "identity": job.source.identity, "failed_before": list(job.failed)},
        "n_tokens": int(packed.tokens.size), "n_tokens_asked": job.n_tokens, "n_contexts": len(packed.tokens),
        "context_size": job.context_size, "n_contexts_held_out": int(packed.held_out.sum()),
        "n_documents": len(np.unique(packed.document_ids)), "n_documents_held_out": len(held_out),
        "held_out_share": job.held_out_share, "bos_token_id": bos_token_id(lm), "first_position": first_position(lm),
        "loss": _loss(lm, packed, mask), "notes": notes,
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer-lens")},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _loss(lm: TransformerBridge, packed: Packed, mask: np.ndarray) -> dict[str, Any]:
    """Return the model's mean cross-entropy in nats on the first held-out contexts, wherever it is asked something.

    The same targets count as where an SAE is spliced in: no special tokens. A trained model is far below
    log(vocabulary): the number shows a wrong tokenizer or damaged weights at a glance.
    """
    chosen = np.flatnonzero(packed.held_out)[:LOSS_CONTEXTS]
    positions = packed.tokens.shape[1]
    size = max(1, min(contexts_at_once(lm, positions), LOGIT_BYTES // (4 * lm.cfg.d_vocab * positions)))
    total, count = 0.0, 0
    for start in range(0, len(chosen), size):
        ids = torch.from_numpy(packed.tokens[chosen[start : start + size]]).long().to(lm.cfg.device)
        where, right, counted = asked(lm, ids, torch.from_numpy(mask[chosen[start : start + size]]))
        with torch.no_grad():
            logits = lm(ids, return_type="logits")[:, where].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), right, reduction="none")
        total, count = total + float(losses[counted].double().sum()), count + int(counted.sum())
    return {"nats": total / count if count else None, "n_tokens": count, "split": "heldout"}
