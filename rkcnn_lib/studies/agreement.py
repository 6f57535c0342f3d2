"""Do the seeds of an arm agree, and which latents recur? The stability panel of 04, each measure beside chance.

Random directions of the whole space are the published chance level, and an easy one: where activations fill few of
their dimensions, any two dictionaries made of them agree better. So figures show the level of random directions drawn
with the activations' covariance, and the table gives both. Every number is of a pair of seeds; five make ten pairs but
only five runs, so tests use one jackknife pseudo-value a seed and the intervals shown resample seeds.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine, pw_max_cosine, pw_mcc, shared_latents, subspace_overlap
from rkcnn_lib.measure.recovery import EXACT_UP_TO, Chance, covariance_factor, match
from rkcnn_lib.measure.stability import bootstrap_pairs, jackknife_pairs, whitening_of
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit, load_unit, unit_scalars
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.activations import sample
from rkcnn_lib.studies.cells import live_rows
from rkcnn_lib.studies.comparison import Compared, compare
from rkcnn_lib.studies.truth import labels, latent_f1, recovered
from rkcnn_lib.vocabulary import COMPARED, MINED, RIVALS, UNMINED

BEFORE, AFTER = "before training", "after training"
PW_MCC = "PW-MCC"
TOTAL = "PW-MCC, dead latents as 0"
WHITE = "PW-MCC, whitened"  # what is judged: where activations fill few dimensions, raw rows agree whatever they are
OLDER = "older PWMCC, largest absolute cosine"
SHARED = "shared latents"
SPAN = "span of the busiest latents"
SHOWN = (
    (WHITE, AFTER), (WHITE, BEFORE), (PW_MCC, AFTER), (PW_MCC, BEFORE), (TOTAL, AFTER), (OLDER, AFTER), (OLDER, BEFORE),
    (SHARED, AFTER), (SPAN, AFTER),
)  # fmt: skip
RECURS = 0.7  # whitened cosine from which a latent counts as found again; random directions of 100 dimensions: never
LEVELS = ("as activations lie", "any directions")
SPREAD_ROWS = 8192  # activations whose covariance the first level has
BYTES_FIXED, BYTES_A_PAIR = 7e8, 32.0  # a process that has torch; matrices of latents x latents while it matches
BUSIEST = 1 / 8  # of the width: how many latents that span is of
ALL, SOME, NONE = "in all other seeds", "in some", "in none"
TITLED = [MINED, UNMINED]  # the arms that titles speak of


@dataclass(frozen=True)
class Agreement:
    """What the panel shows, and jackknife pseudo-values of PW-MCC a seed for the verdicts."""

    table: pd.DataFrame  # arm, seed, metric, value (mean over the seed's pairs), chance_mean, _upper and _any
    summary: pd.DataFrame  # one row an arm
    by_seed: pd.DataFrame  # arm, seed, metric ``pw_mcc``, value
    title: str
    units: dict[str, Unit] = field(default_factory=dict)  # of each arm after training, as :func:`pairs` returns it


@dataclass(frozen=True)
class _Seed:
    """One trained (or untrained) SAE: its dictionary, which latents are live, and the whole of it where known."""

    decoder: torch.Tensor
    live: torch.Tensor
    white: torch.Tensor  # the dictionary where all directions of the activations vary alike
    density: torch.Tensor | None = None
    sae: Any = None


def other_architecture(store: Any, run: Run) -> Compared | None:
    """Train the judged arms with ``other_architecture`` at the same L0; None where none is asked for."""
    name = run.p.other_architecture
    if name is None:
        return None
    p = run.p.model_copy(update={"architecture": name, "l1": None, "budgets": []})
    return compare(store, p, run.device, trained=COMPARED)


def agreement(compared: Compared, store: Any, p: SaeCompare, other: Compared | None = None) -> Agreement:
    """Measure how well the seeds of each arm agree, before and after training, beside chance; one seed: nothing."""
    if p.n_seeds < 2:
        nothing = pd.DataFrame(columns=["arm", "seed", "metric", "value"])
        return Agreement(nothing, pd.DataFrame(), nothing, "One seed: nothing to agree with")
    spread = spread_of(store)
    arms = _folders(compared) | {f"{arm}, {p.other_architecture}": f for arm, f in _folders(other).items()}
    cells = list(itertools.product(arms, (AFTER, BEFORE)))
    largest = next(iter(arms.values()))[0]  # all have as many latents
    work = [(arms[arm], moment, spread) for arm, moment in cells]
    units = run_cells(pairs, work, matching_processes(p.n_jobs, largest), "agreement")
    found = dict(zip(cells, units, strict=True))
    rows = [
        {"arm": arm, "metric": f"{measure} {moment}"} | row
        for measure, moment in SHOWN
        for arm in arms
        for row in _by_seed(found[arm, moment], measure)
    ]  # fmt: skip
    cosines = {arm: found[arm, AFTER].arrays[WHITE].numpy() for arm in arms}
    by_seed = pd.DataFrame([
        {"arm": arm, "seed": seed, "metric": "pw_mcc", "value": float(value)}
        for arm, matrix in cosines.items()
        if enters_verdicts(arms[arm])
        for seed, value in enumerate(jackknife_pairs(matrix))
    ])  # fmt: skip
    table = pd.DataFrame(rows)
    l0 = {arm: np.mean([unit_scalars(folder)["l0"] for folder in folders]) for arm, folders in arms.items()}
    trained = {arm: found[arm, AFTER] for arm in _folders(compared)}
    after = table[table["metric"] == f"{WHITE} {AFTER}"].groupby("arm")[["value", "chance_mean"]].mean()
    told = (f"{own:.2f} for {arm} (chance {by_chance:.2f})" for arm, own, by_chance in after.loc[TITLED].itertuples())
    title = f"On whitened rows seeds agree at {', '.join(told)}"
    return Agreement(table, _summary(table, cosines, l0), by_seed, title, trained)


def enters_verdicts(folders: Sequence[Path]) -> bool:
    """Whether an arm has three SAE units, as a jackknife over pairs needs, small enough to be matched exactly."""
    return len(folders) >= 3 and _n_latents(folders[0]) <= EXACT_UP_TO  # else arms may fall short by different amounts


def matching_processes(n_jobs: int | None, folder: Path) -> int:
    """Return how many processes may match dictionaries of an SAE unit's size at once: memory is the bound."""
    return process_count(n_jobs, "cpu", BYTES_FIXED + BYTES_A_PAIR * _n_latents(folder) ** 2)


