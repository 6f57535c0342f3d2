"""Recovery curves of 01: how far each miner gets as the toy world grows harder or the search smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import ToySuperposition
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.toy import MODELS, Space, best_rival, compare_with_truth, mine_one
from rkcnn_lib.studies.verdicts import means
from rkcnn_lib.vocabulary import MINED
from rkcnn_lib.worlds import ParallelToyModel

UNSELECTED = "rkcnn_unscored"
# parameter that holds a curve's values -> (what it varies, words on the horizontal axis)
AXES = {
    "curve_features": ("n_features", "features in the toy model"),
    "curve_active": ("n_active", "features active in a sample"),
    "curve_noise": ("noise", "noise (share of the hidden states' root mean square)"),
    "curve_subset_size": ("subset_size", "coordinates in a subset"),
    "curve_n_subsets": ("n_subsets", "subsets drawn"),
    "curve_n_samples": ("n_samples", "hidden states mined"),
}


def curves(run: Run) -> pd.DataFrame:
    """Mine along every axis that has values, a cached unit a point: rows of `compare_with_truth` with axis and x."""
    cells = [(run.p, name, value) for name in AXES for value in getattr(run.p, name)]
    n_jobs = process_count(run.p.n_jobs, run.device)
    return pd.concat(run_cells(_point, cells, n_jobs, "points of the curves"), ignore_index=True)


def _point(p: ToySuperposition, name: str, value: float) -> pd.DataFrame:
    varied, axis = AXES[name]
    setting: dict[str, Any] = {"noise": 0.0, **p.model_dump(include=MODELS | {
        "n_samples", "n_subsets", "subset_size", "n_directions", "score", "subsets", "miners", "control",
    })} | {varied: value}  # fmt: skip

    def compute(scratch: Path) -> Unit:
        changed = p.model_copy(update={key: setting[key] for key in setting if key != "noise"})
        rows = []
        for seed, space in enumerate(_spaces(changed)):
            _, X = space.draw(changed.n_samples, seed=20_000 + seed)
            noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)) * X.square().mean().sqrt()
            X = noise if p.control == "gaussian" else X + setting["noise"] * noise
            for miner in p.miners:
                rows += compare_with_truth(mine_one(X, changed, miner, seed), space.truth, miner, seed, n_draws=50)
        return Unit(tables={"recovery": pd.DataFrame(rows)})

    table = cached_unit("toy_curves", setting | {"seeds": p.curve_seeds}, compute).tables["recovery"]
    return table.assign(axis=axis, x=float(value))


def _spaces(p: ToySuperposition) -> list[Space]:
    """``curve_seeds`` toy models of one kind, trained together (cached)."""
    inputs = p.model_dump(include=MODELS) | {"n": p.curve_seeds}

    def compute(scratch: Path) -> Unit:
        models = ParallelToyModel(p.curve_seeds, p.n_features, p.n_hidden, k_active=p.n_active, random_state=0)
        models.train(p.toy_steps, progress=False)
        return Unit(arrays={"W": models.W})

    return [Space(W, p.n_active) for W in cached_unit("toy_model_sets", inputs, compute).arrays["W"]]


def title(table: pd.DataFrame) -> str:
    """Return what the miner recovers over all points, with the score and without."""
    mean = means(table, recovery_rate.__name__, "miner")
    best = best_rival(mean.drop([MINED, UNSELECTED], errors="ignore"), ".0%")
    without = f", {mean[UNSELECTED]:.0%} without the score" if UNSELECTED in mean else ""
    return f"Over all points {MINED} recovers {mean[MINED]:.0%} of the features{without}{best}"
