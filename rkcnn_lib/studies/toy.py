"""The study behind 01: toy models whose features are known, what miners find in their hidden states, and chance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine, precision, recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe import mine
from rkcnn_lib.probe.found import SelectionWarning
from rkcnn_lib.probe.nulls import surrogate
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import NOT_DECIDING, ToySuperposition
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.vocabulary import ARMS
from rkcnn_lib.worlds import SyntheticSparseDataGenerator, ToyModel
from rkcnn_lib.worlds.toy.models import true_directions

COMPARED = "rkcnn"  # as many directions as its rivals, no null
JUDGED = "rkcnn_calibrated"  # only those that beat the null: what the gate judges
MEASURES = (matched_cosine, recovery_rate, precision)


# ---------------------------------------------------------------- many features in few dimensions


@dataclass(frozen=True)
class Space:
    """One trained toy model: feature directions W (n_features, n_hidden) and how many are active at a time."""

    W: torch.Tensor
    n_active: int

    @property
    def truth(self) -> torch.Tensor:
        """Unit directions of the features the model represents (norm above 0.5)."""
        return true_directions(self.W)

    def draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return fresh feature values (n, n_features) and the hidden states (n, n_hidden) they give."""
        codes = SyntheticSparseDataGenerator(len(self.W), k_active=self.n_active, random_state=seed).sample(n)
        return codes, codes @ self.W

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """Return hidden states (n, n_hidden)."""
        return self.draw(n, seed)[1]


def train_space(n_features: int, n_hidden: int, n_active: int, steps: int, seed: int) -> Space:
    """Train one toy model of exactly ``n_active`` active features (cached)."""
    inputs = {"n_features": n_features, "n_hidden": n_hidden, "n_active": n_active, "steps": steps, "seed": seed}

    def compute(scratch: Path) -> Unit:
        model = ToyModel(n_features, n_hidden, k_active=n_active, random_state=seed)
        model.train(steps)
        return Unit(arrays={"W": model.W})

    return Space(cached_unit("toy_models", inputs, compute).arrays["W"], n_active)


def train_spaces(p: ToySuperposition) -> list[Space]:
    """Train one model a seed."""
    return [train_space(p.n_features, p.n_hidden, p.n_active, p.toy_steps, seed) for seed in range(p.n_seeds)]


def interference_title(spaces: list[Space]) -> str:
    """Return the finding of the interference figure."""
    counts = [len(space.truth) for space in spaces]
    n, d = spaces[0].W.shape
    return f"{min(counts)} to {max(counts)} of {n} features are represented in {d} dimensions ({len(spaces)} models)"


# ---------------------------------------------------------------- mining


@dataclass(frozen=True)
class Mined:
    """What every miner returned: a tidy table beside chance, and seed 0's cosines with the truth, matched first."""

    table: pd.DataFrame
    cosines: dict[str, np.ndarray]


def world(space: Space, p: ToySuperposition, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states that are mined and the true directions, after the control has been applied."""
    X, truth = space.sample(p.n_samples, seed=10_000 + seed), space.truth
    if p.control == "gaussian":
        X = surrogate(X, "gaussian", random_state=seed)
    if p.control == "permuted":
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(truth.shape, generator=generator).argsort(1)  # each direction's coordinates shuffled
        signs = torch.randint(0, 2, truth.shape, generator=generator) * 2 - 1
        truth = truth.gather(1, order) * signs
    return X, truth


def mine_one(X: torch.Tensor, p: ToySuperposition, miner: str, seed: int) -> torch.Tensor:
    """Return one miner's directions; all return what they are asked for but the calibrated one."""
    method = COMPARED if miner == JUDGED else miner
    options: dict[str, Any] = {}
    if ARMS[miner].searches:
        options = {"n_subsets": p.n_subsets, "subset_size": p.subset_size, "subsets": p.subsets}
        if method != "rkcnn_coordinate":
            options |= {"score": p.score}
    if miner == JUDGED:
        options |= {"null": p.null}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelectionWarning)  # so small a world is soon exhausted: the notebook says so
        return mine(method, X, n_directions=p.n_directions, random_state=seed, **options)


def mine_all(spaces: list[Space], run: Run) -> Mined:
    """Mine every model with every miner and match with the truth (each seed a cached unit)."""
    p: ToySuperposition = run.p
    kept = ("control", "n_samples", "n_subsets", "subset_size", "n_directions", "score", "subsets", "null", "miners",
            "n_features", "n_hidden", "n_active", "toy_steps")  # fmt: skip
    given = p.model_dump(include=set(kept))
    units = []
    for seed, space in enumerate(spaces):

        def compute(scratch: Path, space: Space = space, seed: int = seed) -> Unit:
            X, truth = world(space, p, seed)
            found = {miner: mine_one(X, p, miner, seed) for miner in (*p.miners, JUDGED)}
            rows = [row for miner, D in found.items() for row in compare_with_truth(D, truth, miner, seed)]
            cosines = {miner: matched_first(D, truth) for miner, D in found.items() if len(D)}
            return Unit(tables={"recovery": pd.DataFrame(rows)}, arrays=cosines)

        units.append(cached_unit("toy_mining", given | {"seed": seed}, compute))
    table = pd.concat([unit.tables["recovery"] for unit in units], ignore_index=True)
    shown = sorted((*p.miners, JUDGED), key=lambda miner: miner != COMPARED)  # first the one that the title is about
    cosines = {miner: units[0].arrays[miner].numpy() for miner in shown if miner in units[0].arrays}
    return Mined(table, cosines)


