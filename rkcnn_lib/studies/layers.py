"""The study behind 05: declared contrasts over layers and over a sweep's settings, corrected for looking at many."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import permutation_test

from rkcnn_lib.measure.stability import jackknife_pairs
from rkcnn_lib.measure.statistics import paired_interval
from rkcnn_lib.runs.grid import run_cells
from rkcnn_lib.runs.published import SweepTables
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import unit_scalars
from rkcnn_lib.studies import agreement
from rkcnn_lib.studies import verdicts as rule
from rkcnn_lib.studies.activations import concentration, opened_layers, sample
from rkcnn_lib.studies.comparison import in_order, run_grid, tidy
from rkcnn_lib.studies.sae_panels import SHOWN, sound
from rkcnn_lib.vocabulary import MEASURES, MINED, RIVALS, UNMINED, rival_of

TITLED = "explained_variance"  # the metric that the titles of figures over layers speak of
MIN_LAYERS_FOR_CORRELATION = 4
PUBLISHED = Path(__file__).resolve().parent / "published_sweep.csv"
WHERE = ("setting", "steps", "layer", "hook")
SHUFFLES = 9999
PROFILE_ROWS = 20_000

Folders = dict[tuple[int, str, int], Path]  # of layer, arm, seed: a unit that holds an SAE and its measures


def open_stores(run: Run) -> dict[str, dict[int, Any]]:
    """Open (or capture, in one pass of the model) the activations of all hooks and layers: {hook: {layer: store}}."""
    by_hook: dict[str, dict[int, Any]] = {}
    hooks = [run.p.hook, *run.p.more_hooks]
    for (layer, hook), store in opened_layers(run.p, run.p.layers, hooks, run.device).items():
        by_hook.setdefault(hook, {})[layer] = store
    return by_hook


def compare_layers(stores: dict[int, Any], run: Run) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Folders]:
    """Run the comparison at every layer and measure how well seeds agree; the units' folders come last.

    Tidy: layer, arm, seed, metric, value, in which ``pw_mcc`` holds jackknife pseudo-values, whose mean over seeds is
    PW-MCC; what `run_grid` says of supply; layer, arm, pw_mcc with its chance level.
    """
    grid = run_grid(stores, run.p, run.device)
    folders = grid.folders
    cells = [
        ({cell: folder for cell, folder in folders.items() if cell[0] == layer}, agreement.spread_of(of_layer))
        for layer, of_layer in stores.items()
    ]
    n_jobs = agreement.matching_processes(run.p.n_jobs, next(iter(folders.values())))
    agreed = pd.concat(run_cells(_agreement_cell, cells, n_jobs, "agreement"))
    metrics = tidy({cell: unit_scalars(folder) for cell, folder in folders.items()}, ("layer", "arm", "seed"))
    summary = agreed.groupby(["layer", "arm"], sort=False)[["value", "chance_mean", "chance_upper"]].mean()
    metrics = pd.concat([metrics, agreed[metrics.columns]], ignore_index=True) if len(agreed) else metrics
    return metrics, grid.supply, summary.rename(columns={"value": "pw_mcc"}).reset_index(), folders


def compare_further(stores: dict[str, dict[int, Any]], run: Run) -> dict[str, pd.DataFrame]:
    """Compare at ``more_hooks`` too: {hook: metrics}, which the run records with the hook in brackets."""
    found = {hook: compare_layers(stores[hook], run)[0] for hook in run.p.more_hooks}
    for hook, metrics in found.items():
        run.metrics(metrics.assign(metric=metrics["metric"] + f" ({hook})"))
    return found


def _agreement_cell(folders: Folders, spread: np.ndarray) -> pd.DataFrame:
    """One layer: ``pw_mcc`` beside chance; empty below three seeds, and for more latents than are matched exactly."""
    rows = []
    for cell in dict.fromkeys(key[:2] for key in folders):
        of_arm = tuple(folder for key, folder in folders.items() if key[:2] == cell)
        if agreement.enters_verdicts(of_arm):
            found = agreement.pairs(of_arm, agreement.AFTER, spread, only=agreement.WHITE)
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
    ev = rule.means(metrics, TITLED, ["layer", "arm"]).unstack()
    ahead = int((ev[MINED] > ev[UNMINED]).sum())
    return f"{MINED} explains more variance than random at {ahead} of {len(ev)} layers (chance: half of them)"


def differences(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Judge at each layer, Holm over layers and rivals of a metric; the metric that titles speak of comes first."""
    placed = [(layer, claim) for layer, rows in metrics.groupby("layer") for claim in rule.claims(rows, p)]
    declared = [
        replace(claim, hypothesis=claim.metric, arm=f"{claim.arm} at {layer}", rival=f"{claim.rival} at {layer}")
        for layer, claim in placed
    ]
    at_layers = metrics.assign(arm=metrics["arm"] + " at " + metrics["layer"].astype(str))
    judged = rule.judge(declared, {name: rule.by_arm(at_layers, name) for name in {claim.metric for claim in declared}})
    about = ({"layer": layer, "contrast": claim.contrast} for layer, claim in placed)
    rows = [row | named for row, named in zip(judged, about, strict=True)]
    return pd.DataFrame(sorted(rows, key=lambda row: row["metric"] != TITLED))


