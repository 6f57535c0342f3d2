"""Run a language model over text and keep what passes one or many hook points.

One pass of the model fills every store that is missing. It stops after the last block needed, writes shard by
shard, and goes on after an interruption at the last whole shard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rkcnn_lib.files import outputs_root
from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.tensors import one_of, whole
from rkcnn_lib.worlds.activations.capture_job import DTYPES, MIN_CONTEXTS, Job, Target, fill
from rkcnn_lib.worlds.activations.store import FORMAT_VERSION, ActivationStore
from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.models.hooks import activations, check_hooks, contexts_at_once, hook_name, hook_width
from rkcnn_lib.worlds.models.load import ModelFacts, check_layer, model_facts
from rkcnn_lib.worlds.text import HELD_OUT_SHARE, WAYS_ON, TextUnavailable, text_sources


def check_sizes(facts: ModelFacts, n_tokens: int, context_size: int) -> None:
    """Raise ValueError if the contexts are too long for the model or too few to be split by document."""
    least = facts.n_ctx if facts.task == "modular addition" else 2
    if not least <= context_size <= facts.n_ctx:
        raise ValueError(f"context_size = {context_size}: {facts.name} allows {least} to {facts.n_ctx}")
    if n_tokens < MIN_CONTEXTS * context_size:
        raise ValueError(
            f"n_tokens = {n_tokens}: at least {MIN_CONTEXTS * context_size} are needed "
            f"({MIN_CONTEXTS} contexts of {context_size}), so that some documents can be held out"
        )


def capture(lm: LanguageModel, token_ids: torch.Tensor, layer: int = 6, hook: str = "mlp_out") -> torch.Tensor:
    """Return the activations of ``lm`` at a block and one of :data:`rkcnn_lib.worlds.HOOKS`, read as they are.

    ``token_ids`` are (batch, position); a negative ``layer`` counts from the end. Returns (batch * position, d) float32
    on the CPU; row ``b * position + p`` is position ``p`` of sequence ``b``. ValueError for what does not exist in the
    model, a hook that does not hold there what its name says, and sequences that are too long.
    """
    ids, name = torch.as_tensor(token_ids), hook_name(hook, check_layer(lm.cfg, layer))
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise ValueError(f"token_ids: {tuple(ids.shape)} {ids.dtype}, expected (batch, position) integers")
    if ids.shape[1] > lm.cfg.n_ctx:
        raise ValueError(f"token_ids: {ids.shape[1]} positions, the model reads at most {lm.cfg.n_ctx}")
    if not 0 <= int(ids.min()) <= int(ids.max()) < lm.cfg.d_vocab:
        raise ValueError(f"token_ids: {int(ids.min())} to {int(ids.max())}, allowed are 0 to {lm.cfg.d_vocab - 1}")
    check_hooks(lm, {name: None})
    batches = ids.long().split(contexts_at_once(lm, ids.shape[1]))
    return torch.cat([activations(lm, batch, [name])[name].float().cpu() for batch in batches])


def open_or_capture(model: str, layer: int, hook: str, n_tokens: int, **options: Any) -> ActivationStore:
    """Open the cache of one hook at one block; capture it first if it is not there.

    Options are those of :func:`capture_layers`.
    """
    return next(iter(capture_layers(model, [layer], [hook], n_tokens, **options).values()))


def capture_layers(
    model: str,
    layers: Sequence[int],
    hooks: Sequence[str],
    n_tokens: int,
    text: str | None = None,
    root: str | Path | None = None,
    context_size: int = 128,
    dtype: str = "float16",
    device: str | torch.device | None = None,
    revision: str | None = None,
    batch_size: int | None = None,
    lm: LanguageModel | None = None,
) -> dict[tuple[int, str], ActivationStore]:
    """Open the caches of several hooks at several blocks; one pass of the model fills those that are missing.

    Parameters
    ----------
    model, revision, device, lm
        See :func:`rkcnn_lib.worlds.load_model`; the model, if it is loaded already.
    layers, hooks : sequences
        Blocks (negative numbers count from the end), and of :data:`rkcnn_lib.worlds.HOOKS`.
    n_tokens, context_size : int
        Rows to keep, rounded down to whole contexts (a text that ends earlier gives fewer, with a warning); tokens a
        context, the beginning-of-sequence token at position 0. ``batch_size`` contexts run at a time.
    text : optional
        See `text_sources`. Of the hub's list the first that is already cached, or can be read, is used; the
        manifest names those that failed before it. Modular addition reads its own pairs only.
    root : str or Path, optional
        Where caches are kept; ``cache`` under the outputs folder if None.
    dtype : {"float16", "bfloat16"}
        On disk. A dimension whose values are beyond float16's range, or too small for it, has a scale of its own.

    Returns {(block counted from the start, hook): :class:`~rkcnn_lib.worlds.ActivationStore`}. ValueError for a
    parameter that cannot work, before anything is computed; ModelUnavailable or TextUnavailable if the model or every
    text source is out of reach, with the ways on; CacheError for a damaged cache or too little room on the disk.
    """
    facts = model_facts(model, revision)
    wanted = [(check_layer(facts, layer), hook) for layer in layers for hook in hooks]
    for hook in hooks:
        hook_width(facts, hook)  # a mixture of experts has no mlp_post
    if adds := facts.task == "modular addition":
        modadd.check_hooks(hooks)
    check_sizes(facts, n_tokens, context_size)
    if not wanted:
        raise ValueError(f"layers = {layers}, hooks = {hooks}: expected at least one of each")
    one_of("dtype", dtype, DTYPES)
    batch_size = None if batch_size is None else whole("batch_size", batch_size)
    root = outputs_root() / "cache" if root is None else Path(root)
    failed: list[str] = []
    for source in [modadd.source(facts.vocab_size - 1, text)] if adds else text_sources(text, facts.name):
        try:
            common = {
                "identity": facts.identity, "revision": revision, "text": source.identity(), "n_tokens": n_tokens,
                "context_size": context_size, "held_out_share": HELD_OUT_SHARE, "dtype": dtype, "seed": 0,
                "compute_dtype": "torch.float32" if lm is None else str(lm.cfg.dtype), "version": FORMAT_VERSION,
            }  # fmt: skip
            targets = {pair: Target(root, facts, *pair, common) for pair in wanted}
            job = Job(facts, revision, source, tuple(failed), n_tokens, context_size, batch_size)
            fill([target for target in targets.values() if not target.is_whole], job, lm, device)
        except TextUnavailable as error:
            failed.append(str(error))
            continue
        return {pair: target.open() for pair, target in targets.items()}
    raise TextUnavailable("\n".join(["no text to be had:", *(f"  {line}" for line in failed), WAYS_ON]))
