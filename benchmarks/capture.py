"""Capture's tokens a second beside the bare forward pass cut at the same block and SAELens's store; its memory.

    python benchmarks/capture.py                # GPT-2 small's shape with random weights, hook mlp_out of block 6
    python benchmarks/capture.py --layer 2 --tokens 4096
    python benchmarks/capture.py --memory       # the embedded model: peak memory at 50,000 and at 500,000 tokens

    make peers                                  # once, for SAELens's side; left out where it is missing

Prints JSON lines. The bare pass is Hugging Face's GPT-2 without the blocks above, on the same tokens and batches,
keeping nothing; ours reads the text, packs it, runs the model, converts, checks and writes shards. Model loading and
the loss that a manifest records are left out; SAELens's activation store runs a HookedTransformer of the same shape
and only reads. The sides take turns. Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CONTEXT = 128
ROOT = Path(__file__).resolve().parents[1]
SAE_LENS = ROOT / ".venv-sae-lens/bin/python"


def bare(folder: str, layer: int, tokens: int, batch: int) -> dict[str, float]:
    """Time the Hugging Face model, cut above ``layer``, on ``tokens`` random tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).transformer.eval()
    model.h = model.h[: layer + 1]
    ids = torch.randint(0, 256, (tokens // CONTEXT, CONTEXT))
    with torch.no_grad():
        model(ids[: batch // CONTEXT], use_cache=False)  # warm-up
        began = time.perf_counter()
        for part in ids.split(batch // CONTEXT):
            model(part, use_cache=False)
    return {"seconds": time.perf_counter() - began}


def ours(folder: str, layer: int, tokens: int, batch: int) -> dict[str, float]:
    """Time a capture of ``tokens`` tokens of text, from the text file to the finished folder."""
    import warnings

    from rkcnn_lib.worlds import load_model, open_or_capture
    from rkcnn_lib.worlds.activations import capture_job

    warnings.filterwarnings("ignore")
    lm = load_model(folder, device="cpu")
    capture_job._loss = lambda *_: {"nats": None, "n_tokens": 0, "split": "heldout"}
    with tempfile.TemporaryDirectory() as root:
        text = Path(root) / "text.txt"
        text.write_text("\n\n".join(f"{i} " + "abcdefgh " * 40 for i in range(tokens // 300)), encoding="utf-8")
        options: dict[str, Any] = {"layer": layer, "hook": "mlp_out", "text": str(text), "root": root, "lm": lm}
        open_or_capture(folder, n_tokens=20 * CONTEXT, batch_size=batch // CONTEXT, **options)  # warm-up
        began = time.perf_counter()
        open_or_capture(folder, n_tokens=tokens, batch_size=batch // CONTEXT, **options)
        return {"seconds": time.perf_counter() - began}


def memory(folder: str, layer: int, tokens: int, batch: int) -> dict[str, float]:
    """Peak memory of a capture of the embedded model."""
    from rkcnn_lib.worlds import open_or_capture

    with tempfile.TemporaryDirectory() as root:
        open_or_capture("atlas", layer=2, hook="mlp_out", n_tokens=tokens, root=root, device="cpu")
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def sae_lens(folder: str, layer: int, tokens: int, batch: int) -> dict[str, float]:
    """Time SAELens's store, in its own environment."""
    sizes = {"layer": layer, "tokens": tokens, "batch": batch, "context": CONTEXT}
    command = [str(SAE_LENS), str(ROOT / "benchmarks/peers/sae_lens_store.py"), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


SIDES = {"bare": bare, "ours": ours, "sae-lens": sae_lens, "memory": memory}


def measured(side: str, *given: Any) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def random_gpt2(folder: Path) -> str:
    """Save a model of GPT-2 small's shape with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Compare ours with the bare pass, or measure memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side[0]](*json.loads(options.side[1]))))
        return
    about = {"threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count())}
    if options.memory:
        for tokens in (50_000, 500_000):
            found = measured("memory", "", 0, tokens, 0)
            print(json.dumps({"benchmark": "capture's memory", "tokens": tokens, **found, **about}), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        given = (random_gpt2(Path(folder)), options.layer, options.tokens, 2048)
        sides = ["bare", "ours", *(["sae-lens"] if SAE_LENS.exists() else [])]
        rivals = [side for side in sides if side != "ours"]
        rounds = [{side: measured(side, *given)["seconds"] for side in sides} for _ in range(options.rounds)]
    print(json.dumps({
        "benchmark": "capture", "layer": options.layer, "tokens": options.tokens, "rounds": options.rounds,
        **{f"{side}_tokens_a_second": round(options.tokens / median(r[side] for r in rounds)) for side in rounds[0]},
        **{f"ours_over_{side}": round(median(r[side] / r["ours"] for r in rounds), 3) for side in rivals},
        "over_rounds": [round(r["bare"] / r["ours"], 3) for r in rounds], **about,
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
