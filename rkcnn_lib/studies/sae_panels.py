"""What 04 shows of a comparison: one function a panel, tables in the form the figures take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.measure import chance, frozen_dictionary_ev, matched_cosine, precision, recovery_rate
from rkcnn_lib.probe.found import MIN_RATIO
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit, load_unit
from rkcnn_lib.studies.agreement import Agreement, agreement_remark
from rkcnn_lib.studies.cells import L0_TOLERANCE, MINED, UNMINED
from rkcnn_lib.studies.comparison import BASELINES, Compared
from rkcnn_lib.studies.verdicts import Values, judge, strongest_other, verdict_title
from rkcnn_lib.worlds.toy.planted import INVENTED_MODELS

# metric -> (hypothesis, name of the margin in the parameters, lower is better)
HYPOTHESES = {
    "dead": ("fewer dead latents", "delta_dead", True),
    "explained_variance": ("more explained variance", "delta_ev", False),
    "delta_ce": ("less loss when spliced in", "delta_ce", True),
}
BOUNDS = {"dead": 0.0, "explained_variance": 1.0, "delta_ce": 0.0}  # what no SAE surpasses
FRONT_HYPOTHESIS = {"l0_at_equal_ev": ("fewer active latents for the same variance", "delta_l0", True)}
AGREE = "seeds agree more"
DEAD_TOLERANCE = 0.01  # of an arm's latents: mined ones that are dead at the start, beyond the fill
MIN_FIRINGS = 100  # of the mean latent on the held-out tokens: one that fires a thirtieth as often is still seen
SHOWN = (
    "explained_variance", "untrained_explained_variance", "explained_variance_standardised", "live", "dead",
    "untrained_dead", "died", "dead_mined", "dead_fill", "untrained_dead_mined", "untrained_dead_fill", "l0",
    "delta_ce", "kl", "ce_score_zero", "ce_score_mean", "seconds",
)  # fmt: skip


def frozen_dictionaries(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Code held-out rows with every arm's initial dictionary (variants have their arm's): arm, seed, k, value (EV)."""
    units = {cell: unit for cell, unit in compared.units.items() if cell[0] in run.p.arms}
    cells = [(store, unit.folder, run.p, run.device) for unit in units.values()]
    found = run_cells(_frozen_cell, cells, process_count(run.p.n_jobs, run.device), "dictionaries")
    return pd.DataFrame([
        {"arm": arm, "seed": seed, "k": int(k), "value": value}
        for (arm, seed), scalars in zip(units, found, strict=True)
        for k, value in scalars.items()
    ])  # fmt: skip


def _frozen_cell(store: Any, sae_folder: Path, p: SaeCompare, device: str) -> dict[str, float]:
    def compute(scratch: Path) -> Unit:
        held_out = store.matrix("heldout", n_rows=p.frozen_rows).to(device)
        dictionary = load_unit(sae_folder).arrays["W_dec_start"].to(device)
        found = frozen_dictionary_ev(held_out, dictionary, ks=tuple(p.frozen_k))
        return Unit(scalars={str(k): value for k, value in found.items()})

    inputs = {"unit": sae_folder.name, "ks": list(p.frozen_k), "rows": p.frozen_rows}
    return cached_unit("frozen", inputs, compute).scalars


def shown_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    """Keep the metrics that the figure offers, in order."""
    found = metrics[metrics["metric"].isin(SHOWN)]
    order = found["metric"].map({name: i for i, name in enumerate(SHOWN)})
    return found.loc[order.sort_values(kind="stable").index]


def dead_curves(compared: Compared) -> pd.DataFrame:
    """Return arm, seed, tokens, share: how many latents still look dead after so many held-out tokens."""
    return pd.concat(
        [unit.tables["dead_curve"].assign(arm=arm, seed=seed) for (arm, seed), unit in compared.units.items()],
        ignore_index=True,
    )


def dead_by_origin(compared: Compared) -> pd.DataFrame:
    """Return a row an arm and origin (mined, fill): latents, and shares dead at the start, died, revived, dead; means.

    A latent that is dead before the first step gets no gradient from TopK: that measures the start, not training.
    """
    rows = []
    for (arm, _), unit in compared.units.items():
        n_mined, n = int(unit.scalars["n_mined"]), len(unit.arrays["density"])
        for origin, latents in (("mined", n_mined), ("fill", n - n_mined)):
            shares = {
                name: unit.scalars.get(f"{name}_{origin}") for name in ("untrained_dead", "died", "revived", "dead")
            }
            if latents:
                rows.append({"arm": arm, "origin": origin, "latents": latents} | shares)
    found = pd.DataFrame(rows).groupby(["arm", "origin"], sort=False).mean()
    named = {"untrained_dead": "dead at the start", "dead": "dead at the end"}
    return found.rename(columns=named).round(3).astype({"latents": int})


def densities(compared: Compared) -> dict[str, np.ndarray]:
    """Return each arm's firing rates, all seeds together."""
    arms = dict.fromkeys(arm for arm, _ in compared.units)
    return {
        arm: np.concatenate([u.arrays["density"].numpy() for (name, _), u in compared.units.items() if name == arm])
        for arm in arms
    }


