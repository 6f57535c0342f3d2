"""A folder in Hugging Face format as a TransformerBridge, or the reason why it cannot be one; and on which device."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rkcnn_lib.files import read_json
from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.worlds.models.hub import words

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def boot(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Return the model of a folder as a ``TransformerBridge`` in evaluation mode.

    ValueError if the tokenizer cannot be read, the files lack weights of the model (which would be left random), the
    bridge cannot run its architecture, or it reads later tokens.
    """
    from transformer_lens import TransformerBridge

    kinds = read_json(folder / "config.json").get("architectures")
    called = f"{name} ({', '.join(kinds) if isinstance(kinds, list) else 'no architecture named'})"
    with _quiet():
        tokenizer = _tokenizer(folder)
        has_bos = tokenizer.bos_token is not None  # asked now: the bridge changes it
        with _refused(f"{called} cannot be run by TransformerBridge"):
            lacking = _lacking(folder)
        if lacking:
            named = ", ".join(lacking[:3]) + " ..." * (len(lacking) > 3)
            raise ValueError(f"{called}: the weights in {folder} lack {named}, which would be left random")
        with _refused(f"{called} cannot be run by TransformerBridge"):
            lm = TransformerBridge.boot_transformers(
                str(folder), device=device, dtype=dtype, tokenizer=tokenizer, trust_remote_code=False
            ).eval()
            is_causal = _is_causal(lm)
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

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", output_loading_info=True, local_files_only=True, trust_remote_code=False
    )
    _, loading = loaded
    return sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])


def _is_causal(lm: LanguageModel) -> bool:
    """Whether what is said of early tokens is the same whatever the last one; so the model runs at all, too."""
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=lm.cfg.device) % lm.cfg.d_vocab
    with torch.no_grad():
        one, other = lm(ids, return_type="logits")[:, :-1].float()
    allowed = max(1e-4, 16 * torch.finfo(lm.cfg.dtype).eps)
    return bool((one - other).norm() <= allowed * one.norm())


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    with contextlib.suppress(Exception):  # some tokenizers refuse the option
        return AutoTokenizer.from_pretrained(folder, add_bos_token=True, **local)
    with _refused(f"the tokenizer in {folder} cannot be read"):
        return AutoTokenizer.from_pretrained(folder, **local)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Say in one line, as a ValueError, what cannot be done and why."""
    try:
        yield
    except Exception as error:
        why = words(error)[:300]
        if "trust_remote_code" in str(error):
            why = "its code is not part of transformers, and code that comes with a model is never run"
        raise ValueError(f"{what}: {why}") from error


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


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to compute on; None: the GPU if there is one, else the CPU. ``"cpu"`` is always obeyed.

    RuntimeError, with torch's reason, if CUDA is asked for, or a GPU is there, and torch cannot use it; ValueError if
    the name is no device.
    """
    if device is None:
        if not _gpu_there() and not torch.cuda.is_available():
            return torch.device("cpu")
        if problem := cuda_problem():
            raise RuntimeError(
                f"this machine has a GPU that torch cannot use: {problem}. Install a torch that fits its driver, "
                "or say device = 'cpu' to compute on the CPU."
            )
        return torch.device("cuda")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device = {device!r}: expected cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (problem := cuda_problem(chosen)):
        raise RuntimeError(f"device = {str(device)!r} cannot be used: {problem}")
    return chosen


def cuda_problem(device: str | torch.device = "cuda") -> str | None:
    """Return why torch cannot compute on this CUDA device, or None if it can (one addition is tried)."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        (torch.ones(1, device=device) + 1).item()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _gpu_there() -> bool:
    """Whether an NVIDIA GPU is visible to this process, whatever torch thinks."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False  # hidden on purpose
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:  # where the driver lies elsewhere (WSL)
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU " in listed.stdout
