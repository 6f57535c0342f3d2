"""Sweeps: the file that asks for one, checked before compute, and what a finished one says.

A sweep file is YAML with two entries:

    parameters: {model: atlas, steps: 300}    # as in a parameter file of 05; the rest are 05's defaults
    axes: {layers: [0, -1], seeds: [0, 1, 2, 3, 4], k: [8, 16], score: [neighbours, kurtosis]}

A *setting* is one choice of the hyper-parameters. Every setting is run at all layers, hooks and seeds with all arms.
"""

from __future__ import annotations

import difflib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.stats import permutation_test

from rkcnn_lib.measure.statistics import paired_interval
from rkcnn_lib.runs.fields import Checked
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, checked, defaults, read_parameter_file, resolve
from rkcnn_lib.runs.published import SweepTables
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.strings import cut
from rkcnn_lib.studies.comparison import in_order
from rkcnn_lib.studies.verdicts import best_of, judge_arms, seed_differences
from rkcnn_lib.vocabulary import MEASURES, MINED, UNMINED

NOTEBOOK = "05_multilayer"
EVERYWHERE = ("layers", "hooks", "seeds")  # a setting is run at all of these
HYPER = (
    "architecture", "expansion", "k", "l1", "aux_k", "encoder", "n_subsets", "subset_size", "score",
    "subsets", "rule", "n_stages", "n_neighbours", "n_shifts", "mining_rows", "lr", "steps", "batch_size",
)  # fmt: skip
AXES = EVERYWHERE + HYPER
PUBLISHED = Path(__file__).resolve().parent / "published_sweep.csv"
WHERE = ("setting", "steps", "layer", "hook")
MOST_SETTINGS = 100_000
ONE_OF = {"hooks": "hook", "seeds": "n_seeds"}  # an axis whose parameter has another name
HINTS = {
    "lift": "the lift follows the score (neighbours, or an ascent of another contrast); to mine without a lift add "
    "rkcnn_coordinate to parameters: arms",
    "hook": "did you mean 'hooks'?",
    "n_seeds": "name the seeds: seeds: [0, 1, 2, 3, 4]",
    "lambda": "did you mean 'l1'?",
}


