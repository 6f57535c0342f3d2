"""Any causal language model, by one function: hub name, local folder, ``atlas``, ``gemma`` or ``modadd``.

Everything is looked for on this machine first; the hub is asked only for files that are not here, after a
probe of a few seconds, so that a machine without a network hears so at once. Code from the hub is never run
and pickled weights are never read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rkcnn_lib.worlds.devices import pick_device
from rkcnn_lib.worlds.hub import TOKENIZERS, ModelUnavailable, check_folder, has_tokenizer, hub_folder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "BYTE_NOTE",
    "ModelFacts",
    "ModelUnavailable",
    "bos_token_id",
    "check_layer",
    "load_model",
    "model_facts",
    "pick_device",
]

BYTE_NOTE = "no tokenizer in the folder: UTF-8 bytes as tokens"
TITLES = {
    "atlas": "atlas, the embedded miniature language model",
    "gemma": "Gemma 3 270M, 4-bit weights dequantised",
    "modadd": "modadd, the embedded transformer that adds modulo 113",
}
EMBEDDED = ("atlas", "modadd")
# One configuration value, many spellings; the first that is there counts.
CONFIG_KEYS = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim"),
    "n_ctx": ("max_position_embeddings", "n_positions", "n_ctx"),
    "vocab_size": ("vocab_size",),
}


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
    has_tokenizer : bool
        False: text is encoded as UTF-8 bytes (local folders only).
    task : {"next token", "modular addition"}
        What the model was trained on; a modular-addition model reads its own pairs and nothing else.
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
    has_tokenizer: bool
    task: str = "next token"


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Return what is known of a model from its configuration and the hashes of its files.

    Parameters
    ----------
    name : str
        ``"atlas"``, ``"gemma"``, ``"modadd"``, a folder in Hugging Face format (or of another modular-addition
        model), or a hub name.
    revision : str, optional
        Branch, tag or commit; hub models only.

    Raises
    ------
    ModelUnavailable
        If the files are not here and cannot be had from the hub.
    ValueError
        If the name is no folder and no possible hub name, or the configuration is no causal language model's.
    """
    from rkcnn_lib.worlds import modadd

    folder, source = _find(name, revision, weights=False)
    numbers = _read_config(folder)
    adds = modadd.read_config(folder) is not None
    commit = folder.name if source == "hub" and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return ModelFacts(
        name=name,
        title=TITLES.get(name, name if source == "hub" else folder.name),
        source=source,
        identity=f"commit:{commit}" if commit else f"sha256:{_hash_folder(folder)}",
        has_tokenizer=adds or has_tokenizer(folder),
        task="modular addition" if adds else "next token",
        **numbers,
    )


