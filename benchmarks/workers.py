"""A sweep by two worker processes beside the same sweep by one; JSON lines with ratios.

    python benchmarks/workers.py            # 12 units of ten seconds and more on the embedded model, three rounds
    python benchmarks/workers.py --rounds 1

Each side is `rkcnn sweep` in a process and an outputs folder of its own, on caches made before. `seconds` is the whole
command, start of the workers included; `seconds_a_unit` counts from the first finished SAEs to the last, mining
included, which is what a long sweep comes to. Each of two workers has one thread, the single one both cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SWEEP = """
parameters:
  profile: quick
  model: atlas
  n_tokens: 200000
  expansion: 2.0
  steps: {steps}
  batch_size: 1024
  mining_rows: 5000
  n_neighbours: 8
  heldout_rows: 5000
  splice_contexts: 4
  arms: [random, rkcnn]
  n_jobs: {n_jobs}
axes:
  layers: [0, 1, 2]
  seeds: {seeds}
"""
SIDES = {"two workers": 2, "one worker": 1}


def swept(n_jobs: int, caches: Path, steps: int, seeds: list[int]) -> dict[str, float]:
    """Run the sweep into an empty outputs folder and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        file.write_text(SWEEP.format(steps=steps, n_jobs=n_jobs, seeds=seeds), encoding="utf-8")
        outputs = Path(folder) / "outputs"
        outputs.mkdir()
        (outputs / "cache").symlink_to(caches)
        environment = os.environ | {"RKCNN_OUTPUTS": str(outputs)}
        began = time.perf_counter()
        command = [sys.executable, "-m", "rkcnn_lib.cli", "sweep", str(file), "--out", f"{folder}/out", "--yes"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{n_jobs} workers failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        seconds = time.perf_counter() - began
        ends = sorted(unit.stat().st_mtime for unit in outputs.glob("units/saes/*/unit.json"))
        return {"seconds": seconds, "seconds_a_unit": (ends[-1] - ends[n_jobs - 1]) / max(1, len(ends) - n_jobs)}


def main() -> None:
    """Let the sides take turns and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        swept(2, Path(folder), 1, [0])  # fills the caches
        rounds = [
            {side: swept(n_jobs, Path(folder), options.steps, [0, 1]) for side, n_jobs in SIDES.items()}
            for _ in range(options.rounds)
        ]
    for side in SIDES:
        found = {name: [one[side][name] for one in rounds] for name in ("seconds", "seconds_a_unit")}
        ratios = {
            f"{name}_over_two": round(median(one[side][name] / one["two workers"][name] for one in rounds), 2)
            for name in found
        }
        print(json.dumps({
            "benchmark": "workers", "side": side, "units": 12, "steps": options.steps, "rounds": options.rounds,
            **{name: round(median(values), 2) for name, values in found.items()}, **ratios, "cores": os.cpu_count(),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