class SweepFile(Checked):
    """The entries of a sweep file."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any]] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Setting:
    """One choice of the swept hyper-parameters: its number, the choice and 05's parameters with it."""

    number: int
    values: dict[str, Any]
    p: Multilayer


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: what varies, where every setting is run, and the settings to try."""

    file: SweepFile
    swept: tuple[str, ...]  # hyper-parameters that vary, in the order of the file
    layers: list[int] | None  # blocks, as named in the file (-1 is the last); None: all
    hooks: list[str]
    seeds: list[int]
    settings: list[Setting]

    @property
    def p(self) -> Multilayer:
        """What all settings share (the first setting's parameters)."""
        return self.settings[0].p

    def check(self) -> None:
        """Hold every setting at every hook against the model and the memory, see `rkcnn_lib.runs.limits.check`."""
        for setting, hook in itertools.product(self.settings, self.hooks):
            check(setting.p.model_copy(update={"hook": hook}))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; ParameterError for an unknown entry or axis, or a setting that 05 refuses."""
    file = checked(SweepFile, read_parameter_file(path), path.name)
    if file.parameters.get("more_hooks"):
        raise ParameterError("more_hooks: in a sweep every hook is compared alike; name them all in the axis 'hooks'")
    shared, axes = defaults(NOTEBOOK) | file.parameters, file.axes
    for name, values in axes.items():
        _check_axis(name, values, file.parameters)
    swept = tuple(name for name in axes if name in HYPER)
    hooks = axes.get("hooks", [shared["hook"]])
    shared["layers"] = axes.get("layers", shared["layers"])
    if "seeds" in axes:
        shared["n_seeds"] = len(axes["seeds"])
    for hook in hooks:
        first = resolve(NOTEBOOK, shared | {"hook": hook} | {name: axes[name][0] for name in swept})
    total = math.prod(len(axes[name]) for name in swept)
    if total > MOST_SETTINGS:
        raise ParameterError(f"axes: they give {total:,} settings; at most {MOST_SETTINGS:,}")
    settings = []
    for number, values in enumerate(itertools.product(*(axes[name] for name in swept))):
        p = resolve(NOTEBOOK, shared | {"hook": hooks[0]} | dict(zip(swept, values, strict=True)))
        # as 05 reads them (of ``lr: 1`` 1.0): a table has one type a column
        settings.append(Setting(number, {name: getattr(p, name) for name in swept}, p))
    for name in swept:  # 8 and '8' are the same
        _check_distinct(name, axes[name], {setting.values[name] for setting in settings})
    return Sweep(file, swept, first.layers, hooks, axes.get("seeds", list(range(first.n_seeds))), settings)


def _check_axis(name: str, values: list[Any], shared: dict[str, Any]) -> None:
    if name not in AXES:
        near = difflib.get_close_matches(name, AXES, n=1, cutoff=0.6)
        known = f"axes are {', '.join(AXES)}"
        if name in Multilayer.model_fields and name not in HINTS:
            raise ParameterError(f"axes: {name} is no axis but the same for all settings (parameters: {name}); {known}")
        hint = HINTS.get(name) or (f"did you mean {near[0]!r}?" if near else known)
        raise ParameterError(f"axes: there is no axis {cut(repr(name))}; {hint}")
    if not values:
        raise ParameterError(f"axes: {name} is empty: give at least one value, or leave the axis out")
    _check_distinct(name, values, set(map(repr, values)))
    if ONE_OF.get(name, name) in shared:
        raise ParameterError(f"{name} is given twice, under parameters and under axes: keep one")
    least = {"seeds": 0, "layers": -(2**31)}.get(name)
    if least is not None and not all(type(value) is int and least <= value < 2**31 for value in values):
        raise ParameterError(f"axes: {name} = {cut(repr(values))}: expected whole numbers{' from 0' * (least == 0)}")


def _check_distinct(name: str, values: list[Any], distinct: set[Any]) -> None:
    if len(distinct) < len(values):
        raise ParameterError(f"axes: {name} = {cut(repr(values))}: name each value once")


# ------------------------------------------------------------ what a finished sweep says


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
    """Return the finding: along which axis the advantage in explained variance over random varies most."""
    ev = table[table["metric"] == "explained_variance"]
    means = ev.groupby(["axis", "x", "arm"])["value"].mean().unstack()
    spans = (means[MINED] - means[UNMINED]).groupby("axis").agg(["min", "max"])
    axis = (spans["max"] - spans["min"]).idxmax()
    low, high = spans.loc[axis, ["min", "max"]]
    return (
        f"The advantage over {UNMINED} in explained variance varies most along {axis}: from {low:+.3f} to {high:+.3f}"
    )


def best_of_sweep(tables: SweepTables, p: Multilayer) -> pd.DataFrame:
    """Return each contrast's best of all settings, layers and hooks beside what the best of as many gives by chance."""
    rows = []
    for metric, contrast, differences in seed_differences(tables.metrics, p, list(WHERE)):
        best = best_of(differences)
        named = dict(zip(WHERE, best.pop("best"), strict=True))
        mean = {"best_of": len(differences), "mean": float(differences.to_numpy().mean())}
        rows.append({"metric": f"best {metric}", "contrast": contrast} | mean | named | best)
    return pd.DataFrame(rows)


def verdicts(tables: SweepTables, p: Multilayer) -> list[dict[str, Any]]:
    """Judge each hypothesis on means over all settings (not the best of many), layers and hooks, one a seed."""
    over_all = tables.metrics.groupby(["arm", "seed", "metric"])["value"].mean().reset_index()
    return judge_arms(over_all, p, f", mean over {tables.n_settings} settings")


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