def compare_with_truth(
    D: torch.Tensor, truth: torch.Tensor, miner: str, seed: int, n_draws: int = 200
) -> list[dict[str, Any]]:
    """Return one row a measure: value, and the chance level of as many random directions."""
    rows = []
    for measure in MEASURES:
        by_chance = chance(measure, max(1, len(D)), len(truth), truth.shape[1], n_draws=n_draws, truth=truth)
        value = measure(D, truth) if len(D) else 0.0
        rows.append({"miner": miner, "seed": seed, "metric": measure.__name__, "value": value, "n_returned": len(D),
                     "n_true": len(truth), "chance_mean": by_chance.mean, "chance_upper": by_chance.upper})  # fmt: skip
    return rows


def matched_first(D: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the cosines (n_true, n_mined) with rows and columns ordered so that matches lie on the diagonal."""
    found = match(D, truth)
    mined, true = torch.as_tensor(found.rows), torch.as_tensor(found.columns)
    rest_mined = torch.tensor([i for i in range(len(D)) if i not in set(mined.tolist())], dtype=torch.long)
    rest_true = torch.tensor([i for i in range(len(truth)) if i not in set(true.tolist())], dtype=torch.long)
    return truth[torch.cat([true, rest_true])] @ D[torch.cat([mined, rest_mined])].T


def recovery_title(mined: Mined) -> str:
    """Return the finding of the recovery figure."""
    rows = mined.table[mined.table["metric"] == "matched_cosine"]
    means = rows.groupby("miner")[["value", "chance_mean"]].mean()
    mean, rivals = means.loc[COMPARED], means["value"].drop([COMPARED, JUDGED])
    best = f"; best rival {rivals.idxmax()} {rivals.max():.2f}" if len(rivals) else ""
    return f"Matched cosine of {COMPARED} {mean['value']:.2f} (chance {mean['chance_mean']:.2f}){best}"


def cosine_title(mined: Mined) -> str:
    """Return the finding of the cosine matrix."""
    found = np.diagonal(mined.cosines[COMPARED])
    n_true = len(mined.cosines[COMPARED])
    return f"{COMPARED}: {int((found >= 0.9).sum())} of {n_true} true directions are matched at cosine 0.9 or more"


def from_noise(space: Space, run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, for growing shares of signal, true and mined directions on the truth's first two principal axes."""
    p: ToySuperposition = run.p
    X, truth = world(space, p, seed=0)
    noise = surrogate(X, "gaussian", random_state=1)
    _, _, axes = torch.linalg.svd(truth - truth.mean(0), full_matrices=False)
    plane = axes[:2].T
    given = p.model_dump(exclude=NOT_DECIDING | {"profile", "n_seeds", "miners"})
    frames = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):

        def compute(scratch: Path, share: float = share) -> Unit:
            return Unit(arrays={"directions": mine_one(share * X + (1 - share) * noise, p, JUDGED, seed=0)})

        D = cached_unit("toy_noise", given | {"share": share}, compute).arrays["directions"]
        frames[f"{share:.0%} signal: {len(D)} directions"] = ((truth @ plane).numpy(), (D @ plane).numpy())
    return frames


def noise_title(frames: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Return how many directions the calibrated miner keeps with nothing there and with nothing but signal."""
    (_, from_noise), *_, (truth, from_signal) = frames.values()
    return (
        f"The calibrated miner keeps {len(from_noise)} directions of pure noise and {len(from_signal)} of hidden "
        f"states with {len(truth)} features"
    )


def checks(mined: Mined, p: ToySuperposition) -> list[Check]:
    """Return 01's gate: the calibrated miner beats chance in every model, and keeps something in every model."""
    rows = mined.table[(mined.table["miner"] == JUDGED) & (mined.table["metric"] == "matched_cosine")]
    beats = int((rows["value"] > rows["chance_upper"]).sum())
    fewest = int(rows["n_returned"].min())
    expected = f"{0.05 * len(rows):.2f} models"
    return [
        Check("models in which matched cosine exceeds chance's 95 % point", beats, f"= {len(rows)} (all)",
              beats == len(rows), chance=expected),
        Check("directions kept by the calibrated miner, fewest of any model", fewest, ">= 1", fewest >= 1),
    ]  # fmt: skip


def headline(mined: Mined) -> str:
    """Return one sentence that answers 01's question."""
    recovered = mined.table[mined.table["metric"] == "recovery_rate"]
    rows = recovered[recovered["miner"] == COMPARED]
    mean, low, high = mean_interval(rows["value"].to_numpy())
    strict = recovered[recovered["miner"] == JUDGED][["value", "n_returned"]].mean()
    rivals = recovered[~recovered["miner"].isin([COMPARED, JUDGED])].groupby("miner")["value"].mean()
    rival = f"; best rival {rivals.idxmax()} {rivals.max():.0%}" if len(rivals) else ""
    return (
        f"{COMPARED} recovers {mean:.0%} [{low:.0%}, {high:.0%}] of the true directions at cosine 0.9 with "
        f"{rows['n_returned'].mean():.0f} directions for {rows['n_true'].mean():.0f} (chance "
        f"{rows['chance_mean'].mean():.0%}, {len(rows)} models{rival}); keeping only what beats its null it returns "
        f"{strict['n_returned']:.0f} and recovers {strict['value']:.0%}."
    )
