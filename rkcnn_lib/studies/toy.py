"""The study behind 01: toy models whose features are known, what miners find in their hidden states, and chance."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine, precision, recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.probe import mine
from rkcnn_lib.probe.nulls import permute_labels, surrogate
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.search import SelectionWarning
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import NOT_DECIDING, ToySuperposition
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.verdicts import listed
from rkcnn_lib.tensors import chance_level
from rkcnn_lib.vocabulary import ARMS, MINED
from rkcnn_lib.worlds import SyntheticSparseDataGenerator, ToyModel
from rkcnn_lib.worlds.toy import true_directions

JUDGED = "rkcnn_calibrated"  # of `MINED`'s directions only those that beat the null: what the gate judges
MEASURES = (matched_cosine, recovery_rate, precision)
MODELS = {"n_features", "n_hidden", "n_active", "toy_steps"}  # parameters that decide what the models are


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
    """Return how many features the models represent."""
    counts, (n, d) = [len(space.truth) for space in spaces], spaces[0].W.shape
    return f"{min(counts)} to {max(counts)} of {n} features are represented in {d} dimensions ({len(spaces)} models)"


class Mined(NamedTuple):
    """What every miner returned: a tidy table beside chance, and seed 0's cosines with the truth, matched first."""

    table: pd.DataFrame
    cosines: dict[str, np.ndarray]


