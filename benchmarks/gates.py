"""How often the gates of 01 and 02 pass, on what they should pass and on noise; JSON lines.

    python benchmarks/gates.py 01 [--seeds 40]
    python benchmarks/gates.py 02 [--seeds 20] [--controls gaussian permuted]

A gate looks at the seeds of one run together (5 in the quick profile). Here as many seeds are run as are asked for,
at the quick profile's sizes, and the gate is asked of each disjoint group of 5 and of 200 random groups of 5 (which
share seeds, so their rate has no interval of its own). Wanted: at least 95 % on trained models, at most 5 % on noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd

from rkcnn_lib.runs.params import ROOT, read_parameter_file, resolve
from rkcnn_lib.runs.run import Check
from rkcnn_lib.runs.schemas import Parameters
from rkcnn_lib.studies import neighbourhoods, probing, toy

GROUP = 5  # seeds of a run in the quick profile
DRAWS = 200
CONTROLS = ("none", "gaussian", "permuted")


def quick(notebook: str, **changed: object) -> Parameters:
    """Return the quick profile's parameters of a notebook, changed."""
    return resolve(notebook, read_parameter_file(ROOT / "params/quick" / f"{notebook}.yaml") | changed)


def of_seeds(table: pd.DataFrame, seeds: np.ndarray) -> pd.DataFrame:
    """Return the rows of these seeds."""
    return table[table["seed"].isin(seeds)]


def gate_01(control: str, n_seeds: int) -> Callable[[np.ndarray], list[Check]]:
    """Mine n_seeds toy models; return the gate as a function of the seeds it sees."""
    p = quick("01_toy_superposition", control=control, n_seeds=n_seeds, miners=["rkcnn"])
    table = toy.mine_all(toy.train_spaces(p), SimpleNamespace(p=p, device="cpu")).table
    return lambda seeds: toy.checks(toy.Mined(of_seeds(table, seeds), {}), p)


def gate_02(control: str, n_seeds: int) -> Callable[[np.ndarray], list[Check]]:
    """Probe n_seeds of both worlds; return the gate as a function of the seeds it sees."""
    p = quick("02_probe_validation", control=control, n_seeds=n_seeds)
    run = SimpleNamespace(p=p, device="cpu")
    worlds = {"toy": probing.toy_tasks, "atlas": probing.atlas_tasks}
    found = {name: (probing.study(run, tasks), neighbourhoods.study(run, tasks)) for name, tasks in worlds.items()}

    def gate(seeds: np.ndarray) -> list[Check]:
        checks = []
        for world, tables in found.items():
            accuracies, shared = (of_seeds(table, seeds) for table in tables)
            checks += [*probing.checks(accuracies, world), *neighbourhoods.checks(shared, world)]
        return checks

    return gate


def rates(gate: Callable[[np.ndarray], list[Check]], groups: list[np.ndarray]) -> dict[str, float]:
    """Return the share of groups that pass the gate, and each of its checks."""
    rows = []
    for seeds in groups:
        checks = gate(seeds)
        rows.append({check.name: check.passed for check in checks} | {"gate": all(check.passed for check in checks)})
    return {name: round(share, 3) for name, share in pd.DataFrame(rows).mean().items()}


def main() -> None:
    """Print one line a control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", choices=("01", "02"), nargs="?", default="01")
    parser.add_argument("--seeds", type=int, default=20, help="seeds that are run (a multiple of 5)")
    parser.add_argument("--controls", nargs="+", choices=CONTROLS, default=CONTROLS, help="none: the trained model")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    disjoint = list(np.arange(options.seeds).reshape(-1, GROUP))
    drawn = [rng.choice(options.seeds, GROUP, replace=False) for _ in range(DRAWS)]
    for control in options.controls:
        began = time.perf_counter()
        gate = {"01": gate_01, "02": gate_02}[options.notebook](control, options.seeds)
        print(json.dumps({
            "benchmark": f"gate of {options.notebook}", "control": control, "seeds": options.seeds,
            "disjoint_groups": len(disjoint), "passed": rates(gate, disjoint)["gate"],
            "random_groups": rates(gate, drawn), "seconds": round(time.perf_counter() - began),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
