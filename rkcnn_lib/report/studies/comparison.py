"""The comparison of initialisations that 04 and 05 run: mine, initialise, train, measure, one unit a cell.

Two kinds of unit: ``directions`` (arm x seed: what a miner supplies and what it cost) and ``saes`` (arm x seed:
the SAE trained from them and its held-out quality). All arms of a seed share the mined rows, the order of
training tokens, the held-out rows, the random fill and the *number* of mined latents, which is the smallest
supply among the arms.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure import quality
from rkcnn_lib.probe import mine
from rkcnn_lib.report.params import CausalChecks, Comparison, SaeCompare
from rkcnn_lib.report.runs import INVENTED_MODELS
from rkcnn_lib.report.sweep import process_count, run_cells
from rkcnn_lib.report.units import Unit, cached_unit, load_unit, outputs_root
from rkcnn_lib.sae import (
    SAE,
    SAEConfig,
    TrainConfig,
    init_from_directions,
    load_saelens,
    save_saelens,
    train_sae,
)
from rkcnn_lib.worlds import load_model

BASELINES = ("random", "lift_unselected")  # the contrasts declared beforehand: rkcnn_lift minus each of these
LONG = 2000  # steps from which a training shows a progress bar of its own
UNMINED = "random"  # the arm without mined directions: every latent starts from the shared random fill


def sae_config(p: Comparison, d_in: int) -> SAEConfig:
    """Return the SAE every arm trains; ``d_sae`` is ``expansion`` x ``d_in``."""
    sparsity = {"l1": p.l1} if p.architecture == "relu" else {"k": p.k}
    return SAEConfig(d_in, round(p.expansion * d_in), architecture=p.architecture, aux_k=p.aux_k, **sparsity)


def train_config(p: Comparison, seed: int) -> TrainConfig:
    """Return the training settings of one seed, the same for all arms."""
    shown = tuple(sorted({0, p.steps // 16, p.steps // 4, p.steps}))
    return TrainConfig(steps=p.steps, batch_size=p.batch_size, lr=p.lr, seed=seed, snapshot_steps=shown)


def mined_unit(store: Any, p: Comparison, arm: str, seed: int, device: str) -> Unit:
    """Return an arm's directions for one seed: as many as it is to start latents from."""
    wanted = round(p.fraction_mined * round(p.expansion * store.d_in))
    if arm.startswith(("rkcnn", "lift")):
        wanted = min(wanted, p.n_directions)
    return directions_unit(store, p, arm, wanted, seed, device)


def directions_unit(store: Any, p: Comparison | CausalChecks, arm: str, wanted: int, seed: int, device: str) -> Unit:
    """Return at most ``wanted`` directions of an arm, mined on that seed's own documents and subsets (cached)."""
    options: dict[str, Any] = {}
    if arm.startswith(("rkcnn", "lift")):
        options = {"n_subsets": p.n_subsets, "subset_size": p.subset_size, "subsets": p.subsets}
        if arm != "rkcnn_coordinate":
            options["score"] = p.score
    inputs = {
        "data": store.key, "arm": arm, "seed": seed, "wanted": wanted, "rows": p.mining_rows, "options": options,
        "device": device,
    }  # fmt: skip

    def compute(scratch: Path) -> Unit:
        X = store.matrix("mine", seed=seed, n_rows=p.mining_rows).to(device)
        began = time.perf_counter()
        directions = mine(arm, X, n_directions=wanted, random_state=seed, **options)
        seconds = time.perf_counter() - began
        scalars = {"supply": len(directions), "wanted": wanted, "seconds": seconds, "rows": len(X)}
        return Unit(scalars=scalars, arrays={"directions": directions.float()})

    return cached_unit("directions", inputs, compute)


def initial_sae(store: Any, p: Comparison, arm: str, seed: int, n_mined: int, device: str) -> SAE:
    """Return an arm's SAE before training, all through one function and with the same random fill."""
    X = store.matrix("mine", seed=seed, n_rows=p.mining_rows).to(device)
    mined = None if arm == UNMINED else mined_unit(store, p, arm, seed, device).arrays["directions"][:n_mined]
    mined = None if mined is None else mined.to(device)
    return init_from_directions(sae_config(p, store.d_in), mined, X=X, random_state=seed)


