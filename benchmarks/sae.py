"""Time an SAE's training step against SAELens and dictionary_learning; one JSON line a side, with ratios.

    make peers && python benchmarks/sae.py               # d = 768, 6,144 latents, k = 32, batch 1,024, float32
    python benchmarks/sae.py --small                      # d = 128, 512 latents: seconds, to see that all sides run
    python benchmarks/sae.py --device cuda --bf16 --batch-size 4096

TopK on the same random batches, AuxK idle (no latent is dead), gradient clipping and Adam on every side; SAELens both
as it comes and with its sparse activations. Each peer works in an environment of its own (``make peers``) and a
process of its own; the sides take turns, and a ratio is the median over the rounds of the peer's time over ours in
the same round. Then 8 SAEs, as in a comparison of arms and seeds, on the same batches. Peak memory is the process's
(on CUDA the allocator's).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = {
    "rkcnn_lib": (Path(sys.executable), "rkcnn_step.py", {}),
    "sae-lens": (ROOT / ".venv-sae-lens/bin/python", "sae_lens_step.py", {"sparse": False}),
    "sae-lens, sparse": (ROOT / ".venv-sae-lens/bin/python", "sae_lens_step.py", {"sparse": True}),
    "dictionary-learning": (ROOT / ".venv-dictionary-learning/bin/python", "dictionary_learning_step.py", {}),
}
OURS = "rkcnn_lib"


def timed(side: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Run one side's script in its own interpreter and return what it printed."""
    python, script, more = SIDES[side]
    command = [str(python), str(ROOT / "benchmarks/peers" / script), json.dumps(sizes | more)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(sizes: dict[str, Any], rounds: int) -> None:
    """Print a line a side: seconds a step, tokens a second, peak memory, and its time over ours."""
    sides = [side for side, (python, _, _) in SIDES.items() if python.exists()]
    for side in SIDES.keys() - set(sides):
        print(json.dumps({"side": side, "skipped": "no environment: run make peers"}))
    found = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            found[side].append(timed(side, sizes))
    for side in sides:
        seconds = [one["seconds"] for one in found[side]]
        ratios = [one / ours["seconds"] for one, ours in zip(seconds, found[OURS], strict=True)]
        print(json.dumps({
            "benchmark": "SAE training step", "side": side, **sizes, "rounds": rounds, "torch": found[side][0]["torch"],
            "seconds_a_step": round(median(seconds), 4),
            "tokens_a_second": round(sizes["batch_size"] * sizes["n_saes"] / median(seconds)),
            "peak_mib": round(max(one["peak_mib"] for one in found[side])),
            "time_over_ours": round(median(ratios), 2),
            "over_rounds": [round(min(ratios), 2), round(max(ratios), 2)],
        }), flush=True)  # fmt: skip


def main() -> None:
    """Compare one SAE, then eight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="d = 128, 512 latents, batch 256")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on every side")
    options = parser.parse_args()
    sizes = {"d_in": 128, "d_sae": 512, "k": 16, "batch_size": 256} if options.small else {
        "d_in": 768, "d_sae": 6144, "k": 32, "batch_size": 1024
    }  # fmt: skip
    sizes |= {"steps": options.steps, "warm_up": 3, "threads": options.threads, "device": options.device}
    sizes |= {"bf16": options.bf16} | ({"batch_size": options.batch_size} if options.batch_size else {})
    for n_saes in (1, 8):
        compare(sizes | {"n_saes": n_saes}, options.rounds if n_saes == 1 else 1)


if __name__ == "__main__":
    main()