def world(space: Space, p: ToySuperposition, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states that are mined and the true directions, after the control has been applied."""
    (_, X), truth = space.draw(p.n_samples, seed=10_000 + seed), space.truth
    if p.control == "gaussian":
        X = surrogate(X, "gaussian", random_state=seed)
    if p.control == "permuted":
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(truth.shape, generator=generator).argsort(1)  # each direction's coordinates shuffled
        truth = truth.gather(1, order) * (torch.randint(0, 2, truth.shape, generator=generator) * 2 - 1)
    return X, truth


def mine_one(X: torch.Tensor, p: ToySuperposition, miner: str, seed: int) -> torch.Tensor:
    """Return one miner's directions; all return what they are asked for but the calibrated one."""
    method = MINED if miner == JUDGED else miner
    names = {"n_subsets", "subset_size", "subsets"} if ARMS[method].searches else set()
    names |= {"score"} if names and method != "rkcnn_coordinate" else set()
    names |= {"null"} if miner == JUDGED else set()
    return mine_small(method, X, p.n_directions, seed, **p.model_dump(include=names))


def mine_small(method: str, X: torch.Tensor, n_directions: int, seed: int, **options: Any) -> torch.Tensor:
    """Return directions of a world so small that it is soon exhausted: the notebook says so once, not each search."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelectionWarning)
        return mine(method, X, n_directions=n_directions, random_state=seed, **options)


def _each(kind: str, given: dict[str, Any], spaces: list[Space], compute: Callable[[Space, int], Unit]) -> list[Unit]:
    """Return ``compute(space, seed)`` for every space, each a cached unit."""
    return [
        cached_unit(kind, given | {"seed": seed}, lambda _, space=space, seed=seed: compute(space, seed))
        for seed, space in enumerate(spaces)
    ]


def mine_all(spaces: list[Space], run: Run) -> Mined:
    """Mine every model with every miner and match with the truth (each seed a cached unit)."""
    p: ToySuperposition = run.p
    given = p.model_dump(include=MODELS | {
        "control", "n_samples", "n_subsets", "subset_size", "n_directions", "score", "subsets", "null", "miners",
    })  # fmt: skip

    def compute(space: Space, seed: int) -> Unit:
        X, truth = world(space, p, seed)
        mined = {miner: mine_one(X, p, miner, seed) for miner in (*p.miners, JUDGED)}
        rows = [row for miner, D in mined.items() for row in compare_with_truth(D, truth, miner, seed)]
        cosines = {miner: matched_first(D, truth) for miner, D in mined.items() if len(D)}
        return Unit(tables={"recovery": pd.DataFrame(rows)}, arrays=cosines)

    units = _each("toy_mining", given, spaces, compute)
    table = pd.concat([unit.tables["recovery"] for unit in units], ignore_index=True)
    shown = dict.fromkeys((MINED, *p.miners, JUDGED))  # first the one that the title is about
    return Mined(table, {miner: units[0].arrays[miner].numpy() for miner in shown if miner in units[0].arrays})


def compare_with_truth(D: torch.Tensor, truth: torch.Tensor, miner: str, seed: int, n_draws: int = 200) -> list[dict]:
    """Return one row a measure: value, and the chance level of as many random directions."""
    about, rows = {"miner": miner, "seed": seed, "n_returned": len(D), "n_true": len(truth)}, []
    for measure in MEASURES:
        mean, upper = chance(measure, max(1, len(D)), len(truth), truth.shape[1], n_draws=n_draws, truth=truth)
        found = {"metric": measure.__name__, "value": measure(D, truth), "chance_mean": mean, "chance_upper": upper}
        rows.append(about | found)
    return rows


def matched_first(D: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the cosines (n_true, n_mined) with rows and columns ordered so that matches lie on the diagonal."""
    matched = match(D, truth)
    mined = [*matched.rows, *np.setdiff1d(np.arange(len(D)), matched.rows)]
    true = [*matched.columns, *np.setdiff1d(np.arange(len(truth)), matched.columns)]
    return truth[true] @ D[mined].T


def best_rival(means: pd.Series, written: str) -> str:
    """Return what the best of some rivals reaches, in a clause behind what `MINED` does; "" for no rivals."""
    return f"; best rival {means.idxmax()} {means.max():{written}}" if len(means) else ""


def _reached(mined: Mined, metric: str, written: str) -> tuple[str, str, str]:
    """Return what `MINED` reaches, what chance does and the clause on the best rival."""
    rows = mined.table[mined.table["metric"] == metric]
    reached = rows.groupby("miner")[["value", "chance_mean"]].mean()
    own, by_chance = (f"{x:{written}}" for x in reached.loc[MINED])
    return own, by_chance, best_rival(reached["value"].drop([MINED, JUDGED]), written)


def recovery_title(mined: Mined) -> str:
    """Return the matched cosine that is reached."""
    own, by_chance, best = _reached(mined, "matched_cosine", ".2f")
    return f"Matched cosine of {MINED} {own} (chance {by_chance}){best}"


def cosine_title(mined: Mined) -> str:
    """Return how many true directions of seed 0 are met."""
    cosines = mined.cosines[MINED]
    n_met = int((np.diagonal(cosines) >= 0.9).sum())
    return f"{MINED}: {n_met} of {len(cosines)} true directions are matched at cosine 0.9 or more"


# ---------------------------------------------------------------- the first implementation's scores

# score of a subset -> what takes the place of its data: the strongest feature's labels permuted, a Gaussian of the same
# covariance, or each column shuffled on its own (the share of variance on one direction is a matter of covariance)
SEED_SCORES = {"separation": "labels", "knn_label_consistency": "labels", "kurtosis": "gaussian",
               "coordinate_kurtosis": "gaussian", "variance_ratio": "columns"}  # fmt: skip
SCORED_ROWS, SCORED_SUBSETS, NULL_DRAWS = 300, 60, 5  # distances between all rows in each subset of each draw


def seed_scores(spaces: list[Space], run: Run) -> pd.DataFrame:
    """Return for each score and model (cached) how many subsets score beyond the 95 % point of the score's null.

    Columns miner (the score), seed, metric, value, chance_mean, chance_upper (shares of subsets); null (which), mean
    and spread (standard deviation over subsets by the mean's size) of the score, null_mean, null_upper.
    """
    given = run.p.model_dump(include=MODELS | {"control", "subset_size", "subsets"})
    units = _each(
        "toy_scores", given, spaces, lambda space, seed: Unit(tables={"scores": scores_of_space(space, run.p, seed)})
    )
    return pd.concat([unit.tables["scores"] for unit in units], ignore_index=True)


def scores_of_space(space: Space, p: ToySuperposition, seed: int) -> pd.DataFrame:
    """Return the rows of `seed_scores` for one model."""
    codes, X = space.draw(SCORED_ROWS, seed=20_000 + seed)
    y = codes.argmax(1).numpy()
    X = surrogate(X, "gaussian", seed) if p.control == "gaussian" else X
    y = permute_labels(y, random_state=seed) if p.control == "permuted" else y
    size = p.subset_size or round(X.shape[1] ** 0.5)
    subsets = draw_subsets(X.shape[1], size, SCORED_SUBSETS, p.subsets, random_state=seed)
    rows = []
    for score, null in SEED_SCORES.items():
        real = subset_scores(X, subsets, score, y=y).numpy()
        nothing = (_without_structure(X, y, null, draw) for draw in range(NULL_DRAWS))
        draws = np.stack([subset_scores(null_X, subsets, score, y=null_y).numpy() for null_X, null_y in nothing])
        nulls = _, null_upper = chance_level(draws.ravel())
        beyond, spread = (real > null_upper).mean(), real.std() / abs(real.mean())
        rows.append((score, null, beyond, *chance_level((draws > null_upper).mean(1)), real.mean(), spread, *nulls))
    columns = ["miner", "null", "value", "chance_mean", "chance_upper", "mean", "spread", "null_mean", "null_upper"]
    return pd.DataFrame(rows, columns=columns).assign(seed=seed, metric="subsets_beyond_null")


def _without_structure(X: torch.Tensor, y: np.ndarray, null: str, draw: int) -> tuple[torch.Tensor, np.ndarray]:
    if null == "labels":
        return X, permute_labels(y, random_state=draw)
    if null == "gaussian":
        return surrogate(X, "gaussian", random_state=draw), y
    order = torch.rand(X.shape, generator=torch.Generator().manual_seed(draw)).argsort(0)
    return X.gather(0, order), y


def seed_score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return by score its mean beside its null's mean and 95 % point, its spread, and the share of subsets beyond."""
    shown = table.groupby(["miner", "null"], sort=False)[["mean", "null_mean", "null_upper", "spread", "value"]].mean()
    names = {"null_mean": "null mean", "null_upper": "null 95 % point", "value": "subsets beyond"}
    return shown.round(3).rename(columns=names).rename_axis(["score", "held against"])


def seed_score_title(table: pd.DataFrame) -> str:
    """Return how many subsets beat each score's null."""
    shares = table.groupby("miner", sort=False)["value"].mean()
    return f"Subsets beyond the 95 % point of their score's null (chance 5 %): {listed(shares, '.0%')}"


def from_noise(space: Space, run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, for growing shares of signal, true and mined directions on the truth's first two principal axes."""
    p: ToySuperposition = run.p
    X, truth = world(space, p, seed=0)
    noise = surrogate(X, "gaussian", random_state=1)
    plane = torch.linalg.svd(truth - truth.mean(0), full_matrices=False).Vh[:2].T
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
    (_, noise), *_, (truth, signal) = frames.values()
    kept = f"{len(noise)} directions of pure noise and {len(signal)} of hidden states with {len(truth)} features"
    return f"The calibrated miner keeps {kept}"


def checks(mined: Mined, p: ToySuperposition) -> list[Check]:
    """Return 01's gate: the calibrated miner beats chance in every model, and keeps something in every model."""
    rows = mined.table[(mined.table["miner"] == JUDGED) & (mined.table["metric"] == "matched_cosine")]
    n, beats, fewest = len(rows), int((rows["value"] > rows["chance_upper"]).sum()), int(rows["n_returned"].min())
    beyond = "models in which matched cosine exceeds chance's 95 % point"
    return [
        Check(beyond, beats, f"= {n} (all)", beats == n, chance=f"{0.05 * n:.2f} models"),
        Check("directions kept by the calibrated miner, fewest of any model", fewest, ">= 1", fewest >= 1),
    ]


def headline(mined: Mined) -> str:
    """Return one sentence that answers 01's question."""
    own, by_chance, best = _reached(mined, "recovery_rate", ".0%")
    return f"{MINED} recovers {own} of the true directions; as many random ones {by_chance}{best}."
