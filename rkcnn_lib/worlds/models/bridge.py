"""A folder in Hugging Face format as a TransformerBridge, or the reason why it cannot be one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rkcnn_lib.files import read_json


def boot(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model of a folder as a ``TransformerBridge`` in evaluation mode.

    Raises
    ------
    ValueError
        If the tokenizer cannot be read, the files lack weights of the model (which would be left random), the bridge
        cannot run its architecture, or it reads later tokens.
    """
    from transformer_lens import TransformerBridge

    kinds = read_json(folder / "config.json").get("architectures")
    called = f"{name} ({', '.join(kinds) if isinstance(kinds, list) else 'no architecture named'})"
    with _quiet():
        tokenizer = _tokenizer(folder)
        has_bos = tokenizer.bos_token is not None
        try:
            lacking = _lacking(folder)
            if not lacking:
                lm = TransformerBridge.boot_transformers(
                    str(folder), device=device, dtype=dtype, tokenizer=tokenizer, trust_remote_code=False
                ).eval()
                is_causal = _is_causal(lm)
        except Exception as error:
            raise ValueError(f"{called} cannot be run by TransformerBridge: {_words(error)}") from error
    if lacking:
        named = ", ".join(lacking[:3]) + " ..." * (len(lacking) > 3)
        raise ValueError(f"{called}: the weights in {folder} lack {named}, which would be left random")
    if not is_causal:
        raise ValueError(f"{called} reads later tokens: no causal language model")
    if not has_bos:
        # The bridge invents <|endoftext|> for tokenizers without such a token, with an id past the embedding.
        lm.tokenizer.bos_token = None
        lm.cfg.default_prepend_bos = False
    return lm


def _lacking(folder: Path) -> list[str]:
    """Return the names of weights that the model has and the files have not, or in another shape; none are read."""
    from transformers import AutoModelForCausalLM

    _, loading = AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", output_loading_info=True, local_files_only=True, trust_remote_code=False
    )
    return sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])


def _is_causal(lm: Any) -> bool:
    """Whether what is said of early tokens is the same whatever the last one; so the model runs at all, too."""
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=lm.cfg.device) % lm.cfg.d_vocab
    with torch.no_grad():
        one, other = lm(ids, return_type="logits")[:, :-1].float()
    allowed = max(1e-4, 16 * torch.finfo(lm.cfg.dtype).eps)
    return bool((one - other).norm() <= allowed * one.norm())


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        try:
            return AutoTokenizer.from_pretrained(folder, add_bos_token=True, **local)
        except (TypeError, ValueError):  # some tokenizers refuse the option
            return AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read: {_words(error)}") from error


def _words(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "its code is not part of transformers, and code that comes with a model is never run"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
