"""Five features in a plane: the smallest world of superposition, drawn, counted and mined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import matched_cosine
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import ToySuperposition
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.toy import COMPARED, mine_small
from rkcnn_lib.worlds import ParallelToyModel, SyntheticSparseDataGenerator
from rkcnn_lib.worlds.toy.models import geometry, polygon, represented, true_directions

PLANE_FEATURES = 5
PLANE_SAMPLES = 5000
PLANE_DIRECTIONS = 10  # at most: twice the features


@dataclass(frozen=True)
class Planes:
    """Trained 5 -> 2 models: W (n_probabilities, n_instances, 5, 2) and a tidy table, one row a model."""

    W: torch.Tensor
    table: pd.DataFrame


def train_planes(p: ToySuperposition) -> Planes:
    """Train ``plane_instances`` models at each probability in one batched tensor (cached)."""
    ps = sorted(p.plane_probabilities, reverse=True)
    inputs = {"ps": ps, "instances": p.plane_instances, "steps": p.plane_steps}

    def compute(scratch: Path) -> Unit:
        each = torch.tensor(ps).repeat_interleave(p.plane_instances)
        models = ParallelToyModel(len(each), PLANE_FEATURES, 2, each, random_state=0)
        losses = models.train(p.plane_steps).losses[-1]
        W = models.W.unflatten(0, (len(ps), p.plane_instances))
        return Unit(arrays={"W": W, "loss": torch.as_tensor(losses).view(len(ps), p.plane_instances)})

    unit = cached_unit("toy_planes", inputs, compute)
    W, loss = unit.arrays["W"], unit.arrays["loss"]
    kept, dimensionality = represented(W), geometry(W).dimensionality
    table = pd.DataFrame([
        {"probability": probability, "instance": k, "loss": float(loss[i, k]), "n_represented": int(kept[i, k].sum()),
         "mean_dimensionality": float(dimensionality[i, k][kept[i, k]].mean()) if kept[i, k].any() else 0.0,
         "shape": polygon(W[i, k])}
        for i, probability in enumerate(ps)
        for k in range(p.plane_instances)
    ])  # fmt: skip
    return Planes(W, table)


def median_instances(planes: Planes) -> dict[str, np.ndarray]:
    """Return for each probability the feature directions (5, 2) of the model of median loss."""
    ps = planes.table["probability"].drop_duplicates().tolist()
    return {f"p = {p:g}": planes.W[ps.index(p), instance].numpy() for p, instance in _median_models(planes)}


def _median_models(planes: Planes) -> Iterator[tuple[float, int]]:
    """Yield each probability with the number of its model of median loss."""
    for probability, rows in planes.table.groupby("probability", sort=False):
        yield probability, int(rows.sort_values("loss")["instance"].iloc[(len(rows) - 1) // 2])


def plane_title(planes: Planes) -> str:
    """Return the finding of the figure of directions: how often the pentagon is found where features are rarest."""
    rarest = planes.table[planes.table["probability"] == planes.table["probability"].min()]
    n_pentagons = int((rarest["shape"] == "pentagon").sum())
    return f"At p = {rarest['probability'].iloc[0]:g} {n_pentagons} of {len(rarest)} models form the pentagon"


def curve_title(planes: Planes) -> str:
    """Return the finding of the curves over sparsity."""
    shapes = planes.table.groupby("probability", sort=False)["shape"].agg(lambda s: Counter(s).most_common(1)[0][0])
    return "As features grow rare: " + ", ".join(f"{shape} (p = {p:g})" for p, shape in shapes.items())


def plane_metrics(planes: Planes) -> pd.DataFrame:
    """Return the share of each shape at each probability, as tidy rows."""
    share = planes.table.groupby("probability")["shape"].value_counts(normalize=True).rename("value").reset_index()
    return share.assign(metric="share of " + share["shape"]).drop(columns="shape")


def states(planes: Planes, probability: float, instance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states (PLANE_SAMPLES, 2) of one model and the directions of the features it represents."""
    ps = planes.table["probability"].drop_duplicates().tolist()
    W = planes.W[ps.index(probability), instance]
    codes = SyntheticSparseDataGenerator(PLANE_FEATURES, probability, random_state=instance).sample(PLANE_SAMPLES)
    return codes @ W, true_directions(W)


def mine_plane(X: torch.Tensor, p: ToySuperposition, miner: str = COMPARED) -> torch.Tensor:
    """Return at most PLANE_DIRECTIONS directions of the plane."""
    options = {"score": p.score, "n_subsets": 60} if miner in ("rkcnn", "rkcnn_unscored", "rkcnn_worst") else {}
    return mine_small(miner, X, PLANE_DIRECTIONS, 0, **options)


def mine_planes(planes: Planes, run: Run) -> pd.DataFrame:
    """Mine every model: probability, instance, shape, n_true, n_returned, matched_cosine (cached)."""
    p: ToySuperposition = run.p
    inputs = {"table": planes.table.to_dict("list"), "score": p.score}

    def compute(scratch: Path) -> Unit:
        rows = []
        for row in planes.table.itertuples():
            X, truth = states(planes, row.probability, row.instance)
            if not len(truth) or not bool(X.any()):
                continue
            D = mine_plane(X, p)
            rows.append({
                "probability": row.probability, "instance": row.instance, "shape": row.shape,
                "n_true": len(truth), "n_returned": len(D), "matched_cosine": matched_cosine(D, truth),
            })  # fmt: skip
        return Unit(tables={"mined": pd.DataFrame(rows)})

    return cached_unit("plane_mining", inputs, compute).tables["mined"]


def mined_frames(planes: Planes, run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, from often active to rare, true and mined directions of the model of median loss."""
    frames = {}
    for probability, instance in _median_models(planes):
        X, truth = states(planes, probability, instance)
        D = mine_plane(X, run.p)
        frames[f"p = {probability:g}: {len(truth)} true, {len(D)} mined"] = (truth.numpy(), D.numpy())
    return frames


def mined_title(mined: pd.DataFrame) -> str:
    """Return the finding of mining the planes: at each probability, in how many pentagons every feature is met."""
    pentagons = mined[mined["shape"] == "pentagon"]
    if not len(pentagons):
        return "No model formed a pentagon, so there is none to mine"
    met = (pentagons["matched_cosine"] >= 0.99).groupby(pentagons["probability"], sort=False).agg(["sum", "count"])
    counts = ", ".join(f"{row['sum']} of {row['count']} (p = {p:g})" for p, row in met.iterrows())
    return f"Pentagons whose features are mined at a mean cosine of 0.99 or more: {counts}"