def sae_unit(store: Any, p: Comparison, arm: str, seed: int, n_mined: int, device: str) -> Unit:
    """Return one trained SAE with its history, its start and its held-out quality; computed once."""
    config, training = sae_config(p, store.d_in), train_config(p, seed)
    mined = None if arm == UNMINED else mined_unit(store, p, arm, seed, device).folder.name
    inputs = {
        "data": store.key, "arm": arm, "seed": seed, "mined": mined, "n_mined": 0 if arm == UNMINED else n_mined,
        "config": asdict(config), "training": asdict(training), "mining_rows": p.mining_rows, "device": device,
        "heldout": p.heldout_rows, "splice": None if p.model in INVENTED_MODELS else p.splice_contexts,
    }  # fmt: skip

    def compute(scratch: Path) -> Unit:
        start = initial_sae(store, p, arm, seed, n_mined, device)
        began = time.perf_counter()
        sae = train_sae(
            store,
            config,
            training,
            init=start,
            checkpoint=scratch / "checkpoint",
            device=device,
            progress=p.steps > LONG,
        )
        seconds = time.perf_counter() - began
        held_out = store.matrix("heldout", n_rows=p.heldout_rows).to(device)
        found = quality(sae, held_out, **splice(store, p, device))
        untrained = quality(start, held_out)
        found |= {f"untrained_{name}": untrained[name] for name in ("explained_variance", "dead")}
        curve = pd.DataFrame(found.pop("dead_curve")).rename(columns={"dead": "share"})
        arrays = {"density": found.pop("density"), "W_dec_start": start.W_dec.data}
        arrays |= {f"W_dec_step_{step}": decoder for step, decoder in sae.snapshots.items()}
        return Unit(
            scalars=found | {"seconds": seconds, "n_mined": inputs["n_mined"]},
            tables={"history": pd.DataFrame(sae.history), "dead_curve": curve},
            arrays=arrays,
            save_extra=lambda folder: save_saelens(sae, folder / "sae", _about(store, arm, seed)),
        )

    return cached_unit("saes", inputs, compute)


def _about(store: Any, arm: str, seed: int) -> dict[str, Any]:
    """Return what SAELens asks to know of an SAE (its ``ActivationsStore.from_sae`` reads it), and whose it is."""
    manifest = store.manifest
    return {
        "model_name": manifest.get("model"), "hook_name": manifest.get("hook_name"),
        "context_size": manifest.get("context_size"), "prepend_bos": manifest.get("bos_token_id") is not None,
        "dataset_path": manifest.get("text", {}).get("name"), "arm": arm, "seed": seed,
    }  # fmt: skip


def splice(store: Any, p: Comparison, device: str) -> dict[str, Any]:
    """Return what puts an SAE back into the model: nothing where the activations have no model."""
    if p.model in INVENTED_MODELS:
        return {}
    contexts = store.contexts("heldout")[: p.splice_contexts]
    return {
        "lm": model_of(p, device), "tokens": contexts, "hook_name": store.manifest["hook_name"],
    }  # fmt: skip


def model_of(p: Comparison, device: str) -> Any:
    """Return the language model of a comparison, loaded once a process."""
    return _model(p.model, p.revision, device)


@functools.lru_cache(maxsize=1)
def _model(name: str, revision: str | None, device: str) -> Any:
    return load_model(name, revision=revision, device=device)


