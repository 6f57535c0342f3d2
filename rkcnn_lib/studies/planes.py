"""Five features in a plane: the smallest world of superposition, drawn, counted, mined (01), and read by SAEs (04)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import ToySuperposition
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAEConfig, TrainConfig, init_from_directions, train_sae
from rkcnn_lib.studies.toy import mine_small
from rkcnn_lib.studies.verdicts import listed
from rkcnn_lib.vocabulary import ARMS, MINED
from rkcnn_lib.worlds import ParallelToyModel, SyntheticSparseDataGenerator
from rkcnn_lib.worlds.toy import dimensionality, polygon, represented, true_directions

Frames = dict[str, tuple[np.ndarray, np.ndarray]]  # true and found directions, frame by frame
PLANE_FEATURES = 5
PLANE_SAMPLES = 5000
PLANE_DIRECTIONS = 10  # at most: twice the features
# what SAEs read back: how often a feature is active, and how they are trained
PROBABILITY = 0.1
N_LATENTS, N_SEEDS, N_ROWS = 5, 20, 8000
STEPS, SHOWN = 2000, (0, 10, 30, 100, 300, 1000, 2000)
STARTS = ("random", "covariance", "datapoint_refined", "kmeans_refined", "rkcnn_unscored", "rkcnn", "truth")
MET = 0.97  # mean matched cosine from which the true directions count as found; chance is shown beside it


@dataclass(frozen=True)
class Planes:
    """Trained 5 -> 2 models: W (n_probabilities, n_instances, 5, 2) and a tidy table, one row a model."""

    W: torch.Tensor
    table: pd.DataFrame

    def model(self, probability: float, instance: int) -> torch.Tensor:
        """Return the feature directions (5, 2) of one model."""
        return self.W[self.table["probability"].unique().tolist().index(probability), instance]


def train_planes(p: ToySuperposition) -> Planes:
    """Train ``plane_instances`` models at each probability in one batched tensor (cached)."""
    ps = sorted(p.plane_probabilities, reverse=True)
    inputs = {"ps": ps, "instances": p.plane_instances, "steps": p.plane_steps}

    def compute(scratch: Path) -> Unit:
        each = torch.tensor(ps).repeat_interleave(p.plane_instances)
        models = ParallelToyModel(len(each), PLANE_FEATURES, 2, each, random_state=0)
        losses = models.train(p.plane_steps)[-1]
        W = models.W.unflatten(0, (len(ps), p.plane_instances))
        return Unit(arrays={"W": W, "loss": torch.as_tensor(losses).view(len(ps), p.plane_instances)})

    unit = cached_unit("toy_planes", inputs, compute)
    W, loss = unit.arrays["W"], unit.arrays["loss"]
    kept, share = represented(W), dimensionality(W)
    table = pd.DataFrame([
        {"probability": probability, "instance": k, "loss": float(loss[i, k]), "n_represented": int(kept[i, k].sum()),
         "mean_dimensionality": float(share[i, k][kept[i, k]].mean()) if kept[i, k].any() else 0.0,
         "shape": polygon(W[i, k])}
        for i, probability in enumerate(ps)
        for k in range(p.plane_instances)
    ])  # fmt: skip
    return Planes(W, table)


def median_instances(planes: Planes) -> dict[str, np.ndarray]:
    """Return for each probability the feature directions (5, 2) of the model of median loss."""
    return {f"p = {p:g}": planes.model(p, instance).numpy() for p, instance in _median_models(planes)}


def _median_models(planes: Planes) -> Iterator[tuple[float, int]]:
    """Yield each probability with the number of its model of median loss."""
    for probability, rows in planes.table.groupby("probability", sort=False):
        yield probability, int(rows.sort_values("loss")["instance"].iloc[(len(rows) - 1) // 2])


def plane_title(planes: Planes) -> str:
    """Return how often the pentagon is found where features are rarest."""
    least = planes.table["probability"].min()
    shapes = planes.table[planes.table["probability"] == least]["shape"]
    return f"At p = {least:g} {(shapes == 'pentagon').sum()} of {len(shapes)} models form the pentagon"


def curve_title(planes: Planes) -> str:
    """Return the commonest shape at each probability."""
    shapes = planes.table.groupby("probability", sort=False)["shape"].agg(lambda s: Counter(s).most_common(1)[0][0])
    return "As features grow rare: " + ", ".join(f"{shape} (p = {p:g})" for p, shape in shapes.items())


def plane_metrics(planes: Planes) -> pd.DataFrame:
    """Return the share of each shape at each probability, as tidy rows."""
    share = planes.table.groupby("probability")["shape"].value_counts(normalize=True).reset_index(name="value")
    return share.assign(metric="share of " + share["shape"]).drop(columns="shape")


def states(planes: Planes, probability: float, instance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states (PLANE_SAMPLES, 2) of one model and the directions of the features it represents."""
    W = planes.model(probability, instance)
    codes = SyntheticSparseDataGenerator(PLANE_FEATURES, probability, random_state=instance).sample(PLANE_SAMPLES)
    return codes @ W, true_directions(W)


def mine_plane(X: torch.Tensor, p: ToySuperposition, miner: str = MINED) -> torch.Tensor:
    """Return at most PLANE_DIRECTIONS directions of the plane."""
    options = {"score": p.score, "n_subsets": 60} if miner in ("rkcnn", "rkcnn_unscored", "rkcnn_worst") else {}
    return mine_small(miner, X, PLANE_DIRECTIONS, 0, **options)


