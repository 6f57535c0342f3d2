"""5 features in 2 dimensions, read back by 5 latents of which one is active: what a start is worth where all is known.

Shown in 04 for ``model: toy``. Each seed is a toy model of its own (features active with probability 0.1); its hidden
states train one TopK SAE a start, in the same order. A plane is small: five random directions already lie near five
true ones, so every number stands beside its chance level.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAEConfig, TrainConfig, init_from_directions, train_sae
from rkcnn_lib.studies.toy import mine_small
from rkcnn_lib.vocabulary import ARMS
from rkcnn_lib.worlds import ParallelToyModel, SyntheticSparseDataGenerator
from rkcnn_lib.worlds.toy.models import true_directions

N_FEATURES, N_HIDDEN, PROBABILITY = 5, 2, 0.1
N_LATENTS, N_SEEDS, N_ROWS = 5, 20, 8000
STEPS, SHOWN = 2000, (0, 10, 30, 100, 300, 1000, 2000)
STARTS = ("random", "covariance", "datapoint_refined", "kmeans_refined", "rkcnn_unscored", "rkcnn", "truth")
MET = 0.97  # mean matched cosine from which the true directions count as found; chance is shown beside it


@dataclass(frozen=True)
class SeedStudy:
    """Matched cosine by start, seed and step (with chance), and one seed's true and learned directions by step."""

    table: pd.DataFrame
    frames: dict[str, tuple[np.ndarray, np.ndarray]]


def seed_study(n_seeds: int = N_SEEDS, steps: int = STEPS, shown_start: str = "rkcnn") -> SeedStudy:
    """Train every start on every seed's toy model (cached); match the decoders with the truth, one-to-one, signed."""
    W = _models(n_seeds)
    shown = tuple(step for step in SHOWN if step <= steps)
    rows, frames = [], {}
    for seed in range(n_seeds):
        truth = true_directions(W[seed])
        by_chance = chance(matched_cosine, N_LATENTS, len(truth), N_HIDDEN, n_draws=200, truth=truth, random_state=seed)
        for start in STARTS:
            decoders = _train(W[seed], truth, start, seed, steps, shown)
            rows += [
                {"miner": start, "seed": seed, "step": step, "metric": "matched_cosine",
                 "value": matched_cosine(decoders[f"step_{step}"], truth),
                 "chance_mean": by_chance.mean, "chance_upper": by_chance.upper}
                for step in shown
            ]  # fmt: skip
            if seed == 0 and start == shown_start:
                frames = {f"step {step}": (truth.numpy(), decoders[f"step_{step}"].numpy()) for step in shown}
    return SeedStudy(pd.DataFrame(rows), frames)


def _models(n_seeds: int) -> torch.Tensor:
    def compute(scratch: Path) -> Unit:
        models = ParallelToyModel(n_seeds, N_FEATURES, N_HIDDEN, PROBABILITY, random_state=0)
        models.train(3000, progress=False)
        return Unit(arrays={"W": models.W})

    return cached_unit("seed_study_models", {"n": n_seeds}, compute).arrays["W"]


def _train(
    W: torch.Tensor, truth: torch.Tensor, start: str, seed: int, steps: int, shown: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Return the decoder (5, 2) after each of the shown steps."""

    def compute(scratch: Path) -> Unit:
        codes = SyntheticSparseDataGenerator(N_FEATURES, PROBABILITY, random_state=1000 + seed).sample(N_ROWS)
        X = (codes @ W)[codes.any(1)]  # rows with nothing active say nothing about directions
        directions = None
        if start == "truth":
            directions = truth
        elif start != "random":
            options = {"n_subsets": 60} if ARMS[start].searches else {}
            directions = mine_small(start, X, N_LATENTS, seed, **options)
        config = SAEConfig(N_HIDDEN, N_LATENTS, k=1)
        init = init_from_directions(config, directions, X=X, random_state=seed)
        training = TrainConfig(steps=steps, batch_size=256, lr=3e-3, seed=seed, snapshot_steps=shown)
        sae = train_sae(X, config, training, init=init, progress=False)
        return Unit(arrays={f"step_{step}": decoder for step, decoder in sae.snapshots.items()})

    inputs = {"W": W.flatten().tolist(), "start": start, "seed": seed, "steps": steps}
    return cached_unit("seed_study", inputs, compute).arrays


def success(table: pd.DataFrame) -> pd.DataFrame:
    """Return by start, at the first and last step, in how many toy models the true directions are found."""
    ends = table[table["step"].isin([table["step"].min(), table["step"].max()])]
    counts = ends.assign(found=ends["value"] >= MET).pivot_table(
        index="miner", columns="step", values="found", aggfunc="sum", sort=False
    )
    return counts.rename(columns=lambda step: f"found at step {step}").assign(models=table["seed"].nunique())


def title(table: pd.DataFrame) -> str:
    """Return the finding of the study."""
    counts = success(table)
    last = counts.columns[-2]
    by_start = ", ".join(f"{start} {int(counts.loc[start, last])}" for start in ("random", "rkcnn_unscored", "rkcnn"))
    return f"After training all true directions are found in {by_start} of {table['seed'].nunique()} toy models"