def difference_title(table: pd.DataFrame) -> str:
    told = [
        f"than {rival_of(contrast)} at {(words == 'better').sum()} of {len(words)} layers"
        for contrast, words in table[table["metric"] == TITLED].groupby("contrast", sort=False)["verdict"]
    ]
    return f"Explained variance, better by more than the margin: {', '.join(told)}"


def best_of_layers(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Return each contrast's best layer beside the best that sign-flipped seeds would give."""
    rows = []
    for metric, contrast, seeds in rule.seed_differences(metrics, p, ["layer"]):
        found = rule.best_of(seeds)
        rows.append({"metric": f"best {metric}", "contrast": contrast, "layer": int(found.pop("best"))} | found)
    return pd.DataFrame(rows)


def sign_over_layers(metrics: pd.DataFrame, p: Multilayer) -> pd.DataFrame:
    """Return at how many layers the mean difference is in favour, with two p-values of the sign test.

    ``p_layers`` takes layers for independent, which they are not, for comparison with work that does. ``p_seeds``
    counts in how many ``cells`` (a layer of a seed) the difference is in favour, and asks how often coins that turn a
    seed round at all its layers give a count as far from half: what layers share counts once (2 ** (1 - n) at least).
    """
    rows = []
    for metric, contrast, seeds in rule.seed_differences(metrics, p, ["layer"]):
        ahead, n = int((seeds.mean(axis=1) > 0).sum()), len(seeds)
        off = np.abs(rule.sign_flips(np.sign(seeds)).mean(axis=1))  # the first pattern is what was observed
        rows.append({"metric": metric, "contrast": contrast, "layers_ahead": ahead, "layers": n,
                     "p_layers": float(stats.binomtest(ahead, n).pvalue),
                     "cells_ahead": int((seeds > 0).to_numpy().sum()), "cells": seeds.size,
                     "p_seeds": float((off >= off[0] - 1e-12).mean())})  # fmt: skip
    return pd.DataFrame(rows)


def gamma_title(table: pd.DataFrame) -> str:
    """Return Spearman's rank correlation of the advantage in explained variance with ``gamma``, and its p."""
    rows = table[(table["metric"] == TITLED) & (table["contrast"] == f"{MINED} - {RIVALS[0]}")]
    n = len(rows)
    if n < MIN_LAYERS_FOR_CORRELATION:
        return f"{n} layers are too few to say whether the advantage follows anisotropy"
    gamma, gain = (stats.zscore(stats.rankdata(rows[name])) for name in ("gamma", "difference"))
    rho = float(gamma @ gain) / n
    shuffled = np.random.default_rng(0).permuted(np.tile(gain, (SHUFFLES, 1)), axis=1) @ gamma / n
    p = (1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + SHUFFLES)
    found = f"rank correlation {rho:.2f} with gamma (p {p:.2f} under shuffled layers)"
    return f"Over {n} layers the advantage in explained variance over {RIVALS[0]} has {found}"


def verdicts(metrics: pd.DataFrame, p: Multilayer, where: str = ", mean over layers") -> list[dict[str, Any]]:
    """Judge each hypothesis on means over layers, and settings (not the best of many), one a seed; see `judge_arms`."""
    return rule.judge_arms(metrics.groupby(["arm", "seed", "metric"])["value"].mean().reset_index(), p, where)


def checks(metrics: dict[str, pd.DataFrame], n_layers: int, p: Multilayer) -> list[Check]:
    """Return 05's gate, over all hooks: all cells there, all finite, every SAE better than predicting the mean."""
    expected = len(metrics) * n_layers * len([*p.arms, *p.variants]) * p.n_seeds
    found = pd.concat([table.assign(hook=hook) for hook, table in metrics.items()])
    cells = len(found.drop_duplicates(["hook", "layer", "arm", "seed"]))
    return [Check("cells finished", cells, f"= {expected}", cells == expected), *sound(found)]


def headline(table: pd.DataFrame, per_layer: pd.DataFrame, run: Run) -> str:
    where = f"{per_layer['layer'].nunique()} layers of {run.p.model} ({run.p.hook}, {run.p.n_seeds} seeds)"
    return f"In the mean over {where} {rule.verdict_title(table)}. {difference_title(per_layer)}."


# ---------------------------------------------------------------- what a finished sweep says


def sensitivity(tables: SweepTables) -> pd.DataFrame:
    """Return axis, x, arm, seed, metric, value: each arm along each swept hyper-parameter, the others averaged over."""
    metrics, parts = in_order(tables.metrics, "metric", list(MEASURES)), []
    columns = ["axis", "x", "arm", "seed", "metric", "value"]
    for axis in tables.swept:
        # None is a value too: subset_size None is the square root of the width
        x = metrics[axis].astype("object").where(metrics[axis].notna(), "none")
        means = metrics.assign(axis=axis, x=x).groupby(columns[:-1], sort=False)["value"].mean()
        parts.append(means.reset_index())
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def sensitivity_title(table: pd.DataFrame) -> str:
    means = rule.means(table, TITLED, ["axis", "x", "arm"]).unstack()
    spans = (means[MINED] - means[UNMINED]).groupby("axis").agg(["min", "max"])
    axis = (spans["max"] - spans["min"]).idxmax()
    low, high = (f"{end:+.3f}" for end in spans.loc[axis, ["min", "max"]])
    return f"The advantage over {UNMINED} in explained variance varies most along {axis}: from {low} to {high}"


def best_of_sweep(tables: SweepTables, p: Multilayer) -> pd.DataFrame:
    """Return each contrast's best of all settings, layers and hooks beside what the best of as many gives by chance."""
    rows = []
    for metric, contrast, differences in rule.seed_differences(tables.metrics, p, list(WHERE)):
        best = rule.best_of(differences)
        named = dict(zip(WHERE, best.pop("best"), strict=True))
        mean = {"best_of": len(differences), "mean": float(differences.to_numpy().mean())}
        rows.append({"metric": f"best {metric}", "contrast": contrast} | mean | named | best)
    return pd.DataFrame(rows)


def published_sweep() -> pd.DataFrame:
    """Return the first implementation's sweep of 54 settings, one seed each: the share of dead latents saved.

    Its headline was the best setting. Under the null a coin decides which of a setting's two counts is the mined one.
    """
    table = pd.read_csv(PUBLISHED, comment="#", encoding="utf-8")
    saved = 1 - table["dead_mined"] / table["dead_random"]
    swapped = 1 - table["dead_random"] / table["dead_mined"]
    coins = np.random.default_rng(0).random((10_000, len(table))) < 0.5
    best = np.where(coins, saved, swapped).max(axis=1)
    mean = paired_interval(saved)
    drawn: dict[str, Any] = {"random_state": 0}  # under its newer name, rng, scipy draws other patterns
    flips = permutation_test((saved.to_numpy(),), np.mean, permutation_type="samples", n_resamples=2**16, **drawn)
    return pd.DataFrame([{
        "settings": len(table), "ahead": int((saved > 0).sum()), "mean": mean.difference, "low": mean.low,
        "high": mean.high, "p_sign_flip": flips.pvalue, "best": saved.max(), "worst": saved.min(),
        "best_chance_mean": best.mean(), "best_chance_upper": np.quantile(best, 0.95),
        "coins_that_do_as_well": (best >= saved.max()).mean(),
    }])  # fmt: skip
