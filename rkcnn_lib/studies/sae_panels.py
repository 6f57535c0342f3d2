"""What 04 shows of a comparison: one function a panel, tables in the form the figures take."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import frozen_dictionary_ev
from rkcnn_lib.measure.statistics import seed_document_interval
from rkcnn_lib.probe.search import MIN_RATIO
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import Comparison, SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit, load_unit
from rkcnn_lib.sae import init_from_directions
from rkcnn_lib.studies.cells import L0_TOLERANCE, evenly, live_rows, mined_unit, sae_config
from rkcnn_lib.studies.comparison import Compared, in_order
from rkcnn_lib.studies.front import needed_tokens
from rkcnn_lib.studies.verdicts import in_short, listed, means
from rkcnn_lib.vocabulary import ARMS, MINED, RIVALS, UNMINED, base_arm, rival_of
from rkcnn_lib.worlds.toy import INVENTED_MODELS

EV = "explained_variance"
LEAST_OWN = 0.5  # of an arm's latents: below, what is compared is mostly the fill
MIN_FIRINGS = 100  # of the mean latent on the held-out tokens: one that fires a thirtieth as often is still seen
SHOWN = (
    "explained_variance", "explained_variance_standardised", "untrained_explained_variance",
    "untrained_explained_variance_standardised", "live", "dead", "untrained_dead", "died", "revived", "dense", "l0",
    "l2_ratio", "relative_reconstruction_bias", "delta_ce", "kl", "ce_score_zero", "ce_score_mean", "seconds",
)  # fmt: skip
# An arm's directions as it starts, before the passes of sparse coding, and the live rows of its trained decoder.
BEFORE, UNREFINED, TRAINED = "before training", "as mined", "after training"


def frozen_dictionaries(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Code held-out rows with every arm's directions, refined and as they were mined: arm, seed, k, value (EV)."""
    cells = [
        (arm, seed, stage)
        for arm, seed in compared.units if arm in run.p.arms
        for stage in (BEFORE, UNREFINED, TRAINED) if stage != UNREFINED or ARMS[arm].refined
    ]  # fmt: skip
    work = [(store, run.p, *cell, compared.units[cell[:2]].folder, run.device) for cell in cells]
    found = run_cells(_frozen_cell, work, process_count(run.p.n_jobs, run.device), "dictionaries")
    if getattr(store, "truth", None) is not None:
        held_out = store.matrix("heldout", n_rows=run.p.frozen_rows)
        cells.append(("true directions", 0, BEFORE))
        found.append(frozen_dictionary_ev(held_out, store.truth, ks=tuple(run.p.frozen_k)))
    rows = [(*cell, int(k), value) for cell, ev in zip(cells, found, strict=True) for k, value in ev.items()]
    return pd.DataFrame(rows, columns=["arm", "seed", "stage", "k", "value"])


def _frozen_cell(store: Any, p: SaeCompare, arm: str, seed: int, stage: str, folder: Path, device: str) -> dict:
    mined = mined_unit(store, p, arm, seed, device)

    def compute(scratch: Path) -> Unit:
        held_out = store.matrix("heldout", n_rows=p.frozen_rows).to(device)
        if stage == TRAINED:
            decoder = live_rows(load_unit(folder)).to(device)
        else:
            directions = None if mined is None else mined.arrays["mined" if stage == UNREFINED else "directions"]
            X = store.matrix("mine", seed=seed, n_rows=p.mining_rows).to(device)
            decoder = init_from_directions(sae_config(p, store.d_in), directions, X=X, random_state=seed).W_dec.data
        found = frozen_dictionary_ev(held_out, decoder, ks=tuple(p.frozen_k))
        return Unit(scalars={str(k): value for k, value in found.items()})

    inputs = {
        "data": store.key, "mined": mined and mined.folder.name, "seed": seed, "refined": stage != UNREFINED,
        "device": device, "latents": round(p.expansion * store.d_in), "mining_rows": p.mining_rows,
        "ks": list(p.frozen_k), "rows": p.frozen_rows,
    } | ({"trained": folder.name} if stage == TRAINED else {})  # fmt: skip
    return cached_unit("frozen", inputs, compute).scalars


def by_stage(frozen: pd.DataFrame) -> pd.DataFrame:
    """Return the frozen dictionaries' table with a metric a stage and number of atoms, the start first."""
    order = [f"{stage}, k = {k}" for stage in (BEFORE, TRAINED, UNREFINED) for k in sorted(frozen["k"].unique())]
    return in_order(frozen.assign(metric=frozen["stage"] + ", k = " + frozen["k"].astype(str)), "metric", order)


def frozen_title(frozen: pd.DataFrame) -> str:
    k = frozen["k"].min()
    starts = frozen[(frozen["k"] == k) & (frozen["stage"] == BEFORE)].groupby("arm")["value"].mean()
    return f"Before training, explained variance at k = {k}: {listed(starts.sort_values(ascending=False), '.3f')}"


