"""Any causal language model, by one function: hub name, local folder, ``atlas``, ``gemma`` or ``modadd``.

Everything is looked for on this machine first; the hub is asked only for files that are not here, after a
probe of a few seconds, so that a machine without a network hears so at once. Code from the hub is never run
and pickled weights are never read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rkcnn_lib.files import read_json, sha256_of
from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.strings import cut
from rkcnn_lib.tensors import one_of
from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.models.bridge import boot, pick_device
from rkcnn_lib.worlds.models.hub import TOKENIZERS, check_folder, gemma_folder, has_tokenizer, hub_folder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TITLES = {
    "atlas": "atlas, the embedded miniature language model",
    "gemma": "Gemma 3 270M, 4-bit weights dequantised",
    "modadd": "modadd, the embedded transformer that adds modulo 113",
}
EMBEDDED = ("atlas", "modadd")
DTYPES = ("float32", "float16", "bfloat16")
LONGEST_NAME = 96  # the hub gives repositories no longer ones
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
    """What a model's configuration and files say about it, without its weights being loaded."""

    name: str  # as given to `load_model`
    title: str  # for headings and provenance cards
    source: str  # of the files: "hub", "folder" (so is ``gemma``, built once on this machine) or "embedded"
    identity: str  # "commit:..." for a hub model, else "sha256:..." over configuration, weights and tokenizer files
    n_layers: int
    d_model: int
    d_mlp: int
    n_ctx: int  # longest context
    vocab_size: int
    task: str = "next token"  # or "modular addition": such a model reads its own pairs and nothing else
    n_experts: int = 0  # of a mixture; 0 where blocks have one MLP each


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Return what is known of a model, named as for :func:`load_model`, from its configuration and its files' hashes.

    ModelUnavailable if the files are not here and cannot be had from the hub; ValueError, in one line, for a name that
    can be none, a configuration that is no causal language model's, a file that is damaged or may not be read.
    """
    with _one_line(name):
        folder, source, adds = _find(name, revision, weights=False)
        commit = folder.name if source == "hub" and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
        return ModelFacts(
            name=name,
            title=TITLES.get(name, name if source == "hub" else folder.name),
            source=source,
            identity=f"commit:{commit}" if commit else f"sha256:{_hash_folder(folder)}",
            task="modular addition" if adds else "next token",
            **read_sizes(folder),
        )


def load_model(
    name: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge`` with raw (unfolded) Hugging Face weights.

    ``name`` is "atlas", "gemma", "modadd", a folder in Hugging Face format (or of another modular-addition model), or a
    hub name such as "gpt2", of which ``revision`` is a branch, tag or commit. ``device`` as for :func:`pick_device`;
    weights are float32 unless ``dtype`` says otherwise. It is in evaluation mode, with the model's own tokenizer; one
    that has no beginning-of-sequence token keeps none.

    ModelUnavailable if the files are not here and cannot be had from the hub; the message says why and names the ways
    on. ValueError or RuntimeError for a name, folder, dtype or device that cannot work, weights that lack some of the
    model's, or an architecture that the bridge cannot run or that is not causal (docs/architectures.md lists what was
    tried).
    """
    place = pick_device(device)
    precision = getattr(torch, one_of("dtype", str(dtype or torch.float32).removeprefix("torch."), DTYPES))
    with _one_line(name):
        folder, _, adds = _find(name, revision, weights=True)
        return modadd.load(folder, place, precision) if adds else boot(name, folder, place, precision)


def bos_token_id(lm: LanguageModel) -> int | None:
    """Return the id of the model's beginning-of-sequence token, or None (GPT-2's is ``<|endoftext|>``)."""
    bos = None if lm.tokenizer is None else lm.tokenizer.bos_token_id
    return bos if bos is not None and 0 <= bos < lm.cfg.d_vocab else None


def check_layer(facts: Any, layer: int) -> int:
    """Return the block's number, counted from the start; ValueError unless it is one, negative from the end.

    ``facts`` are a model's :class:`ModelFacts`, or its ``cfg``.
    """
    n = facts.n_layers
    if isinstance(layer, bool) or not isinstance(layer, Integral) or not -n <= layer < n:
        name = getattr(facts, "name", "the model")
        raise ValueError(f"layer = {layer!r}: {name} has {n} blocks, allowed are {-n} to {n - 1}")
    return int(layer) % n


def _find(name: str, revision: str | None, weights: bool) -> tuple[Path, str, bool]:
    """Return the folder of the model's files, where it comes from, and whether it adds; fetch what is missing."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"model = {name!r}: expected atlas, gemma, modadd, a folder or a hub name")
    path = Path(name).expanduser()
    if revision is not None and (name in TITLES or path.is_dir()):
        raise ValueError(f"revision = {revision!r}: {name} is not a hub model and has no revisions")
    if name in EMBEDDED:
        folder, source = Path(__file__).parents[1] / "assets" / name, "embedded"
    elif name == "gemma" or path.is_dir():
        folder, source = gemma_folder() if name == "gemma" else path.resolve(), "folder"
    elif name.startswith(("/", ".", "~")):
        raise ValueError(f"model = {name!r}: there is no such folder")
    elif len(name) > LONGEST_NAME or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"model = {cut(name)!r}: neither a folder nor a possible hub name (owner/name)")
    else:
        folder, source = hub_folder(name, revision, weights), "hub"
    check_folder(folder, weights)
    adds = modadd.read_config(folder) is not None
    if not adds and not has_tokenizer(folder):
        raise ValueError(
            f"model {name} has no tokenizer ({', '.join(' with '.join(files) for files in TOKENIZERS)}): "
            "copy its own into the model's folder, or save one there with tokenizer.save_pretrained(folder)"
        )
    return folder, source, adds


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Say what the operating system says of a model's files (no permission, name too long) in one line."""
    try:
        yield
    except OSError as error:
        at = "" if error.filename is None else f": {cut(str(error.filename))}"
        raise ValueError(f"model = {cut(name)!r}: {error.strerror or error}{at}") from None


def _hash_folder(folder: Path) -> str:
    """Hash configuration, weights and tokenizer files; a file is read again only when size or time changed."""
    digest = hashlib.sha256()
    names = {"config.json", "tokenizer_config.json", "special_tokens_map.json", *chain.from_iterable(TOKENIZERS)}
    for path in sorted(folder.iterdir()):
        if path.name in names or path.suffix == ".safetensors":
            stat = path.stat()
            digest.update(f"{path.name} {_hash_file(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(path)


def read_sizes(folder: Path) -> dict[str, int]:
    """Read the sizes, from the JSON alone where it spells them out, else through transformers' defaults."""
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
    # four times as wide: so the architectures are written that have no setting for the MLP, or one that may be null
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
