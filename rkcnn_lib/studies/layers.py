"""The study behind 05: the comparison's declared contrasts over layers, corrected for looking at many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rkcnn_lib.measure.stability import jackknife_pairs
from rkcnn_lib.runs.grid import run_cells
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import unit_scalars
from rkcnn_lib.studies import agreement
from rkcnn_lib.studies.activations import concentration, opened_layers, sample
from rkcnn_lib.studies.comparison import in_order, run_grid, tidy
from rkcnn_lib.studies.sae_panels import SHOWN
from rkcnn_lib.studies.verdicts import (
    best_of,
    by_arm,
    claims,
    judge,
    judge_arms,
    seed_differences,
    sign_flips,
    verdict_title,
)
from rkcnn_lib.vocabulary import MINED, RIVALS, UNMINED, rival_of

TITLED = "explained_variance"  # the metric that the titles of figures over layers speak of
MIN_LAYERS_FOR_CORRELATION = 4
OVER_LAYERS = ", mean over layers"  # ends the name of each hypothesis that 05 judges
SHUFFLES = 9999
PROFILE_ROWS = 20_000
MIN_SEEDS_FOR_AGREEMENT = 3  # a jackknife over pairs of seeds needs as many


def open_stores(run: Run) -> dict[str, dict[int, Any]]:
    """Open (or capture, in one pass of the model) the activations of all hooks and layers: {hook: {layer: store}}."""
    by_hook: dict[str, dict[int, Any]] = {}
    for (layer, hook), store in opened_layers(run.p, [run.p.hook, *run.p.more_hooks], run.device).items():
        by_hook.setdefault(hook, {})[layer] = store
    return by_hook


def compare_layers(stores: dict[int, Any], run: Run) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Run the comparison at every layer and measure how well seeds agree: metrics, supply and agreement.

    Tidy: layer, arm, seed, metric, value, in which ``pw_mcc`` holds jackknife pseudo-values, whose mean over seeds is
    PW-MCC; what `run_grid` says of supply; and layer, arm, pw_mcc with its chance level.
    """
    grid = run_grid(stores, run.p, run.device)
    folders = grid.folders
    cells = [
        ({cell: folder for cell, folder in folders.items() if cell[0] == layer}, agreement.spread_of(store))
        for layer, store in stores.items()
    ]
    n_jobs = agreement.matching_processes(run.p.n_jobs, next(iter(folders.values())))
    agreed = pd.concat(run_cells(_agreement_cell, cells, n_jobs, "agreement"))
    metrics = tidy({cell: unit_scalars(folder) for cell, folder in folders.items()}, ("layer", "arm", "seed"))
    summary = agreed.groupby(["layer", "arm"], sort=False)[["value", "chance_mean", "chance_upper"]].mean()
    metrics = pd.concat([metrics, agreed[metrics.columns]], ignore_index=True) if len(agreed) else metrics
    return metrics, grid.supply, summary.rename(columns={"value": "pw_mcc"}).reset_index()


def compare_further(stores: dict[str, dict[int, Any]], run: Run) -> dict[str, pd.DataFrame]:
    """Compare at ``more_hooks`` too: {hook: metrics}, which the run records with the hook in brackets."""
    found = {hook: compare_layers(stores[hook], run)[0] for hook in run.p.more_hooks}
    for hook, metrics in found.items():
        run.metrics(metrics.assign(metric=metrics["metric"] + f" ({hook})"))
    return found


def _agreement_cell(folders: dict[tuple[int, str, int], Path], spread: np.ndarray) -> pd.DataFrame:
    """One layer: ``pw_mcc`` beside chance; empty below three seeds, and for more latents than are matched exactly."""
    by_seed: dict[tuple[int, str], list[Path]] = {}
    for (layer, arm, _), folder in folders.items():
        by_seed.setdefault((layer, arm), []).append(folder)
    rows = []
    for cell, of_arm in by_seed.items():
        if len(of_arm) >= MIN_SEEDS_FOR_AGREEMENT and agreement.matched_exactly(of_arm[0]):
            found = agreement.pairs(tuple(of_arm), agreement.AFTER, spread, only=agreement.WHITE)
            level = [found.scalars[f"{agreement.WHITE}, {agreement.LEVELS[0]}, {end}"] for end in ("mean", "upper")]
            values = jackknife_pairs(found.arrays[agreement.WHITE].numpy())
            rows += [(*cell, seed, "pw_mcc", value, *level) for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["layer", "arm", "seed", "metric", "value", "chance_mean", "chance_upper"])


def layer_profile(stores: dict[int, Any]) -> pd.DataFrame:
    """Return per layer the median norm, gamma = ||mu||/||sigma|| and how many dimensions hold half the variance."""
    rows = []
    for layer, store in stores.items():
        X = sample(store, PROFILE_ROWS).double()
        rows.append((layer, float(X.norm(dim=1).median()), *concentration(X.var(0), X.mean(0))))
    return pd.DataFrame(rows, columns=["layer", "median_norm", "gamma", "dimensions_with_half_the_variance"])


