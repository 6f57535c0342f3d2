"""What a sweep says: how the arms depend on each hyper-parameter, the best of N beside its null, the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.measure.statistics import paired_interval, sign_flip_p
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.sweep_tables import SweepTables
from rkcnn_lib.studies.cells import MINED
from rkcnn_lib.studies.comparison import BASELINES
from rkcnn_lib.studies.sae_panels import HYPOTHESES, by_arm
from rkcnn_lib.studies.verdicts import best_of, judge, seed_differences

PUBLISHED = Path(__file__).resolve().parent / "published_sweep.csv"
WHERE = ("setting", "steps", "layer", "hook")


def sensitivity(tables: SweepTables) -> pd.DataFrame:
    """Return axis, x, arm, seed, metric, value: each arm along each swept hyper-parameter, the others averaged over."""
    metrics, parts = tables.metrics, []
    for axis in tables.swept:
        # None is a value too: subset_size None is the square root of the width
        x = metrics[axis].astype("object").where(metrics[axis].notna(), "none")
        for metric in HYPOTHESES:
            rows = metrics[metrics["metric"] == metric].assign(x=x)
            means = rows.groupby(["x", "arm", "seed"], sort=False)["value"].mean().reset_index()
            parts.append(means.assign(axis=axis, metric=metric))
    columns = ["axis", "x", "arm", "seed", "metric", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def sensitivity_title(table: pd.DataFrame) -> str:
    """Return the finding: along which axis the advantage in explained variance over random varies most."""
    ev = table[table["metric"] == "explained_variance"]
    means = ev.groupby(["axis", "x", "arm"])["value"].mean().unstack()
    spans = (means[MINED] - means[BASELINES[0]]).groupby("axis").agg(["min", "max"])
    axis = (spans["max"] - spans["min"]).idxmax()
    low, high = spans.loc[axis, ["min", "max"]]
    return (
        f"The advantage over {BASELINES[0]} in explained variance varies most along {axis}: "
        f"from {low:+.3f} to {high:+.3f}"
    )


def best_of_sweep(tables: SweepTables) -> pd.DataFrame:
    """Return each contrast's best of all settings, layers and hooks beside what the best of as many gives by chance."""
    metrics, rows = tables.metrics, []
    for metric, (_, _, lower) in HYPOTHESES.items():
        for baseline in BASELINES:
            found = seed_differences(metrics, metric, MINED, baseline, lower, list(WHERE))
            if len(found):
                best = best_of(found)
                named = dict(zip(WHERE, best.pop("best"), strict=True))
                rows.append({"metric": f"best {metric}", "contrast": f"{MINED} - {baseline}", "best_of": len(found)}
                            | named | {"mean": float(found.to_numpy().mean())} | best)  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(tables: SweepTables, p: Multilayer) -> list[dict[str, Any]]:
    """Judge each hypothesis on differences averaged over all settings, layers and hooks, one value a seed.

    A sweep is not searched for a setting in which the hypothesis holds: that would be the best of many.
    """
    over_all = tables.metrics.groupby(["arm", "seed", "metric"])["value"].mean().reset_index()
    found = []
    for metric, (hypothesis, margin, lower) in HYPOTHESES.items():
        values = by_arm(over_all, metric)
        if {MINED, BASELINES[0]} <= set(values):
            told = f"{hypothesis}, mean over {tables.n_settings} settings"
            delta = getattr(p, margin)
            found += judge(told, values, MINED, BASELINES, metric=metric, delta=delta, lower_is_better=lower)
    return found


def published_sweep() -> pd.DataFrame:
    """Return the first implementation's sweep of 54 settings, one seed each, told with its null.

    Its headline was the best setting's share of dead latents saved. Under the null a coin decides which of a
    setting's two counts is the mined one.
    """
    table = pd.read_csv(PUBLISHED, comment="#", encoding="utf-8")
    saved = 1 - table["dead_mined"] / table["dead_random"]
    swapped = 1 - table["dead_random"] / table["dead_mined"]
    coins = np.random.default_rng(0).random((10_000, len(table))) < 0.5
    best = np.where(coins, saved, swapped).max(axis=1)
    mean = paired_interval(saved)
    return pd.DataFrame([{
        "settings": len(table), "ahead": int((saved > 0).sum()), "mean": mean.difference, "low": mean.low,
        "high": mean.high, "p_sign_flip": sign_flip_p(saved), "best": saved.max(), "worst": saved.min(),
        "best_chance_mean": best.mean(), "best_chance_upper": np.quantile(best, 0.95),
        "coins_that_do_as_well": (best >= saved.max()).mean(),
    }])  # fmt: skip