def moved(compared: Compared) -> dict[str, dict[str, np.ndarray]]:
    """Return, step by step, the cosine of each rkcnn latent with its own start: mined and filled ones."""
    frames: dict[str, dict[str, np.ndarray]] = {}
    for (arm, _), unit in compared.units.items():
        if arm != MINED:
            continue
        n_mined, start = int(unit.scalars["n_mined"]), unit.arrays["W_dec_start"]
        steps = sorted(int(name.rpartition("_")[2]) for name in unit.arrays if name.startswith("W_dec_step_"))
        for step in steps:
            cosines = (unit.arrays[f"W_dec_step_{step}"] * start).sum(1).numpy()
            frame = frames.setdefault(f"step {step}", {"mined": [], "random fill": []})
            frame["mined"].append(cosines[:n_mined])
            frame["random fill"].append(cosines[n_mined:])
    return {step: {group: np.concatenate(parts) for group, parts in f.items()} for step, f in frames.items()}


def recovery(compared: Compared, store: Any) -> pd.DataFrame | None:
    """Compare trained decoders with the true directions (live latents), beside chance; None where none are known."""
    truth = getattr(store, "truth", None)
    if truth is None:
        return None
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in compared.units):
        for seed, (decoder, live) in enumerate(zip(compared.decoders(arm), compared.live(arm), strict=True)):
            for measure in (matched_cosine, recovery_rate, precision):
                by_chance = chance(measure, int(live.sum()), len(truth), store.d_in, n_draws=20, truth=truth)
                value = measure(decoder[live], truth)
                rows.append({"arm": arm, "seed": seed, "metric": measure.__name__, "value": value,
                             "chance_mean": by_chance.mean, "chance_upper": by_chance.upper})  # fmt: skip
    return pd.DataFrame(rows)


def by_arm(metrics: pd.DataFrame, metric: str) -> Values:
    """Return one metric as {arm: {seed: value}}, the form the paired tests take."""
    rows = metrics[metrics["metric"] == metric]
    return {arm: dict(zip(g["seed"], g["value"], strict=True)) for arm, g in rows.groupby("arm")}


def _hypotheses(
    metrics: pd.DataFrame, needed: pd.DataFrame, agreed: Agreement, p: SaeCompare
) -> Iterator[tuple[str, Values, dict[str, Any]]]:
    """Yield what is claimed, the numbers of every arm, and the metric with its margin and direction."""
    measured = pd.concat([metrics, needed], ignore_index=True)
    for metric, (hypothesis, margin, lower) in (HYPOTHESES | FRONT_HYPOTHESIS).items():
        values = by_arm(measured, metric)
        if values:
            bound = BOUNDS.get(metric, min([p.k, *p.front_k]))  # no arm is looked at below the front's smallest k
            yield hypothesis, values, {
                "metric": metric, "delta": getattr(p, margin), "lower_is_better": lower, "bound": bound,
            }  # fmt: skip
    if agreed.by_seed:  # pseudo-values of pairs need three seeds
        yield AGREE, agreed.by_seed, {
            "metric": "PW-MCC", "delta": p.delta_mcc, "lower_is_better": False, "bound": 1.0,
        }  # fmt: skip


def verdicts(metrics: pd.DataFrame, needed: pd.DataFrame, agreed: Agreement, p: SaeCompare) -> list[dict[str, Any]]:
    """Judge every hypothesis whose metric was measured, by the declared contrasts.

    ``metrics`` and ``needed`` (L0 at equal explained variance, see :mod:`~rkcnn_lib.studies.front`) are tidy.
    """
    return [
        row
        for hypothesis, values, measure in _hypotheses(metrics, needed, agreed, p)
        for row in judge(hypothesis, values, MINED, BASELINES, **measure)
    ]


def strongest(metrics: pd.DataFrame, needed: pd.DataFrame, agreed: Agreement, p: SaeCompare) -> pd.DataFrame:
    """Return for each hypothesis the best of the other starts and the mined arm's difference from it, no verdict."""
    rows = []
    for hypothesis, values, measure in _hypotheses(metrics, needed, agreed, p):
        starts = {arm: numbers for arm, numbers in values.items() if arm in p.arms}
        found = strongest_other(starts, MINED, lower_is_better=measure["lower_is_better"])
        if found:
            rows.append({"hypothesis": hypothesis, "metric": measure["metric"]} | found)
    return pd.DataFrame(rows)


def remarks(compared: Compared, agreed: Agreement) -> dict[str, str]:
    """Return, by hypothesis, what its numbers must be read with."""
    silent: dict[str, list[np.ndarray]] = {"mined": [], "fill": [], UNMINED: []}
    for (arm, _), unit in compared.units.items():
        never = unit.arrays["density"].numpy() == 0
        n_mined = int(unit.scalars["n_mined"])
        if arm == MINED:
            silent["mined"].append(never[:n_mined])
            silent["fill"].append(never[n_mined:])
        elif arm == UNMINED:
            silent[UNMINED].append(never)
    share = {name: np.concatenate(parts).mean() if parts else np.nan for name, parts in silent.items()}
    supplied = np.mean([len(part) for part in silent["mined"]])
    found = {
        HYPOTHESES["dead"][0]: f"{MINED} starts {supplied:.0f} of its {len(never)} latents from mined "
        f"directions, the rest at random: {share['mined']:.0%} of the mined ones and {share['fill']:.0%} of the rest "
        f"never fire; of {UNMINED}'s latents {share[UNMINED]:.0%}."
    }
    if len(agreed.table):
        found[AGREE] = agreement_remark(agreed.table, n_latents=len(never))
    return found


