"""A tiny random GPT-2 with a word-level tokenizer, and a small text, for the tests of this folder."""

from __future__ import annotations

import random
from pathlib import Path

import torch

WORDS = [f"w{i}" for i in range(100)]


def tiny_model(folder: Path, scale: float = 1.0) -> str:
    """Save a 3-block GPT-2 (width 32, MLP 128, 64 positions) and return its folder's name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_embd=32, n_head=4, n_positions=64, vocab_size=300, bos_token_id=1, eos_token_id=1
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight *= scale
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer whose tokens are whole words, 2 to 101, and <bos>, 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<bos>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<bos>").save_pretrained(folder)


def small_text(path: Path, n_documents: int = 200, seed: int = 0) -> str:
    """Write paragraphs of 5 to 60 words, parted by blank lines, and return the file's name."""
    rng = random.Random(seed)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(n_documents)]
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)