def load_model(
    name: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge`` with raw (unfolded) Hugging Face weights.

    Parameters
    ----------
    name : str
        ``"atlas"``, ``"gemma"``, ``"modadd"``, a folder in Hugging Face format (or of another modular-addition
        model), or a hub name such as ``"gpt2"``.
    revision : str, optional
        Branch, tag or commit; hub models only.
    device : str or torch.device, optional
        See :func:`pick_device`.
    dtype : str or torch.dtype, optional
        Of the weights; float32 unless said.

    Returns
    -------
    TransformerBridge
        In evaluation mode. ``tokenizer`` is the model's own; UTF-8 bytes where the folder has none (with a
        warning), None where in addition the vocabulary is smaller than 256. A tokenizer that has no
        beginning-of-sequence token keeps none.

    Raises
    ------
    ModelUnavailable
        If the files are not here and cannot be had from the hub; the message says why and names the ways on.
    ValueError, RuntimeError
        For a name, folder, dtype or device that cannot work.
    """
    from rkcnn_lib.worlds import modadd

    place, precision = pick_device(device), _dtype(dtype)
    folder, _ = _find(name, revision, weights=True)
    if modadd.read_config(folder) is not None:
        return modadd.load(folder, place, precision)
    from transformer_lens import TransformerBridge

    with _quiet():
        tokenizer = _tokenizer(folder)
        has_bos = tokenizer.bos_token is not None
        lm = TransformerBridge.boot_transformers(
            str(folder), device=place, dtype=precision, tokenizer=tokenizer, trust_remote_code=False
        )
    if not has_bos:
        # The bridge invents <|endoftext|> for tokenizers without such a token, with an id past the embedding.
        lm.tokenizer.bos_token = None
        lm.cfg.default_prepend_bos = False
    if not has_tokenizer(folder):
        if lm.cfg.d_vocab < 256:
            lm.tokenizer = None
        else:
            warnings.warn(f"{name}: {BYTE_NOTE}", stacklevel=2)
    return lm.eval()


def bos_token_id(lm: TransformerBridge) -> int | None:
    """Return the id of the model's beginning-of-sequence token, or None (GPT-2's is ``<|endoftext|>``)."""
    found = None if lm.tokenizer is None else lm.tokenizer.bos_token_id
    return found if found is not None and 0 <= found < lm.cfg.d_vocab else None


def check_layer(facts: ModelFacts, layer: int) -> int:
    """Return the block's number, counted from the start; negative numbers count from the end.

    Raises
    ------
    ValueError
        If the model has no such block.
    """
    n = facts.n_layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not -n <= layer < n:
        raise ValueError(f"layer = {layer!r}: {facts.name} has {n} blocks, allowed are {-n} to {n - 1}")
    return layer % n


def _find(name: str, revision: str | None, weights: bool) -> tuple[Path, str]:
    """Return the folder of the model's files and where it comes from; fetch what is missing."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"model = {name!r}: expected atlas, gemma, modadd, a folder or a hub name")
    path = Path(name).expanduser()
    named = name in TITLES
    if revision is not None and (named or path.is_dir()):
        raise ValueError(f"revision = {revision!r}: {name} is not a hub model and has no revisions")
    if name in EMBEDDED:
        return check_folder(Path(__file__).parent / "assets" / name, weights), "embedded"
    if name == "gemma":
        from rkcnn_lib.worlds.gemma import gemma_folder

        return check_folder(gemma_folder(), weights), "folder"
    if path.is_dir():
        return check_folder(path.resolve(), weights), "folder"
    if name.startswith(("/", ".", "~")):
        raise ValueError(f"model = {name!r}: there is no such folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"model = {name!r}: neither a folder nor a possible hub name (owner/name)")
    return hub_folder(name, revision, weights), "hub"


def _read_config(folder: Path) -> dict[str, int]:
    """Read the sizes, from the JSON alone where it spells them out, else through transformers' defaults."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    found = {ours: next((config[k] for k in keys if config.get(k)), None) for ours, keys in CONFIG_KEYS.items()}
    if config.get("model_type") == "gpt2" and found["d_mlp"] is None and found["d_model"]:
        found["d_mlp"] = 4 * found["d_model"]
    if None in found.values():
        from transformers import AutoConfig

        full = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        for ours, keys in CONFIG_KEYS.items():
            found[ours] = found[ours] or next((getattr(full, k) for k in keys if getattr(full, k, None)), None)
    lacking = [key for key, value in found.items() if value is None]
    if lacking:
        raise ValueError(f"{folder / 'config.json'} does not tell {', '.join(lacking)}: no causal language model?")
    return {key: int(value) for key, value in found.items()}


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(folder: Path) -> Any:
    if not has_tokenizer(folder):
        return byte_tokenizer()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, add_bos_token=True, local_files_only=True)
    except (TypeError, ValueError):  # some tokenizers refuse the option
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def byte_tokenizer() -> Any:
    """Return a tokenizer whose ids are UTF-8 bytes (0 to 255), for model folders that have none.

    It is a byte-pair encoding without merges, so everything that asks a model for its tokenizer works as ever.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest from 256 upwards.
    itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in itself]
    vocabulary = {chr(b): b for b in itself} | {chr(256 + i): b for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Byte 0 pads; never looked for in text.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=chr(256), split_special_tokens=True)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    found = torch.float32 if dtype is None else known.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype = {dtype!r}: allowed are {', '.join(known)}")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and notes about configurations while a model loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