def _n_latents(folder: Path) -> int:
    return len(load_unit(folder).arrays["density"])


def spread_of(store: Any) -> np.ndarray:
    """Return what draws random directions with the covariance of a store's activations, (d, d)."""
    X = sample(store, SPREAD_ROWS)
    return covariance_factor(X - X.mean(0))


def _folders(compared: Compared | None) -> dict[str, tuple[Path, ...]]:
    """Return the folders of each arm's SAE units, in the order of seeds."""
    units = sorted(compared.units, key=lambda cell: cell[1]) if compared else []
    return {arm: tuple(compared.units[cell].folder for cell in units if cell[0] == arm) for arm, _ in units}


def pairs(folders: tuple[Path, ...], moment: str, spread: np.ndarray, only: str | None = None) -> Unit:
    """Return every measure (or one) for all pairs of an arm's seeds, with chance (cached: matching takes long).

    After training also ``recurs`` (n_seeds, d_sae), in how many other seeds a latent has a partner at a whitened cosine
    of `RECURS`, -1 if it is dead; ``recurring`` (n_seeds, n_seeds), a row's live latents found in a column, as a share.
    """

    def compute(scratch: Any) -> Unit:
        whitening = whitening_of(spread.T @ spread, len(spread)).float()
        seeds = [_seed(folder, moment, whitening) for folder in folders]
        levels, arrays = {}, {}
        statistics = _statistics(moment)
        for measure in statistics if only is None else [only]:
            arrays[measure] = matrix = torch.eye(len(seeds), dtype=torch.float64)
            for i, j in itertools.combinations(range(len(seeds)), 2):
                matrix[i, j] = matrix[j, i] = statistics[measure](seeds[i], seeds[j])
            for name, rows in zip(LEVELS, (spread, None), strict=True):
                level = _chance(measure, seeds, rows)
                levels |= {f"{measure}, {name}, mean": level.mean, f"{measure}, {name}, upper": level.upper}
        if moment == AFTER and only is None:  # dead latents as 0: the same sums over d_sae in place of the matches
            live = torch.tensor([float(seed.live.double().mean()) for seed in seeds], dtype=torch.float64)
            arrays[TOTAL] = arrays[PW_MCC] * torch.minimum(live[:, None], live)
            of_live = {name: level for name, level in levels.items() if name.startswith(f"{PW_MCC},")}
            levels |= {name.replace(PW_MCC, TOTAL, 1): level * float(live.min()) for name, level in of_live.items()}
            arrays |= _found_again(seeds)
        return Unit(scalars=levels, arrays=arrays)

    inputs = {"units": [folder.name for folder in folders], "moment": moment}
    return cached_unit("agreement", inputs | ({"only": only} if only else {}), compute)