def funnel(supply: pd.DataFrame) -> pd.DataFrame:
    """Return a row an arm, means over seeds: what was drawn, could be chosen, was chosen, was supplied.

    ``supply`` is that of `comparison.run_grid`, layers aside.
    """
    columns = ["drawn", "candidates", "places", "candidates_a_place", "kept", "supply", "wanted", "rows", "seconds"]
    there = [name for name in columns if name in supply]
    return supply.groupby("arm", sort=False)[there].mean().round(1).astype(object).fillna("")


def checks(compared: Compared, p: SaeCompare) -> list[Check]:
    """Return 04's gate: was the treatment applied, do arms differ in nothing else, can the numbers mean anything?"""
    metrics = compared.metrics
    equal = {name: _spread(compared, name) for name in ("rows mined", "tokens trained on", "held-out tokens")}
    tightest = float(compared.supply.get("candidates_a_place", pd.Series(dtype=float)).min())
    over_fill = _dead_beyond_fill(compared, p)
    firings = metrics[metrics["metric"] == "n_tokens"]["value"].min() * p.k / _n_latents(compared)
    ev = metrics[metrics["metric"] == "explained_variance"]["value"]
    l0 = metrics[metrics["metric"] == "l0"].groupby("arm")["value"].mean()
    spread = float(l0.max() / l0.min() - 1) if l0.min() > 0 else float("inf")
    finite = bool(np.isfinite(metrics["value"]).all())
    return [
        Check("smallest explained variance of any SAE", float(ev.min()), "> 0 (0: predicting the mean)", ev.min() > 0),
        Check("L0 of the arms, largest over smallest, minus 1", spread, f"<= {L0_TOLERANCE}", spread <= L0_TOLERANCE),
        Check(
            "candidates for a place, in the tightest round of any seed",
            tightest,
            f">= {MIN_RATIO} (else the score selects nothing)",
            tightest >= MIN_RATIO,
        ),
        *(
            Check(
                f"{name}, most and least of any arm of a seed",
                f"{low:,} to {high:,}" if low < high else f"{low:,}",
                "equal",
                low == high,
            )
            for name, (low, high) in equal.items()
        ),
        Check(
            "share of any arm's latents that is dead before training, beyond its fill",
            over_fill,
            f"<= {DEAD_TOLERANCE}",
            over_fill <= DEAD_TOLERANCE,
        ),
        Check(
            "times that the mean latent fires on the held-out tokens",
            float(firings),
            f">= {MIN_FIRINGS} (else dead latents are merely rare)",
            bool(firings >= MIN_FIRINGS),
        ),
        Check("every number is finite", "yes" if finite else "no", "yes", finite),
    ]


def _n_latents(compared: Compared) -> int:
    return len(next(iter(compared.units.values())).arrays["density"])


def _spread(compared: Compared, what: str) -> tuple[int, int]:
    """Return the least and the most that arms of one seed have of what they must have alike, where farthest apart."""
    if what == "rows mined":
        values = compared.supply.set_index("seed")["rows"]
    elif what == "held-out tokens":
        values = compared.metrics[compared.metrics["metric"] == "n_tokens"].set_index("seed")["value"]
    else:
        last = {cell: unit.tables["history"]["tokens"].iloc[-1] for cell, unit in compared.units.items()}
        values = pd.Series(last.values(), index=[seed for _, seed in last])
    ends = values.groupby(level=0).agg(["min", "max"])
    low, high = ends.loc[(ends["max"] - ends["min"]).idxmax()]
    return int(low), int(high)


def _dead_beyond_fill(compared: Compared, p: SaeCompare) -> float:
    """Return the largest share of an arm's latents that is dead before training, less its random fill; seeds' mean."""
    beyond: dict[str, list[float]] = {}
    for (arm, _), unit in compared.units.items():
        if arm in p.arms:
            fill = 1 - unit.scalars["n_mined"] / len(unit.arrays["density"])
            beyond.setdefault(arm, []).append(unit.scalars["untrained_dead"] - fill)
    return float(max(np.mean(values) for values in beyond.values()))


def headline(table: pd.DataFrame, run: Run) -> str:
    """Return one sentence that answers 04's question."""
    where = f"{run.p.model}" + ("" if run.p.model in INVENTED_MODELS else f" layer {run.p.layer} {run.p.hook}")
    return (
        f"On {where}, {run.p.n_seeds} seeds, {run.p.steps:,} training steps, SAEs that start from mined directions "
        f"against random and unselected starts. {verdict_title(table).capitalize()}."
    )
