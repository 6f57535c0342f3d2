"""Modular addition: a one-block transformer that has grokked a + b mod p, and whose circuit is known.

The input is (a, b, =) with token p for ``=``, at which the answer is read. The trained model computes it by Fourier
components of a few key frequencies (Nanda et al. 2023, "Progress measures for grokking via mechanistic
interpretability"), which :mod:`rkcnn_lib.measure.fourier` looks for.

It is used as the language models are: its text is all p * p pairs, each a document of three tokens, of which stores
count the ``=`` alone. The model never trained on a store's held-out pairs (by the documents' hashes, as ever), of which
none is the same sum the other way round in another split.

``python -m benchmarks.embedded.modadd train`` makes the weights, ``... check`` measures them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rkcnn_lib.files import read_json
from rkcnn_lib.worlds.text import Document, TextSource, document_hash, is_held_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FOLDER = Path(__file__).parents[1] / "assets" / "modadd"
MODEL_TYPE = "modadd"  # of config.json
N_TOKENS = 3  # a, b, =


def all_pairs(p: int) -> torch.Tensor:
    """Return the (p * p, 2) pairs (a, b), a varying slowest."""
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def inputs(pairs: torch.Tensor, p: int) -> torch.Tensor:
    """Return the (n, 3) token ids (a, b, =) of (n, 2) pairs."""
    return torch.cat([pairs, torch.full((len(pairs), 1), p)], dim=1)


def asked(tokens: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Return where the model is asked something, and the (n, 1) answers, of (n, 3) tokens: at the ``=``, (a + b) mod p.

    See :mod:`rkcnn_lib.tokens`; p is the token of the ``=``.
    """
    return slice(N_TOKENS - 1, N_TOKENS), (tokens[:, :1] + tokens[:, 1:2]) % tokens[:, 2:]


def pair_text(a: int, b: int) -> str:
    """Return what a pair's document is hashed by: the same for (a, b) and (b, a), which the model treats alike."""
    return f"{min(a, b)} {max(a, b)} ="


def held_out_pairs(p: int) -> torch.Tensor:
    """Return for each of :func:`all_pairs` whether a store holds it out, and no model trains on it: (p * p,) bool."""
    hashes = [document_hash(pair_text(a, b)) for a, b in all_pairs(p).tolist()]
    return torch.from_numpy(is_held_out(np.array(hashes)))


def untrained(p: int, trained: torch.Tensor) -> torch.Tensor:
    """Say for each of :func:`all_pairs` whether it is missing among the (n, 2) pairs trained on: (p * p,) bool."""
    never = torch.ones(p * p, dtype=torch.bool)
    never[trained[:, 0] * p + trained[:, 1]] = False
    return never


def source(p: int, text: str | None) -> TextSource:
    """Return the model's "text": all pairs, each once, in a random order; no other text is read."""
    if text not in (None, "auto"):
        raise ValueError(f"text = {text!r}: a modular-addition model reads nothing but its pairs; leave text out")

    def documents() -> Iterator[Document]:
        order = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))
        return (Document(pair_text(a, b), (a, b, p)) for a, b in all_pairs(p)[order].tolist())

    name = f"all {p * p:,} pairs (a, b, =) of addition mod {p}, in random order, seed 0"
    return TextSource(name, lambda: name, documents, continued=False)


def check_hooks(hooks: Sequence[str]) -> None:
    """Raise ValueError for a hook at which all pairs look alike: what enters the block at the ``=`` is always ``=``."""
    if "resid_pre" in hooks:
        raise ValueError(
            "hook = 'resid_pre': before the only block every = looks alike; choose attn_out, mlp_post, mlp_out or "
            "resid_post"
        )


def training_pairs(p: int, train_share: float, seed: int) -> torch.Tensor:
    """Return the (n, 2) pairs trained on: ``int(train_share p^2)`` of those that no store holds out, in order."""
    pairs = all_pairs(p)
    allowed = pairs[~held_out_pairs(p)]
    n = int(train_share * len(pairs))
    chosen = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))[:n]
    return allowed[chosen.sort().values]


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a modular-addition folder, None if the folder holds another kind of model."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    return config if config.get("model_type") == MODEL_TYPE else None


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights by name, float32; ValueError if the folder holds no trained modular-addition model."""
    from safetensors.torch import load_file

    if read_config(folder) is None or not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{folder} holds no trained model: run `python -m benchmarks.embedded.modadd train --out {folder}`"
        )
    return load_file(folder / "model.safetensors")


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Return a trained folder as a ``TransformerBridge``, with hooks named as in any other.

    What differs from a language model: ``asked``, ``first_position`` (2, the ``=``), the training's ``history`` (a list
    of rows) and ``untrained``, which of :func:`all_pairs` it was never trained on.
    """
    import transformer_lens.model_bridge.sources.native  # noqa: F401  (gives the bridge its boot_native)
    from transformer_lens import TransformerBridge
    from transformer_lens.config import TransformerBridgeConfig

    config, weights = read_config(folder) or {}, read_weights(folder)
    d, heads = config["hidden_size"], config["num_attention_heads"]
    lm = TransformerBridge.boot_native(  # pyright: ignore[reportAttributeAccessIssue]: the import above adds it
        TransformerBridgeConfig(
            d_model=d, d_head=d // heads, n_layers=1, n_ctx=N_TOKENS, n_heads=heads, d_vocab=config["vocab_size"],
            d_mlp=config["intermediate_size"], act_fn="relu", normalization_type=None, init_weights=False,
            default_prepend_bos=False,
        ),
        device=device, dtype=dtype, model_name=MODEL_TYPE,
    )  # fmt: skip
    _fill(lm, weights)
    lm.tokenizer = tokenizer(config["vocab_size"] - 1)
    lm.asked, lm.first_position = asked, N_TOKENS - 1
    p, train_share, seed = (config["training"][name] for name in ("p", "train_share", "seed"))
    lm.untrained = untrained(p, training_pairs(p, train_share, seed))
    lm.history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return lm.eval()


@torch.no_grad()
def _fill(lm: TransformerBridge, weights: dict[str, torch.Tensor]) -> None:
    """Put the weights into the bridge; the biases that this model does not have become 0."""
    attention, mlp = lm.blocks[0].attn, lm.blocks[0].mlp
    linear = {
        "W_Q": attention.q, "W_K": attention.k, "W_V": attention.v, "W_O": attention.o,
        "W_in": getattr(mlp, "in"), "W_out": mlp.out, "W_U": lm.unembed,
    }  # fmt: skip
    for name, part in linear.items():
        module = part.original_component
        module.weight.copy_(weights[name].T)
        module.bias.zero_()
    getattr(mlp, "in").original_component.bias.copy_(weights["b_in"])
    mlp.out.original_component.bias.copy_(weights["b_out"])
    lm.embed.original_component.weight.copy_(weights["W_E"])
    lm.pos_embed.original_component.weight.copy_(weights["W_pos"])


def tokenizer(p: int) -> Any:
    """Return a tokenizer that writes the tokens out: the numbers, and ``=``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(number): number for number in range(p)} | {"=": p}
    words = Tokenizer(models.WordLevel(vocabulary))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)