def _seed(folder: Path, moment: str, whitening: torch.Tensor) -> _Seed:
    unit = load_unit(folder)
    if moment == AFTER:
        sae, density = load_saelens(folder / "sae"), unit.arrays["density"]
        return _Seed(sae.W_dec.data, density > 0, sae.W_dec.data @ whitening, density, sae)
    decoder = unit.arrays["W_dec_start"]
    return _Seed(decoder, torch.ones(len(decoder), dtype=torch.bool), decoder @ whitening)


def _statistics(moment: str) -> dict[str, Callable[[_Seed, _Seed], float]]:
    def busiest(seed: _Seed) -> torch.Tensor:
        return seed.decoder[seed.density.argsort(descending=True)[: _rank(seed.decoder.shape[1])]]

    before = {
        WHITE: lambda a, b: pw_mcc([a.white, b.white], [a.live, b.live]),
        PW_MCC: lambda a, b: pw_mcc([a.decoder, b.decoder], [a.live, b.live]),
        OLDER: lambda a, b: pw_max_cosine([a.decoder, b.decoder], [a.live, b.live]),
    }
    return before if moment == BEFORE else before | {
        SHARED: lambda a, b: shared_latents([a.sae, b.sae], live=[a.live, b.live]),
        SPAN: lambda a, b: subspace_overlap(busiest(a), busiest(b)),
    }  # fmt: skip


def _rank(d: int) -> int:
    return max(1, round(BUSIEST * d))


def _chance(measure: str, seeds: list[_Seed], spread: np.ndarray | None) -> Chance:
    """Return the level of random unit dictionaries with as many latents as the least live seed has."""
    n = max(1, min(int(seed.live.sum()) for seed in seeds))
    if measure == WHITE:  # white rows point anywhere, whatever the activations' covariance
        return _level(measure, n, seeds[0].white.shape[1], None)
    return _level(measure, n, seeds[0].decoder.shape[1], None if spread is None else spread.astype(float).tobytes())


@lru_cache(maxsize=64)  # before training, and where no latent is dead, the arms have it in common
def _level(measure: str, n: int, d: int, spread: bytes | None) -> Chance:
    n_draws = 20 if n <= 256 else 10 if n <= 1024 else 2  # many latents: costly, and hardly any spread
    of = {SHARED: "recovery_rate", SPAN: subspace_overlap, OLDER: lambda a, b: pw_max_cosine([a, b])}
    options = {"threshold": 0.7} if measure == SHARED else {}
    n = _rank(d) if measure == SPAN else n
    factor = None if spread is None else np.frombuffer(spread).reshape(-1, d)
    return chance(of.get(measure, matched_cosine), n, n, d, n_draws, spread=factor, **options)


def _found_again(seeds: list[_Seed]) -> dict[str, torch.Tensor]:
    recurs = torch.stack([seed.live.long() - 1 for seed in seeds])
    recurring = torch.eye(len(seeds), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(seeds)), 2):
        matching = match(*(seeds[k].white[seeds[k].live] for k in (i, j)))
        again = matching.cosines >= RECURS
        for here, there, rows in ((i, j, matching.rows), (j, i, matching.columns)):
            live = seeds[here].live.nonzero().squeeze(1)
            recurs[here, live[torch.from_numpy(rows[again])]] += 1
            recurring[here, there] = again.sum() / len(live)
    return {"recurs": recurs, "recurring": recurring}


