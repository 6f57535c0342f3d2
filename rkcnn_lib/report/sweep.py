"""Many cells of a comparison, one process each: joblib runs them, finished ones are read from disk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from rkcnn_lib.report.params import Comparison
from rkcnn_lib.report.studies.comparison import Splice, mined_count, mined_unit, sae_unit


def run_cells(function: Callable[..., Any], cells: list[tuple], n_jobs: int, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell in its own process and return the results in order.

    joblib gives each of ``n_jobs`` workers its share of the cores, so that they do not fight for them.
    """
    if n_jobs == 1:
        return [function(*cell) for cell in tqdm(cells, desc=label, unit="cell")]
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(joblib.delayed(function)(*cell) for cell in cells)
    return list(tqdm(work, desc=label, unit="cell", total=len(cells)))


@functools.lru_cache(maxsize=1)
def _model(name: str, revision: str | None, device: str) -> Any:
    """Load a model once a worker process."""
    from rkcnn_lib.worlds import load_model

    return load_model(name, revision=revision, device=device)


def _mine_cell(folder: Path, p: Comparison, arm: str, seed: int, device: str) -> dict[str, Any]:
    from rkcnn_lib.worlds import ActivationStore

    return mined_unit(ActivationStore(folder), p, arm, seed, device).scalars


def _sae_cell(folder: Path, p: Comparison, arm: str, seed: int, n_mined: int, device: str) -> dict[str, Any]:
    from rkcnn_lib.worlds import ActivationStore

    store = ActivationStore(folder)
    lm = _model(p.model, p.revision, device)
    splice = Splice(lm, store.manifest["hook_name"], store.contexts("heldout")[: p.splice_contexts])
    return sae_unit(store, p, arm, seed, n_mined, device, splice).scalars


def compare_layers(
    stores: dict[int, Any], p: Comparison, device: str, n_jobs: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run a comparison at every layer, cells in parallel.

    Parameters
    ----------
    stores : dict
        Layer to its :class:`~rkcnn_lib.worlds.ActivationStore`.
    p : Comparison
        Arms, seeds, SAE and training.
    device : str
        Where each cell computes.
    n_jobs : int
        Processes at once.

    Returns
    -------
    metrics, supply : DataFrame
        Tidy: layer, arm, seed, metric, value; and layer, arm, seed, supply, wanted, seconds, rows.
    """
    grid = [(layer, seed, arm) for layer in stores for seed in range(p.n_seeds) for arm in p.arms]
    to_mine = [cell for cell in grid if cell[2] != "random"]
    mined = run_cells(
        _mine_cell, [(stores[la].folder, p, arm, seed, device) for la, seed, arm in to_mine], n_jobs, "mining"
    )
    supply = pd.DataFrame([
        {"layer": layer, "seed": seed, "arm": arm} | scalars
        for (layer, seed, arm), scalars in zip(to_mine, mined, strict=True)
    ])  # fmt: skip
    counts = {layer: mined_count(rows) for layer, rows in supply.groupby("layer")}
    cells = [(stores[la].folder, p, arm, seed, counts[la][seed], device) for la, seed, arm in grid]
    trained = run_cells(_sae_cell, cells, n_jobs, "SAEs")
    metrics = pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed, "metric": metric, "value": float(value)}
        for (layer, seed, arm), scalars in zip(grid, trained, strict=True)
        for metric, value in scalars.items()
    ])  # fmt: skip
    return metrics, supply
