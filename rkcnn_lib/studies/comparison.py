"""The comparison of initialisations that 04 and 05 run: mine, initialise, train, measure, one unit a cell.

All arms of a seed share the rows that are mined, the order of training tokens, the held-out rows, and what fills the
latents that an arm cannot supply; each has the learning rate and the encoder that suit it best on a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.files import outputs_root
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.schemas import Comparison, SaeCompare
from rkcnn_lib.runs.units import Unit, load_unit, unit_scalars
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.cells import matched_unit, mined_unit, rate_unit, searched

QUALITIES = ("explained_variance", "explained_variance_standardised", "dead", "live")  # shown along the budgets


@dataclass(frozen=True)
class Grid:
    """What a grid of cells left."""

    supply: pd.DataFrame
    """layer, arm, seed, supply, wanted, seconds, rows; of the arms that select also their funnel, summed over rounds
    (drawn, candidates, places, kept) and candidates_a_place, in the tightest round."""
    folders: dict[tuple[int, str, int], Path]
    """(layer, arm, seed) to the folder of its finished SAE unit."""
    rates: pd.DataFrame
    """arm, lr, encoder, explained_variance, chosen: the search for what suits each arm; empty without one."""


def run_grid(
    stores: dict[int, Any], p: Comparison, device: str, trained: Sequence[str] | None = None,
    rates: pd.DataFrame | None = None,
) -> Grid:  # fmt: skip
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
        The arms and variants that are trained, if not all.
    rates : DataFrame, optional
        A search for learning rates to go by (see :attr:`Grid.rates`), instead of one with these parameters.
    """
    arms = [arm for arm in (*p.arms, *p.variants) if trained is None or arm in trained]
    rates = _search_rates(stores, p, arms, device) if rates is None else rates
    own = {
        row.arm: p.model_copy(update={"lr": row.lr, "encoder": row.encoder})
        for row in rates[rates["chosen"]].itertuples()
    }
    grid = [(layer, arm, seed) for layer in stores for seed in range(p.n_seeds) for arm in arms]
    cells = [(stores[layer], own.get(arm, p), arm, seed, device) for layer, arm, seed in grid]
    done = run_cells(cell, cells, process_count(p.n_jobs, device), "SAEs")
    supply = pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed} | supplied
        for (layer, arm, seed), (_, supplied) in zip(grid, done, strict=True) if arm in p.arms and supplied
    ])  # fmt: skip
    return Grid(supply, dict(zip(grid, (folder for folder, _ in done), strict=True)), rates)