def mine_planes(planes: Planes, run: Run) -> pd.DataFrame:
    """Mine every model: probability, instance, shape, n_true, n_returned, matched_cosine (cached)."""
    inputs = {"table": planes.table.to_dict("list"), "score": run.p.score}

    def compute(scratch: Path) -> Unit:
        rows = []
        for about in planes.table[["probability", "instance", "shape"]].to_dict("records"):
            X, truth = states(planes, about["probability"], about["instance"])
            if len(truth) and bool(X.any()):
                D = mine_plane(X, run.p)
                found = {"n_true": len(truth), "n_returned": len(D), "matched_cosine": matched_cosine(D, truth)}
                rows.append(about | found)
        return Unit(tables={"mined": pd.DataFrame(rows)})

    return cached_unit("plane_mining", inputs, compute).tables["mined"]


def mined_frames(planes: Planes, run: Run) -> Frames:
    """Return, from often active to rare, true and mined directions of the model of median loss."""
    frames = {}
    for probability, instance in _median_models(planes):
        X, truth = states(planes, probability, instance)
        D = mine_plane(X, run.p)
        frames[f"p = {probability:g}: {len(truth)} true, {len(D)} mined"] = (truth.numpy(), D.numpy())
    return frames


def mined_title(mined: pd.DataFrame) -> str:
    """Return at each probability in how many pentagons every feature is met."""
    pentagons = mined[mined["shape"] == "pentagon"]
    if not len(pentagons):
        return "No model formed a pentagon, so there is none to mine"
    met = (pentagons["matched_cosine"] >= 0.99).groupby(pentagons["probability"], sort=False).agg(["sum", "count"])
    counts = ", ".join(f"{n_met} of {n} (p = {p:g})" for p, n_met, n in met.itertuples())
    return f"Pentagons whose features are mined at a mean cosine of 0.99 or more: {counts}"


# ---------------------------------------------------------------- SAEs of a plane


def seed_study(n_seeds: int = N_SEEDS, steps: int = STEPS) -> tuple[pd.DataFrame, Frames]:
    """Read back 5 features by 5 latents of which one is active: what a start is worth where all is known (cached).

    Each seed is a toy model of its own; its hidden states train one TopK SAE a start, in the same order. Returns a
    table (miner: the start, seed, step, matched cosine of the decoder with the truth, chance_mean, chance_upper) and,
    by step, the true directions of seed 0 and those learned from a mined start.
    """

    def models(scratch: Path) -> Unit:
        trained = ParallelToyModel(n_seeds, PLANE_FEATURES, 2, PROBABILITY, random_state=0)
        trained.train(3000, progress=False)
        return Unit(arrays={"W": trained.W})

    shown = tuple(step for step in SHOWN if step <= steps)
    rows, frames = [], {}
    for seed, W in enumerate(cached_unit("seed_study_models", {"n": n_seeds}, models).arrays["W"]):
        truth = true_directions(W)
        level = chance(matched_cosine, N_LATENTS, len(truth), 2, n_draws=200, truth=truth, random_state=seed)
        for start in STARTS:
            decoders = _decoders(W, start, seed, steps, shown)
            rows += [(start, seed, step, matched_cosine(D, truth), *level) for step, D in decoders.items()]
            if seed == 0 and start == MINED:
                frames = {f"step {step}": (truth.numpy(), decoder.numpy()) for step, decoder in decoders.items()}
    table = pd.DataFrame(rows, columns=["miner", "seed", "step", "value", "chance_mean", "chance_upper"])
    return table.assign(metric="matched_cosine"), frames


def _decoders(W: torch.Tensor, start: str, seed: int, steps: int, shown: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """Train an SAE of one model's hidden states; return its decoder (5, 2) after each of the shown steps."""

    def compute(scratch: Path) -> Unit:
        codes = SyntheticSparseDataGenerator(PLANE_FEATURES, PROBABILITY, random_state=1000 + seed).sample(N_ROWS)
        X = (codes @ W)[codes.any(1)]  # rows with nothing active say nothing about directions
        directions = true_directions(W) if start == "truth" else None
        if start not in ("truth", "random"):
            directions = mine_small(start, X, N_LATENTS, seed, **({"n_subsets": 60} if ARMS[start].searches else {}))
        config = SAEConfig(2, N_LATENTS, k=1)
        init = init_from_directions(config, directions, X=X, random_state=seed)
        training = TrainConfig(steps=steps, batch_size=256, lr=3e-3, seed=seed, snapshot_steps=shown)
        sae = train_sae(X, config, training, init=init, progress=False)
        return Unit(arrays={f"step_{step}": decoder for step, decoder in sae.snapshots.items()})

    inputs = {"W": W.flatten().tolist(), "start": start, "seed": seed, "steps": steps}
    arrays = cached_unit("seed_study", inputs, compute).arrays
    return {step: arrays[f"step_{step}"] for step in shown}


def success(table: pd.DataFrame) -> pd.DataFrame:
    """Return by start, at the first and last step, in how many toy models the true directions are found."""
    ends = table[table["step"].isin([table["step"].min(), table["step"].max()])]
    found = ends.assign(found=ends["value"] >= MET)
    counts = found.pivot_table(index="miner", columns="step", values="found", aggfunc="sum", sort=False)
    return counts.rename(columns=lambda step: f"found at step {step}").assign(models=table["seed"].nunique())


def seed_study_title(table: pd.DataFrame) -> str:
    """Return in how many models random and mined starts end at the truth."""
    found = success(table).iloc[:, -2].astype(int)[["random", "rkcnn_unscored", "rkcnn"]]
    told = f"{listed(found, 'd')} of {table['seed'].nunique()} toy models"
    return f"After training all true directions are found in {told}"
