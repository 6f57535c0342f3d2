"""The comparison of initialisations that 04 and 05 run: mine, initialise, train, measure, one unit a cell.

All arms of a seed share the mined rows, the order of training tokens, the held-out rows, the random fill and the
*number* of mined latents, which is the smallest supply among the arms.
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
from rkcnn_lib.runs.units import Unit, load_unit
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.cells import UNMINED, matched_unit, mined_unit

# The contrasts declared beforehand, rkcnn minus each of these: is mining needed, or do directions do that merely
# lie as the activations do; and what does the score add to the same search?
BASELINES = ("random", "covariance", "rkcnn_unscored")


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
        The arms and variants that are trained, if not all; how many latents are mined still depends on all.

    Returns
    -------
    supply : DataFrame
        layer, arm, seed, supply, wanted, seconds, rows; of the arms that select also their funnel, summed over rounds
        (drawn, candidates, places, kept) and candidates_a_place, in the tightest round.
    folders : dict
        (layer, arm, seed) to the folder of its finished SAE unit.
    """
    n_jobs = process_count(p.n_jobs, device)
    grid = [(layer, seed, arm) for layer in stores for seed in range(p.n_seeds) for arm in (*p.arms, *p.variants)]
    to_mine = [cell for cell in grid if cell[2] in p.arms and cell[2] != UNMINED]
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
    unit = mined_unit(store, p, arm, seed, device)
    return unit.scalars | _selection(unit.tables.get("funnel"))


def _selection(funnel: pd.DataFrame | None) -> dict[str, Any]:
    """Return what a score had to select from, over all rounds; nothing for an arm without one."""
    if funnel is None:
        return {}
    sums = funnel[["drawn", "candidates", "places", "kept"]].sum().to_dict()
    return sums | {"candidates_a_place": float((funnel["candidates"] / funnel["places"]).min())}


def _sae_cell(store: Any, p: Comparison, arm: str, seed: int, n_mined: int, device: str) -> Path:
    return matched_unit(store, p, arm, seed, n_mined, device).folder


@dataclass(frozen=True)
class Compared:
    """Everything a comparison found: units by (arm, seed) and tidy tables of them."""

    units: dict[tuple[str, int], Unit]
    supply: pd.DataFrame
    metrics: pd.DataFrame  # arm, seed, metric, value
    history: pd.DataFrame  # arm, seed, step, metric, value
    n_mined: dict[int, int]

    def decoders(self, arm: str) -> list[torch.Tensor]:
        """Return an arm's trained decoders (d_sae, d_in), one a seed."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        return [load_saelens(self.units[arm, seed].folder / "sae").W_dec.data for seed in seeds]

    def live(self, arm: str) -> list[torch.Tensor]:
        """Return for each seed which latents fired on the held-out tokens."""
        seeds = sorted(seed for name, seed in self.units if name == arm)
        return [self.units[arm, seed].arrays["density"] > 0 for seed in seeds]


def compare(store: Any, p: SaeCompare, device: str, trained: Sequence[str] | None = None) -> Compared:
    """Run the grid of one layer (see `run_grid`) and read back everything it left."""
    supply, folders = run_grid({p.layer: store}, p, device, trained)
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