def _by_seed(unit: Unit, measure: str) -> list[dict[str, Any]]:
    """Return for each seed the mean over the pairs it is in, with the measure's chance levels."""
    matrix = unit.arrays[measure].numpy()
    means = (matrix.sum(1) - np.diag(matrix)) / (len(matrix) - 1)
    levels = {f"chance_{end}": unit.scalars[f"{measure}, {LEVELS[0]}, {end}"] for end in ("mean", "upper")}
    levels["chance_any"] = unit.scalars[f"{measure}, {LEVELS[1]}, mean"]
    return [{"seed": seed, "value": float(value)} | levels for seed, value in enumerate(means)]


def _summary(table: pd.DataFrame, cosines: dict[str, np.ndarray], l0: dict[str, float]) -> pd.DataFrame:
    """Return a row an arm: L0, PW-MCC's seed-bootstrap interval, every measure after training with both levels."""
    after = table[table["metric"].str.endswith(AFTER)]
    after = after.assign(metric=after["metric"].str.removesuffix(f" {AFTER}"))
    means = after.groupby(["arm", "metric"], sort=False)[["value", "chance_mean", "chance_any"]].mean()
    told = means.apply(lambda row: "{:.3f} ({:.3f}, {:.3f})".format(*row), axis=1)
    shown = told.unstack("metric")[list(dict.fromkeys(after["metric"]))].loc[list(l0)]
    if all(len(matrix) >= 3 for matrix in cosines.values()):
        intervals = {arm: bootstrap_pairs(matrix) for arm, matrix in cosines.items()}
        told = {arm: f"{low:.3f} to {high:.3f}" for arm, (low, high) in intervals.items()}
        shown.insert(1, f"{WHITE}, bootstrap 95 %", pd.Series(told))
    shown.insert(0, "L0", pd.Series(l0).round(1))
    return shown.rename_axis(index=None, columns=f"value (chance: {', '.join(LEVELS)})")


# ---------------------------------------------------------------- which latents recur


@dataclass(frozen=True)
class Recurrence:
    shares: pd.DataFrame  # metric (the arm), arm (a seed), seed (another), value: of the first's live latents in both
    traits: pd.DataFrame  # a row an arm and how often its latents recur: share of the live ones, and what they are like
    title: str


def recurrence(compared: Compared, agreed: Agreement, store: Any, run: Run) -> Recurrence:
    """Tell latents that recur from those that do not, in the arms that are judged; empty tables with one seed."""
    arms = [arm for arm in (MINED, *RIVALS) if arm in agreed.units]
    shares = pd.DataFrame([
        {"metric": arm, "arm": f"seed {seed}", "seed": other, "value": float(value)}
        for arm in arms
        for (seed, other), value in np.ndenumerate(agreed.units[arm].arrays["recurring"].numpy()) if seed != other
    ])  # fmt: skip
    labels(compared, store, run)  # several SAEs at once; read below
    latents = pd.concat(
        [_latents(compared.units[arm, seed], recurs, store, run).assign(arm=arm)
         for arm in arms for seed, recurs in enumerate(agreed.units[arm].arrays["recurs"])],
        ignore_index=True,
    )  # fmt: skip
    groups = latents.groupby(["arm", "recurs"], sort=False)
    median = groups["firing rate"].median()
    traits = groups.mean(numeric_only=True).drop(columns="firing rate").assign(**{"firing rate, median": median})
    traits.insert(0, "share of live latents", groups.size() / latents.groupby("arm").size())
    order = pd.MultiIndex.from_product([arms, (ALL, SOME, NONE)], names=["arm", "recurs"])
    mined, unmined = (traits["share of live latents"].get((arm, ALL), 0.0) for arm in TITLED)
    title = f"Found by all seeds: {mined:.0%} of the latents of {MINED}, {unmined:.0%} of {UNMINED}"
    return Recurrence(shares, traits.reindex(order).dropna(how="all"), title)


def _latents(unit: Unit, recurs: torch.Tensor, store: Any, run: Run) -> pd.DataFrame:
    """Return a row a live latent: how often it recurs, its firing rate, and what truth or labels say of it."""
    live, most = recurs >= 0, run.p.n_seeds - 1
    named = np.select([recurs[live] == most, recurs[live] > 0], [ALL, SOME], NONE)
    table = pd.DataFrame({"recurs": named, "firing rate": unit.arrays["density"][live].numpy()})
    if getattr(store, "truth", None) is not None:
        table["is a true direction"] = recovered(store.truth, live_rows(unit))
    if run.p.model == "atlas":
        table["F1 of its best label"] = latent_f1(unit.folder, store, run)[live.numpy()]
    return table