def run_grid(
    stores: dict[int, Any], p: Comparison, device: str, trained: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[tuple[int, str, int], Path]]:
    """Mine, train and measure every layer, seed and arm, several processes at once; finished units are only read.

    Parameters
    ----------
    stores : dict
        Layer to its activations.
    p : Comparison
        Arms, seeds, SAE, training and how many processes work at once.
    device : str
        Where each cell computes.
    trained : sequence of str, optional
        The arms that are trained, if not all; how many latents are mined still depends on all.

    Returns
    -------
    supply : DataFrame
        layer, arm, seed, supply, wanted, seconds, rows.
    folders : dict
        (layer, arm, seed) to the folder of its finished SAE unit.
    """
    n_jobs = process_count(p.n_jobs, device)
    grid = [(layer, seed, arm) for layer in stores for seed in range(p.n_seeds) for arm in p.arms]
    to_mine = [cell for cell in grid if cell[2] != UNMINED]
    cells = [(stores[layer], p, arm, seed, device) for layer, seed, arm in to_mine]
    mined = run_cells(_mine_cell, cells, n_jobs, "mining")
    supply = pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed} | scalars
        for (layer, seed, arm), scalars in zip(to_mine, mined, strict=True)
    ])  # fmt: skip
    n_mined = mined_counts(supply)
    grid = [cell for cell in grid if trained is None or cell[2] in trained]
    cells = [(stores[layer], p, arm, seed, n_mined[layer, seed], device) for layer, seed, arm in grid]
    folders = run_cells(_sae_cell, cells, n_jobs, "SAEs")
    return supply, {(layer, arm, seed): folder for (layer, seed, arm), folder in zip(grid, folders, strict=True)}


def mined_counts(supply: pd.DataFrame) -> dict[tuple[int, int], int]:
    """Return for each layer and seed how many mined latents every arm gets: the smallest supply among its arms."""
    return supply.groupby(["layer", "seed"])["supply"].min().astype(int).to_dict()


def _mine_cell(store: Any, p: Comparison, arm: str, seed: int, device: str) -> dict[str, Any]:
    return mined_unit(store, p, arm, seed, device).scalars


def _sae_cell(store: Any, p: Comparison, arm: str, seed: int, n_mined: int, device: str) -> Path:
    return sae_unit(store, p, arm, seed, n_mined, device).folder


@dataclass(frozen=True)
class Compared:
    """Everything a comparison found: units by (arm, seed) and tidy tables of them."""

    units: dict[tuple[str, int], Unit]
    supply: pd.DataFrame
    metrics: pd.DataFrame  # arm, seed, metric, value
    history: pd.DataFrame  # arm, seed, step, metric, value
    n_mined: dict[int, int]

    def decoders(self, arm: str, step: int | None = None) -> list[torch.Tensor]:
        """Return an arm's decoders (d_sae, d_in), one a seed: the trained ones, or those at a snapshot's step."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        if step is None:
            return [load_saelens(self.units[arm, seed].folder / "sae").W_dec.data for seed in seeds]
        return [self.units[arm, seed].arrays[f"W_dec_step_{step}"] for seed in seeds]

    def live(self, arm: str) -> list[torch.Tensor]:
        """Return for each seed which latents fired on the held-out tokens."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        return [self.units[arm, seed].arrays["density"] > 0 for seed in seeds]


def compare(store: Any, p: SaeCompare, device: str) -> Compared:
    """Run the grid of one layer and read back everything it left."""
    supply, folders = run_grid({p.layer: store}, p, device)
    units = {(arm, seed): load_unit(folder) for (_, arm, seed), folder in folders.items()}
    metrics = tidy({(p.layer, *cell): unit.scalars for cell, unit in units.items()})
    n_mined = {seed: count for (_, seed), count in mined_counts(supply).items()}
    return Compared(units, supply.drop(columns="layer"), metrics.drop(columns="layer"), _histories(units), n_mined)


def tidy(found: dict[tuple[int, str, int], dict[str, Any]]) -> pd.DataFrame:
    """Return one row a layer, arm, seed and metric."""
    return pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed, "metric": metric, "value": float(value)}
        for (layer, arm, seed), scalars in found.items()
        for metric, value in scalars.items()
    ])  # fmt: skip


def _histories(units: dict[tuple[str, int], Unit]) -> pd.DataFrame:
    longs = [
        unit.tables["history"]
        .drop(columns="tokens")
        .melt(id_vars=["step"], var_name="metric", value_name="value")
        .assign(arm=arm, seed=seed)
        for (arm, seed), unit in units.items()
    ]
    return pd.concat(longs, ignore_index=True)


def unit_list(compared: Compared) -> list[dict[str, Any]]:
    """Return where each SAE of a comparison lies, for run.json."""
    root = outputs_root()
    return [
        {"arm": arm, "seed": seed, "folder": str(unit.folder.relative_to(root))}
        for (arm, seed), unit in compared.units.items()
    ]