def shown_metrics(compared: Compared, published: pd.DataFrame, other: Compared | None, run: Run) -> pd.DataFrame:
    """Return the metrics that the figure offers, in order; the other architecture's name stands behind its arms."""
    tables = [compared.metrics, published]
    if other is not None:
        tables.append(other.metrics.assign(arm=other.metrics["arm"] + f", {run.p.other_architecture}"))
    return in_order(pd.concat([table for table in tables if len(table)]), "metric", SHOWN)


def metrics_title(metrics: pd.DataFrame) -> str:
    (worst, low), *_, (best, high) = means(metrics, EV).sort_values().items()
    return f"After training, explained variance runs from {low:.3f} ({worst}) to {high:.3f} ({best})"


def dead_by_origin(compared: Compared) -> pd.DataFrame:
    """Return a row an arm and origin (own, fill): latents, and shares dead at the start, died, revived, dead; means."""
    rows = []  # what is dead before the first step gets no gradient from TopK: that measures the start, not training
    columns = {"untrained_dead": "dead at the start", "died": "died", "revived": "revived", "dead": "dead at the end"}
    for (arm, _), unit in compared.units.items():
        n = len(unit.arrays["density"])
        own = n if base_arm(arm) == UNMINED else int(unit.scalars["n_mined"])
        for origin, part, latents in (("own", "_mined" if arm != UNMINED else "", own), ("fill", "_fill", n - own)):
            if latents:
                shares = {shown: unit.scalars[name + part] for name, shown in columns.items()}
                rows.append({"arm": arm, "origin": origin, "latents": latents} | shares)
    return pd.DataFrame(rows).groupby(["arm", "origin"], sort=False).mean().round(3).astype({"latents": int})


def loss_over_documents(units: Iterable[tuple[tuple, Unit]], store: Any, p: Comparison) -> pd.DataFrame:
    """Return a row a rival: by how much less loss rkcnn's SAEs cost, with an interval over seeds *and* documents.

    All seeds are judged on the same text: an interval over seeds alone is too narrow. In nats a token, each document
    (the first of a context that holds several) counting once; empty where no model was run. Units come with their cell,
    (arm, seed) or (layer, arm, seed): the mean over layers.
    """
    found: dict[tuple[str, int], list[torch.Tensor]] = {}
    for (*_, arm, seed), unit in units:
        if "ce_by_context" in unit.arrays:
            found.setdefault((arm, seed), []).append(unit.arrays["ce_by_context"])
    losses = {cell: torch.stack(of_layers).mean(0) for cell, of_layers in found.items()}
    documents = evenly(store.context_documents("heldout"), p.splice_contexts).numpy() if losses else None
    rows = []
    for rival in RIVALS:
        seeds = [seed for arm, seed in losses if arm == rival]
        if seeds:
            ahead = pd.DataFrame({seed: (losses[rival, seed] - losses[MINED, seed]).numpy() for seed in seeds})
            counted = ahead.dropna().groupby(documents[ahead.notna().all(axis=1)]).mean().to_numpy().T
            rows.append((f"{MINED} - {rival}", *seed_document_interval(counted), *counted.shape))
    return pd.DataFrame(rows, columns=["contrast", "difference", "low", "high", "seeds", "documents"])


def densities(compared: Compared) -> dict[str, np.ndarray]:
    """Return each arm's firing rates, all seeds together."""
    rates = pd.Series({cell: unit.arrays["density"].numpy() for cell, unit in compared.units.items()})
    return {arm: np.concatenate(list(parts)) for arm, parts in rates.groupby(level=0, sort=False)}


def density_title(densities: dict[str, np.ndarray]) -> str:
    live = {arm: densities[arm][densities[arm] > 0] for arm in (MINED, UNMINED)}
    median = {arm: np.median(rates) if len(rates) else np.nan for arm, rates in live.items()}
    return f"Tokens on which the median live latent fires: {listed(median, '.2%')}"


def moved(compared: Compared) -> dict[str, dict[str, np.ndarray]]:
    """Return, step by step, the cosine of each rkcnn latent with its own start: mined and filled ones."""
    units = [unit for (arm, _), unit in compared.units.items() if arm == MINED]
    frames: dict[str, dict[str, np.ndarray]] = {}
    for step in sorted(int(name.rpartition("_")[2]) for name in units[0].arrays if name.startswith("W_dec_step_")):
        cosines = [(unit.arrays[f"W_dec_step_{step}"] * unit.arrays["W_dec_start"]).sum(1).numpy() for unit in units]
        parts = [np.split(c, [int(unit.scalars["n_mined"])]) for c, unit in zip(cosines, units, strict=True)]
        groups = zip(("mined", "fill"), map(np.concatenate, zip(*parts, strict=True)), strict=True)
        frames[f"step {step}"] = {group: values for group, values in groups if len(values)}
    return frames


