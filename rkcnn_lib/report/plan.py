"""What a profile will cost, told before it starts: units, time, memory and disk, from a short measurement."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass

import torch

from rkcnn_lib.report.params import Activations, Comparison, Multilayer, Parameters, SaeCompare
from rkcnn_lib.report.runs import INVENTED_MODELS, finished, run_key
from rkcnn_lib.report.units import outputs_root

ASK_FROM_SECONDS = 30 * 60  # a profile that is estimated to take longer is not started unasked
ASCENT_STEPS = 60  # fixed-point steps that a lift takes at most, each two products of rows x d by d x starts
TOY_SECONDS = 60.0  # 01, 02 and 06 have no long part of their own: a minute each, as measured on 2 cores
N_FRONT_ARMS, N_OTHER_ARMS = 3, 2  # trained at every further k, and with the other architecture
RELU_TRIALS = 4  # trainings until an L1 penalty gives the L0 asked for, as measured on falling curves: 2 to 5
PARAMETERS_PER_BLOCK = 12  # x d_model^2 weights in a transformer block: 4 in attention, 8 in the MLP


@dataclass(frozen=True)
class Estimate:
    """Cost of one notebook: units of work, seconds, bytes of memory and of disk."""

    units: int
    seconds: float
    memory: float
    disk: float


def matmul_rate(device: str, size: int = 1024, seconds: float = 0.3) -> float:
    """Measure dense float32 matrix products on ``device``, in floating-point operations a second."""
    a = torch.randn(size, size, device=device)
    a @ a
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        (a @ a)[0, 0].item()  # .item() waits for the device
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - began)


def step_seconds(p: Comparison, d_in: int, device: str, steps: int = 4) -> float:
    """Time a training step of the comparison's SAE on random activations, after one warm-up step."""
    from rkcnn_lib.report.studies.cells import sae_config
    from rkcnn_lib.sae import TrainConfig, train_sae

    X = torch.randn(p.batch_size * 2, d_in, device=device)

    def run(n: int) -> float:
        began = time.perf_counter()
        train_sae(X, sae_config(p, d_in), TrainConfig(n, p.batch_size, p.lr, seed=0), progress=False)
        return time.perf_counter() - began

    run(1)
    one, many = run(1), run(1 + steps)
    return max(many - one, 1e-4) / steps


def estimate(notebook: str, values: Parameters, device: str, rate: float) -> Estimate:
    """Estimate one notebook; ``rate`` is :func:`matmul_rate` of the device."""
    from rkcnn_lib.report.sweep import process_count
    from rkcnn_lib.worlds import hook_width, model_facts

    if not isinstance(values, Activations | Comparison):
        return Estimate(1, TOY_SECONDS, 1e9, 1e7)
    if values.model in INVENTED_MODELS:
        d_in, layers, capture = 64, 1, 0.0
    else:
        facts = model_facts(values.model, values.revision)
        d_in = hook_width(facts, values.hook)
        layers = len(values.layers or range(facts.n_layers)) if isinstance(values, Multilayer) else 1
        weights = PARAMETERS_PER_BLOCK * facts.d_model**2 * facts.n_layers
        capture = 2 * weights * values.n_tokens / (0.5 * rate)  # half the rate of a large product, as measured
    cache = values.n_tokens * d_in * 2.0 * layers
    if not isinstance(values, SaeCompare | Multilayer):
        return Estimate(1, capture, 1e9, cache)
    cells, trained = len(values.arms) * values.n_seeds * layers, trainings(values) * layers
    d_sae = round(values.expansion * d_in)
    training = trained * values.steps * step_seconds(values, d_in, device)
    mining = cells * 4.0 * values.mining_rows * d_in * values.n_directions * ASCENT_STEPS / (0.5 * rate)
    weights = 2.0 * d_in * d_sae * 4
    jobs = process_count(values.n_jobs, device)
    memory = jobs * (4 * weights + 4.0 * values.mining_rows * d_in * 4 + 4.0 * values.batch_size * d_sae * 3)
    return Estimate(cells + trained, capture + (training + mining) / jobs, 1e9 + memory, cache + trained * 5 * weights)


def trainings(p: Comparison) -> int:
    """Return how many SAEs a comparison trains a layer: arms and variants, the front, the other architecture."""
    trials = RELU_TRIALS if p.architecture == "relu" and p.l1 is None else 1
    count = (len(p.arms) + len(p.variants)) * trials
    if isinstance(p, SaeCompare):
        count += len({*p.front_k} - {p.k}) * N_FRONT_ARMS * trials
        if p.other_architecture is not None:
            count += N_OTHER_ARMS * (RELU_TRIALS if p.other_architecture == "relu" else 1)
    return count * p.n_seeds


def confirm(plans: dict[str, Parameters], yes: bool) -> bool:
    """Print the plan of a profile and say whether to start: ask where it is long, unless ``yes``."""
    from rkcnn_lib.worlds.devices import pick_device

    device = str(pick_device(next(iter(plans.values())).device))
    todo = {nb: values for nb, values in plans.items() if not finished(nb, run_key(nb, values))}
    if not todo:
        return True
    rate = matmul_rate(device)
    found = {notebook: estimate(notebook, values, device, rate) for notebook, values in todo.items()}
    print(f"Plan on {device} ({rate / 1e9:.0f} GFLOP/s measured); units already finished are not counted off:")
    for notebook, e in found.items():
        print(f"  {notebook:22} {e.units:5d} units  {_duration(e.seconds):>10}  "
              f"{e.memory / 2**30:6.1f} GiB memory  {e.disk / 2**30:6.2f} GiB disk")  # fmt: skip
    total = sum(e.seconds for e in found.values())
    disk = sum(e.disk for e in found.values())
    print(f"  in all about {_duration(total)} and {disk / 2**30:.2f} GiB of disk", flush=True)
    root = outputs_root()
    root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(root).free < disk:
        raise RuntimeError(f"{root} has {shutil.disk_usage(root).free / 2**30:.1f} GiB free, fewer than the plan needs")
    if yes or total < ASK_FROM_SECONDS:
        return True
    if not sys.stdin.isatty():
        print("This is long: add --yes to start it without being asked.", file=sys.stderr)
        return False
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
