"""What a profile will cost, told before it starts: units, time, memory and disk, from a short measurement."""

import functools
import shutil
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from rkcnn_lib.files import outputs_root
from rkcnn_lib.probe.neighbours import MAX_ROWS
from rkcnn_lib.runs.grid import process_count
from rkcnn_lib.runs.run import finished, run_key
from rkcnn_lib.runs.schemas import Cache, Comparison, Multilayer, Parameters, SaeCompare
from rkcnn_lib.sae import SAEConfig, TrainConfig, train_sae
from rkcnn_lib.strings import duration
from rkcnn_lib.studies.cells import sae_config, searched
from rkcnn_lib.vocabulary import ARMS, COMPARED
from rkcnn_lib.worlds import hook_width, model_facts, pick_device
from rkcnn_lib.worlds.toy import INVENTED_MODELS, WIDTHS

ASK_FROM_SECONDS = 30 * 60  # a profile that is estimated to take longer is not started unasked
SEARCH_PRODUCTS = 5  # of rows x d by d x subsets in a round: two to find neighbours, three to lift
OWN_SECONDS = 50.0  # of a notebook beside captures, mining and training, as measured on 2 cores at small sizes
RELU_TRIALS = 4  # trainings until an L1 penalty gives the L0 asked for, as measured on falling curves: 2 to 5
PARAMETERS_PER_BLOCK = 12  # x d_model^2 weights in a transformer block: 4 in attention, 8 in the MLP


@dataclass(frozen=True)
class Estimate:
    """Cost of one notebook: units of work, seconds, bytes of memory and of disk."""

    units: int
    seconds: float
    memory: float
    disk: float


def matmul_rate(device: str) -> float:
    """Measure dense float32 matrix products on ``device``, in floating-point operations a second."""
    a = torch.randn(1024, 1024, device=device)
    a @ a
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.3:
        (a @ a)[0, 0].item()  # .item() waits for the device
        done += 1
    return done * 2 * 1024**3 / (time.perf_counter() - began)


@functools.cache
def step_seconds(config: SAEConfig, batch_size: int, device: str) -> float:
    """Time a training step of an SAE on random activations, after one warm-up step."""
    X, took = torch.randn(batch_size * 2, config.d_in, device=device), []
    for n in (1, 1, 5):
        began = time.perf_counter()
        train_sae(X, config, TrainConfig(n, batch_size, 1e-3, seed=0), progress=False)
        took.append(time.perf_counter() - began)
    return max(took[2] - took[1], 1e-4) / 4


def estimate(values: Parameters, device: str, rate: float) -> Estimate:
    """Estimate one notebook; ``rate`` is :func:`matmul_rate` of the device."""
    if not isinstance(values, Cache | Comparison):
        return Estimate(1, OWN_SECONDS, 1e9, 1e7)
    hooks = [values.hook, *getattr(values, "more_hooks", [])]
    layers = values.layers if isinstance(values, Multilayer) else [values.layer]
    grids = [values] if isinstance(values, Comparison) else []
    cost = estimate_grids(values, hooks, layers, grids, device, rate)
    return replace(cost, seconds=cost.seconds + OWN_SECONDS * len(grids))


def estimate_grids(
    p: Any, hooks: list[str], layers: list[int] | None, grids: list[Any], device: str, rate: float
) -> Estimate:
    """Add up a capture of all hooks and layers and the grids of SAEs on each hook; what grids share counts for each."""
    facts = None if p.model in INVENTED_MODELS else model_facts(p.model, p.revision)
    n_layers = len(layers or range(facts.n_layers if facts else 1))
    widths = [hook_width(facts, hook) if facts else WIDTHS[p.model] for hook in hooks]
    weights = PARAMETERS_PER_BLOCK * facts.d_model**2 * facts.n_layers if facts else 0
    capture = 2 * weights * p.n_tokens / (0.5 * rate)  # half the rate of a large product, as measured
    costs = [_grid_cost(grid, width, n_layers, device, rate) for grid in grids for width in widths]
    return Estimate(
        sum(cost.units for cost in costs) or 1, capture + sum(cost.seconds for cost in costs),
        1e9 + max((cost.memory for cost in costs), default=0.0),
        p.n_tokens * sum(widths) * 2.0 * n_layers + sum(cost.disk for cost in costs),
    )  # fmt: skip