def moved_title(frames: dict[str, dict[str, np.ndarray]]) -> str:
    *_, last = frames.values()
    return f"Median cosine with the start: {listed({group: np.median(c) for group, c in last.items()}, '.2f')}"


def measured(compared: Compared, frozen: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Return arm, seed, metric, value of everything that hypotheses are judged on: one value an arm and seed."""
    coded = frozen.groupby(["arm", "seed", "stage"], as_index=False)["value"].mean()  # over numbers of atoms
    coded = coded.assign(metric=coded["stage"].map({BEFORE: "frozen_ev", TRAINED: "frozen_ev_trained"})).dropna()
    needed = needed_tokens(compared)  # of rivals that never reach random's quality none are judged
    tables = [compared.metrics, needed[(needed["bound"] != ">") | (needed["arm"] == MINED)], coded, *others]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)[["arm", "seed", "metric", "value"]]


def funnel(compared: Compared) -> pd.DataFrame:
    """Return arm, seed, stage, value: subsets drawn, candidates, kept, started and live latents, of arms from data."""
    live = compared.metrics.query("metric == 'live'").rename(columns={"value": "live"})[["arm", "seed", "live"]]
    counts = compared.supply.merge(live).rename(columns={"supply": "started"})
    return counts.melt(["arm", "seed"], ["drawn", "candidates", "kept", "started", "live"], "stage").dropna()


def funnel_title(compared: Compared) -> str:
    tightest = compared.supply.groupby("arm", sort=False)["candidates_a_place"].min().dropna()
    return f"Candidates for a place, in the tightest round of any seed: {listed(tightest, '.1f')}"


def checks(compared: Compared, p: SaeCompare) -> list[Check]:
    """Return 04's gate: was the treatment applied, do arms differ in nothing else, can the numbers mean anything?"""
    metrics, supply = compared.metrics.set_index("metric"), compared.supply
    explains, finite = sound(compared.metrics)
    tightest = float(supply["candidates_a_place"].min())
    own = float((supply["supply"] / supply["wanted"]).min())
    n_latents = len(next(iter(compared.units.values())).arrays["density"])
    firings = float(metrics.loc[["n_tokens"], "value"].min() * p.k / n_latents)
    l0 = means(compared.metrics, "l0")
    spread = float(l0.max() / l0.min() - 1)  # inf where an arm has no active latent
    trained = [unit.tables["history"]["tokens"].iloc[-1] for unit in compared.units.values()]
    alike = {
        "rows mined": supply.set_index("seed")["rows"],
        "tokens trained on": pd.Series(trained, index=[seed for _, seed in compared.units]),
        "held-out tokens": metrics.loc[["n_tokens"]].set_index("seed")["value"],
    }
    enough = f">= {MIN_RATIO} (else the score selects nothing)"
    seen = f">= {MIN_FIRINGS} (else dead latents are merely rare)"
    return [
        explains,
        Check("L0 of the arms, largest over smallest, minus 1", spread, f"<= {L0_TOLERANCE}", spread <= L0_TOLERANCE),
        Check("candidates for a place, in the tightest round of any seed", tightest, enough, tightest >= MIN_RATIO),
        *(_alike(f"{name}, most and least of any arm of a seed", values) for name, values in alike.items()),
        Check("smallest share of an arm's latents that start from its own directions", own,
              f">= {LEAST_OWN} (else the fill is compared)", own >= LEAST_OWN),
        Check("times that the mean latent fires on the held-out tokens", firings, seen, firings >= MIN_FIRINGS),
        finite,
    ]  # fmt: skip


def sound(metrics: pd.DataFrame) -> list[Check]:
    """Return the checks that every SAE is better than predicting the mean and that every number is finite."""
    ev, finite = float(metrics[metrics["metric"] == EV]["value"].min()), bool(np.isfinite(metrics["value"]).all())
    return [
        Check("smallest explained variance of any SAE", ev, "> 0 (0: predicting the mean)", ev > 0),
        Check("every number is finite", "yes" if finite else "no", "yes", finite),
    ]


def _alike(name: str, values: pd.Series) -> Check:
    """Check that the arms of each seed, the index of ``values``, have the same; tell the seed that differs most."""
    ends = values.groupby(level=0).agg(["min", "max"]).astype(int)
    low, high = ends.loc[(ends["max"] - ends["min"]).idxmax()]
    return Check(name, f"{low:,} to {high:,}" if low < high else f"{low:,}", "equal", bool(low == high))


def headline(table: pd.DataFrame, run: Run) -> str:
    where = run.p.model + ("" if run.p.model in INVENTED_MODELS else f" layer {run.p.layer} {run.p.hook}")
    judged = zip(table["metric"], map(rival_of, table["contrast"]), table["verdict"], strict=True)
    return f"On {where}, {run.p.n_seeds} seeds, {run.p.steps:,} training steps. {in_short(judged)}"