def shown_metrics(metrics: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return hook, layer, arm, metric, value: means over seeds of what the heat map offers, from {hook: metrics}."""
    found = pd.concat([table.assign(hook=hook) for hook, table in metrics.items()])
    means = found.groupby(["hook", "layer", "arm", "metric"], sort=False)["value"].mean().reset_index()
    return in_order(means, "metric", [*SHOWN, "pw_mcc"])


def heatmap_title(metrics: pd.DataFrame) -> str:
    """Return the finding of the heat map, of the hook that is judged."""
    ev = metrics[metrics["metric"] == TITLED].groupby(["layer", "arm"])["value"].mean().unstack()
    ahead = int((ev[MINED] > ev[UNMINED]).sum())
    return f"{MINED} explains more variance than random at {ahead} of {len(ev)} layers (chance: half of them)"


def differences(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Judge at each layer, Holm over layers and rivals of a metric; the metric that titles speak of comes first."""
    placed = [(layer, claim) for layer, rows in metrics.groupby("layer") for claim in claims(rows, p)]
    declared = [
        replace(claim, hypothesis=claim.metric, arm=f"{claim.arm} at {layer}", rival=f"{claim.rival} at {layer}")
        for layer, claim in placed
    ]
    at_layers = metrics.assign(arm=metrics["arm"] + " at " + metrics["layer"].astype(str))
    judged = judge(declared, {metric: by_arm(at_layers, metric) for metric in {claim.metric for claim in declared}})
    rows = [
        row | {"layer": layer, "contrast": claim.contrast} for (layer, claim), row in zip(placed, judged, strict=True)
    ]
    return pd.DataFrame(sorted(rows, key=lambda row: row["metric"] != TITLED))


def difference_title(table: pd.DataFrame) -> str:
    """Return the finding of the per-layer figure."""
    told = [
        f"than {rival_of(contrast)} at {(words == 'better').sum()} of {len(words)} layers"
        for contrast, words in table[table["metric"] == TITLED].groupby("contrast", sort=False)["verdict"]
    ]
    return f"Explained variance, better by more than the margin: {', '.join(told)}"


def best_of_layers(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Return each contrast's best layer beside the best that sign-flipped seeds would give."""
    rows = []
    for metric, contrast, seeds in seed_differences(metrics, p, ["layer"]):
        found = best_of(seeds)
        rows.append({"metric": f"best {metric}", "contrast": contrast, "layer": int(found.pop("best"))} | found)
    return pd.DataFrame(rows)


def sign_over_layers(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Return at how many layers the mean difference is in favour, with two p-values of the sign test.

    ``p_layers`` takes layers for independent, which they are not, for comparison with work that does. ``p_seeds``
    counts in how many ``cells`` (a layer of a seed) the difference is in favour, and asks how often coins that turn a
    seed round at all its layers give a count as far from half: what layers share counts once (2 ** (1 - n) at least).
    """
    rows = []
    for metric, contrast, seeds in seed_differences(metrics, p, ["layer"]):
        ahead, n = int((seeds.mean(axis=1) > 0).sum()), len(seeds)
        off = np.abs(sign_flips(np.sign(seeds)).mean(axis=1))  # the first pattern is what was observed
        rows.append({"metric": metric, "contrast": contrast, "layers_ahead": ahead, "layers": n,
                     "p_layers": float(stats.binomtest(ahead, n).pvalue),
                     "cells_ahead": int((seeds > 0).to_numpy().sum()), "cells": seeds.size,
                     "p_seeds": float((off >= off[0] - 1e-12).mean())})  # fmt: skip
    return pd.DataFrame(rows)


def against_gamma(per_layer: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """Return the table of :func:`differences` with each layer's anisotropy ``gamma`` beside it."""
    return per_layer.merge(profile[["layer", "gamma"]], on="layer")


def gamma_title(table: pd.DataFrame) -> str:
    """Return the finding: Spearman's rank correlation of the advantage in explained variance with gamma, and its p."""
    rows = table[(table["metric"] == TITLED) & (table["contrast"] == f"{MINED} - {RIVALS[0]}")]
    n = len(rows)
    if n < MIN_LAYERS_FOR_CORRELATION:
        return f"{n} layers are too few to say whether the advantage follows anisotropy"
    gamma, gain = (stats.zscore(stats.rankdata(rows[name])) for name in ("gamma", "difference"))
    rho = float(gamma @ gain) / n
    shuffled = np.random.default_rng(0).permuted(np.tile(gain, (SHUFFLES, 1)), axis=1) @ gamma / n
    p = (1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + SHUFFLES)
    return (
        f"Over {n} layers the advantage in explained variance over {RIVALS[0]} has rank correlation {rho:.2f} with "
        f"gamma (p {p:.2f} under shuffled layers)"
    )


def verdicts(metrics: pd.DataFrame, p: Multilayer) -> list[dict[str, Any]]:
    """Judge each hypothesis on the values averaged over layers, one a seed."""
    return judge_arms(metrics.groupby(["arm", "seed", "metric"])["value"].mean().reset_index(), p, OVER_LAYERS)


def checks(metrics: dict[str, pd.DataFrame], n_layers: int, p: Multilayer) -> list[Check]:
    """Return 05's gate, over all hooks: all cells there, all finite, every SAE better than predicting the mean."""
    expected = len(metrics) * n_layers * len([*p.arms, *p.variants]) * p.n_seeds
    found = pd.concat([table.assign(hook=hook) for hook, table in metrics.items()])
    cells = len(found.drop_duplicates(["hook", "layer", "arm", "seed"]))
    smallest = float(found[found["metric"] == TITLED]["value"].min())
    finite = bool(np.isfinite(found["value"]).all())
    return [
        Check("cells finished", cells, f"= {expected}", cells == expected),
        Check("smallest explained variance of any SAE", smallest, "> 0 (0: predicting the mean)", smallest > 0),
        Check("every number is finite", "yes" if finite else "no", "yes", finite),
    ]


def headline(table: pd.DataFrame, per_layer: pd.DataFrame, run: Run) -> str:
    """Return one sentence that answers 05's question."""
    return (
        f"In the mean over {per_layer['layer'].nunique()} layers of {run.p.model} ({run.p.hook}, {run.p.n_seeds} "
        f"seeds) {verdict_title(table)}. {difference_title(per_layer)}."
    )
