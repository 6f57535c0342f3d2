"""What a model's configuration and files say about it; the sizes as ``config.json`` spells them, differently in every
architecture."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rkcnn_lib.files import read_json

# One configuration value, many spellings; the first that is there counts.
CONFIG_KEYS = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"),
    "n_ctx": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length"),
}
EXPERTS = re.compile(r"(.*_)?(num|n)_(local_|routed_)?experts")
CONTEXT_UNSAID = 2048  # where a configuration names no longest context (BLOOM, Mamba): as TransformerBridge has it


@dataclass(frozen=True)
class ModelFacts:
    """What a model's configuration and files say about it, without its weights being loaded.

    Attributes
    ----------
    name : str
        As given to :func:`load_model`.
    title : str
        For headings and provenance cards.
    source : {"hub", "folder", "embedded"}
        Where the files come from (``gemma``, built once on this machine, counts as a folder).
    identity : str
        ``commit:...`` for a hub model, else ``sha256:...`` over its configuration, weights and tokenizer files.
    n_layers, d_model, d_mlp, n_ctx, vocab_size : int
        Blocks, residual width, MLP width, longest context and vocabulary size.
    task : {"next token", "modular addition"}
        What the model was trained on; a modular-addition model reads its own pairs and nothing else.
    n_experts : int
        Experts of a mixture, 0 for a model whose blocks have one MLP each.
    """

    name: str
    title: str
    source: str
    identity: str
    n_layers: int
    d_model: int
    d_mlp: int
    n_ctx: int
    vocab_size: int
    task: str = "next token"
    n_experts: int = 0


def read_sizes(folder: Path) -> dict[str, int]:
    """Read the sizes, from the JSON alone where it spells them out, else through transformers' defaults.

    The MLP is four times as wide as the residual stream where the configuration does not say: so the architectures
    are written that have no setting for it, or one that may be null.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{path} is an encoder-decoder's: no causal language model")
    if not isinstance(config := config.get("text_config", config), dict):
        raise ValueError(f"{path}: text_config is no object")
    sizes = _sizes(config)
    if not all(sizes.values()):
        sizes = _sizes(_full_config(folder)) | {key: value for key, value in sizes.items() if value}
    lacking = [key for key in ("n_layers", "d_model", "vocab_size") if not sizes[key]]
    if lacking:
        raise ValueError(f"{path} does not tell {', '.join(lacking)}: no causal language model?")
    sizes["d_mlp"], sizes["n_ctx"] = sizes["d_mlp"] or 4 * sizes["d_model"], sizes["n_ctx"] or CONTEXT_UNSAID
    n_experts = max([0, *(_number(value) for key, value in config.items() if EXPERTS.fullmatch(key))])
    return {**sizes, "n_experts": n_experts if n_experts > 1 else 0}


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    return {ours: next((n for key in keys if (n := _number(config.get(key)))), 0) for ours, keys in CONFIG_KEYS.items()}


def _number(value: Any) -> int:
    """Return a positive whole number, given as such or once a block, all alike; else 0."""
    if isinstance(value, list) and len({*map(str, value)}) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _full_config(folder: Path) -> dict[str, Any]:
    """Return the sizes as transformers completes them, by all their names; empty where it knows no such model."""
    from transformers import AutoConfig

    try:
        full = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    except Exception:  # of many kinds: the library's validators, models that it does not know
        return {}
    config = {}
    for name in chain.from_iterable(CONFIG_KEYS.values()):
        with contextlib.suppress(Exception):  # not there, or one for each block
            config[name] = getattr(full, name)
    return config