def _grid_cost(p: Comparison, d_in: int, n_layers: int, device: str, rate: float) -> Estimate:
    config, jobs = sae_config(p, d_in), process_count(p.n_jobs, device)
    cells, trained = len(p.arms) * p.n_seeds * n_layers, trainings(p) * n_layers
    training = trained * p.steps * step_seconds(config, p.batch_size, device)
    n_rounds = sum(ARMS[arm].searches for arm in p.arms) * p.n_seeds * n_layers * p.n_stages
    products = SEARCH_PRODUCTS * 2.0 * min(p.mining_rows, MAX_ROWS) * d_in * p.subsets_for(config.d_sae)
    weights = 2.0 * d_in * config.d_sae * 4
    memory = jobs * (4 * weights + 4.0 * p.mining_rows * d_in * 4 + 4.0 * p.batch_size * config.d_sae * 3)
    seconds = (training + n_rounds * products / (0.5 * rate)) / jobs
    return Estimate(cells + round(trained), seconds, memory, trained * 5 * weights)


def trainings(p: Comparison) -> float:
    """Return how many full trainings a comparison takes a layer: arms and variants, budgets, the front and so on."""
    trials = RELU_TRIALS if p.architecture == "relu" and p.l1 is None else 1
    count, n_compared = (len(p.arms) + len(p.variants)) * trials, len({*COMPARED} & {*p.arms})
    count += len(p.arms) * len(searched(p)) / p.n_seeds if len(searched(p)) > 1 else 0
    if isinstance(p, SaeCompare):
        count += (len(p.arms) * sum(p.budgets) + len({*p.front_k} - {p.k}) * n_compared) * trials
        count += n_compared * {None: 0, "relu": RELU_TRIALS}.get(p.other_architecture, 1)
    return count * p.n_seeds * (2 if p.twin_weight else 1)


def confirm(plans: dict[str, Parameters], yes: bool) -> bool:
    """Print the plan of a profile and say whether to start: ask where it is long, unless ``yes``."""
    device = str(pick_device(next(iter(plans.values())).device))
    todo = {nb: values for nb, values in plans.items() if not finished(nb, run_key(nb, values))}
    if not todo:
        return True
    rate = matmul_rate(device)
    return agreed({nb: estimate(values, device, rate) for nb, values in todo.items()}, device, rate, yes)


def agreed(costs: dict[str, Estimate], device: str, rate: float, yes: bool) -> bool:
    """Print what each part is estimated to cost, refuse what the disk cannot hold, and ask where it is long."""
    print(f"Plan on {device} ({rate / 1e9:.0f} GFLOP/s measured); units already finished are not counted off:")
    for part, cost in costs.items():
        print(f"  {part:22} {cost.units:5d} units  {duration(cost.seconds):>10}  "
              f"{cost.memory / 2**30:6.1f} GiB memory  {cost.disk / 2**30:6.2f} GiB disk")  # fmt: skip
    total, disk = (sum(getattr(cost, name) for cost in costs.values()) for name in ("seconds", "disk"))
    print(f"  in all about {duration(total)} and {disk / 2**30:.2f} GiB of disk", flush=True)
    root = outputs_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < disk:
        raise RuntimeError(f"{root} has {free / 2**30:.1f} GiB free, fewer than the plan needs")
    if yes or total < ASK_FROM_SECONDS:
        return True
    if not sys.stdin.isatty():
        print("This is long: add --yes to start it without being asked.", file=sys.stderr)
        return False
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")
