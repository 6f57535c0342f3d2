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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.models.bridge import boot
from rkcnn_lib.worlds.models.devices import pick_device
from rkcnn_lib.worlds.models.facts import ModelFacts, read_sizes
from rkcnn_lib.worlds.models.gemma import gemma_folder
from rkcnn_lib.worlds.models.hub import LONGEST_NAME, TOKENIZERS, check_folder, has_tokenizer, hub_folder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TITLES = {
    "atlas": "atlas, the embedded miniature language model",
    "gemma": "Gemma 3 270M, 4-bit weights dequantised",
    "modadd": "modadd, the embedded transformer that adds modulo 113",
}
EMBEDDED = ("atlas", "modadd")


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Return what is known of a model, named as for :func:`load_model`, from its configuration and its files' hashes.

    Raises
    ------
    ModelUnavailable
        If the files are not here and cannot be had from the hub.
    ValueError
        If the name is no folder and no possible hub name, the configuration is no causal language model's, or a file
        is damaged or may not be read: in one line that names it.
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
        In evaluation mode, with the model's own tokenizer; one that has no beginning-of-sequence token keeps none.

    Raises
    ------
    ModelUnavailable
        If the files are not here and cannot be had from the hub; the message says why and names the ways on.
    ValueError, RuntimeError
        For a name, folder, dtype or device that cannot work, weights that lack some of the model's, or an architecture
        that the bridge cannot run or that is not causal (docs/architectures.md lists what was tried).
    """
    place, precision = pick_device(device), _dtype(dtype)
    with _one_line(name):
        folder, _, adds = _find(name, revision, weights=True)
        if adds:
            return modadd.load(folder, place, precision)
        return boot(name, folder, place, precision)


def bos_token_id(lm: TransformerBridge) -> int | None:
    """Return the id of the model's beginning-of-sequence token, or None (GPT-2's is ``<|endoftext|>``)."""
    bos = None if lm.tokenizer is None else lm.tokenizer.bos_token_id
    return bos if bos is not None and 0 <= bos < lm.cfg.d_vocab else None


def check_layer(facts: ModelFacts, layer: int) -> int:
    """Return the block's number, counted from the start; ValueError unless it is one, negative from the end."""
    n = facts.n_layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not -n <= layer < n:
        raise ValueError(f"layer = {layer!r}: {facts.name} has {n} blocks, allowed are {-n} to {n - 1}")
    return layer % n


def _find(name: str, revision: str | None, weights: bool) -> tuple[Path, str, bool]:
    """Return the folder of the model's files, where it comes from, and whether it adds; fetch what is missing."""
    folder, source = _folder(name, revision, weights)
    adds = modadd.read_config(folder) is not None
    if not adds and not has_tokenizer(folder):
        raise ValueError(
            f"model folder {folder} has no tokenizer ({', '.join(' with '.join(files) for files in TOKENIZERS)}): "
            "copy its own there, or save one with tokenizer.save_pretrained(folder)"
        )
    return folder, source, adds


def _folder(name: str, revision: str | None, weights: bool) -> tuple[Path, str]:
    if not isinstance(name, str) or not name:
        raise ValueError(f"model = {name!r}: expected atlas, gemma, modadd, a folder or a hub name")
    path = Path(name).expanduser()
    named = name in TITLES
    if revision is not None and (named or path.is_dir()):
        raise ValueError(f"revision = {revision!r}: {name} is not a hub model and has no revisions")
    if name in EMBEDDED:
        return check_folder(Path(__file__).parents[1] / "assets" / name, weights), "embedded"
    if name == "gemma":
        return check_folder(gemma_folder(), weights), "folder"
    if path.is_dir():
        return check_folder(path.resolve(), weights), "folder"
    if name.startswith(("/", ".", "~")):
        raise ValueError(f"model = {name!r}: there is no such folder")
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"model = {_short(name)!r}: neither a folder nor a possible hub name (owner/name)")
    return hub_folder(name, revision, weights), "hub"


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Say what the operating system says of a model's files (no permission, name too long) in one line."""
    try:
        yield
    except OSError as error:
        at = "" if error.filename is None else f": {_short(str(error.filename))}"
        raise ValueError(f"model = {_short(name)!r}: {error.strerror or error}{at}") from None


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text)} characters)"


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


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    named = str("float32" if dtype is None else dtype).removeprefix("torch.")
    if named not in known:
        raise ValueError(f"dtype = {dtype!r}: allowed are {', '.join(known)}")
    return known[named]