def _search_rates(stores: dict[int, Any], p: Comparison, arms: list[str], device: str) -> pd.DataFrame:
    """Try learning rates and encoders with every arm at the middle layer, on a seed of its own: :attr:`Grid.rates`."""
    columns = ["arm", "lr", "encoder", "explained_variance", "chosen"]
    grid = [(arm, *pair) for arm in arms for pair in searched(p) if len(searched(p)) > 1]
    store = stores[sorted(stores)[len(stores) // 2]]
    cells = [(store, p.model_copy(update={"lr": lr, "encoder": how}), arm, device) for arm, lr, how in grid]
    found = run_cells(_rate_cell, cells, process_count(p.n_jobs, device), "learning rates")
    rates = pd.DataFrame([(*cell, value, False) for cell, value in zip(grid, found, strict=True)], columns=columns)
    rates.loc[rates.groupby("arm")["explained_variance"].idxmax(), "chosen"] = True
    return rates.astype({"chosen": bool})


def _rate_cell(store: Any, p: Comparison, arm: str, device: str) -> float:
    return rate_unit(store, p, arm, device).scalars["explained_variance"]


def cell(store: Any, p: Comparison, arm: str, seed: int, device: str) -> tuple[Path, dict[str, Any]]:
    """Mine, train and measure one arm of one seed; return its SAE unit's folder, and what it supplied (see `Grid`)."""
    folder = matched_unit(store, p, arm, seed, device).folder
    mined = mined_unit(store, p, arm, seed, device)
    return folder, {} if mined is None else mined.scalars | _selection(mined.tables.get("funnel"))


def _selection(funnel: pd.DataFrame | None) -> dict[str, Any]:
    """Return what a score had to select from, over all rounds; nothing for an arm without one."""
    if funnel is None:
        return {}
    sums = funnel[["drawn", "candidates", "places", "kept"]].sum().to_dict()
    return sums | {"candidates_a_place": float((funnel["candidates"] / funnel["places"]).min())}


@dataclass(frozen=True)
class Compared:
    """Everything a comparison found: units by (arm, seed) and tidy tables of them."""

    units: dict[tuple[str, int], Unit]
    supply: pd.DataFrame
    metrics: pd.DataFrame  # arm, seed, metric, value
    rates: pd.DataFrame  # as in `Grid`
    budgets: pd.DataFrame  # arm, seed, tokens, metric, value: trainings of several lengths, the full one last

    def decoders(self, arm: str) -> list[torch.Tensor]:
        """Return an arm's trained decoders (d_sae, d_in), one a seed."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        return [load_saelens(self.units[arm, seed].folder / "sae").W_dec.data for seed in seeds]

    def live(self, arm: str) -> list[torch.Tensor]:
        """Return for each seed which latents fired on the held-out tokens."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        return [self.units[arm, seed].arrays["density"] > 0 for seed in seeds]


def compare(store: Any, p: SaeCompare, device: str, trained: Sequence[str] | None = None) -> Compared:
    """Run the grid of one layer (see `run_grid`), once for each budget, and read back everything it left."""
    stores = {p.layer: store}
    grid = run_grid(stores, p, device, trained)
    units = {(arm, seed): load_unit(folder) for (_, arm, seed), folder in grid.folders.items()}
    metrics = tidy({(p.layer, *cell): unit.scalars for cell, unit in units.items()}).drop(columns="layer")
    full = metrics[metrics["metric"].isin(QUALITIES)].assign(tokens=p.steps * p.batch_size)
    shorter = [_shorter(stores, p, share, device, trained, grid.rates) for share in sorted(p.budgets) if share < 1]
    budgets = pd.concat([*shorter, full]).sort_values("metric", key=lambda names: names.map(QUALITIES.index))
    return Compared(units, grid.supply.drop(columns="layer"), metrics, grid.rates, budgets.reset_index(drop=True))


def _shorter(
    stores: dict[int, Any], p: SaeCompare, share: float, device: str, trained: Sequence[str] | None, rates: pd.DataFrame
) -> pd.DataFrame:
    """Train all arms for a share of the steps, learning-rate decay and all: arm, seed, metric, value, tokens."""
    steps = max(1, round(share * p.steps))
    arms = [arm for arm in p.arms if trained is None or arm in trained]
    grid = run_grid(stores, p.model_copy(update={"steps": steps, "splice_contexts": 0}), device, arms, rates)
    found = tidy({cell: unit_scalars(folder) for cell, folder in grid.folders.items()}).drop(columns="layer")
    return found[found["metric"].isin(QUALITIES)].assign(tokens=steps * p.batch_size)


def tidy(found: dict[tuple[int, str, int], dict[str, Any]]) -> pd.DataFrame:
    """Return one row a layer, arm, seed and metric."""
    return pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed, "metric": metric, "value": float(value)}
        for (layer, arm, seed), scalars in found.items()
        for metric, value in scalars.items()
    ])  # fmt: skip


def unit_list(compared: Compared) -> list[dict[str, Any]]:
    """Return where each SAE of a comparison lies, for run.json."""
    root = outputs_root()
    return [
        {"arm": arm, "seed": seed, "folder": str(unit.folder.relative_to(root))}
        for (arm, seed), unit in compared.units.items()
    ]
