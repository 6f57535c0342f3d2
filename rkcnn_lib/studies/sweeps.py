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

from rkcnn_lib.measure.statistics import paired_interval, sign_flip_p
from rkcnn_lib.runs.fields import Checked
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, checked, defaults, read_parameter_file, resolve
from rkcnn_lib.runs.published import SweepTables
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.strings import cut
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
    "layer": "did you mean 'layers'?",
    "seed": "did you mean 'seeds'?",
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
        for setting in self.settings:
            for hook in self.hooks:
                check(setting.p.model_copy(update={"hook": hook}))


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises ParameterError for an unknown entry or axis, an axis that is empty or names a value twice, or a setting that
    05 refuses: nothing has been computed by then.
    """
    file = checked(SweepFile, read_parameter_file(path), path.name)
    if file.parameters.get("more_hooks"):
        raise ParameterError("more_hooks: in a sweep every hook is compared alike; name them all in the axis 'hooks'")
    shared = defaults(NOTEBOOK) | file.parameters
    axes = {name: _checked_axis(name, values, file.parameters) for name, values in file.axes.items()}
    _check_everywhere(axes)
    swept = tuple(name for name in axes if name in HYPER)
    hooks = axes.get("hooks", [shared["hook"]])
    shared |= {"layers": axes.get("layers", shared["layers"])}
    shared |= {"n_seeds": len(axes["seeds"])} if "seeds" in axes else {}
    for hook in hooks:
        first = resolve(NOTEBOOK, shared | {"hook": hook} | {name: axes[name][0] for name in swept})
    axes.setdefault("seeds", list(range(first.n_seeds)))
    total = math.prod(len(axes[name]) for name in swept)
    if total > MOST_SETTINGS:
        raise ParameterError(f"axes: they give {total:,} settings; at most {MOST_SETTINGS:,}")
    chosen = [dict(zip(swept, values, strict=True)) for values in itertools.product(*(axes[name] for name in swept))]
    settings = [_setting(i, values, shared | {"hook": hooks[0]}) for i, values in enumerate(chosen)]
    _check_distinct(swept, chosen, settings)
    return Sweep(file, swept, settings[0].p.layers, hooks, axes["seeds"], settings)


def _setting(number: int, values: dict[str, Any], shared: dict[str, Any]) -> Setting:
    """Return one setting; its values are those that 05 reads (of ``lr: 1`` 1.0), so a table has one type a column."""
    p = resolve(NOTEBOOK, shared | values)
    return Setting(number, {name: getattr(p, name) for name in values}, p)


def _check_distinct(swept: tuple[str, ...], chosen: list[dict[str, Any]], settings: list[Setting]) -> None:
    """Refuse an axis that writes one value in two ways, such as 8 and '8'."""
    for name in swept:
        ways: dict[Any, set[str]] = {}
        for values, setting in zip(chosen, settings, strict=True):
            ways.setdefault(setting.values[name], set()).add(repr(values[name]))
        for value, written in ways.items():
            if len(written) > 1:
                raise ParameterError(f"axes: {name}: {' and '.join(sorted(written))} are the one value {value!r}")


def _checked_axis(name: str, values: list[Any], shared: dict[str, Any]) -> list[Any]:
    if name not in AXES:
        near = difflib.get_close_matches(name, AXES, n=1, cutoff=0.6)
        known = f"axes are {', '.join(AXES)}"
        if name in Multilayer.model_fields and name not in HINTS:
            raise ParameterError(f"axes: {name} is no axis but the same for all settings (parameters: {name}); {known}")
        hint = HINTS.get(name) or (f"did you mean {near[0]!r}?" if near else known)
        raise ParameterError(f"axes: there is no axis {cut(repr(name))}; {hint}")
    if not values:
        raise ParameterError(f"axes: {name} is empty: give at least one value, or leave the axis out")
    if len({repr(value) for value in values}) < len(values):
        raise ParameterError(f"axes: {name} = {cut(repr(values))}: name each value once")
    if ONE_OF.get(name, name) in shared:
        raise ParameterError(f"{name} is given twice, under parameters and under axes: keep one")
    return values


def _check_everywhere(axes: dict[str, list[Any]]) -> None:
    for name, least in (("seeds", 0), ("layers", -(2**31))):
        if not all(type(value) is int and least <= value < 2**31 for value in axes.get(name, [])):
            expected = "expected whole numbers" + " from 0" * (name == "seeds")
            raise ParameterError(f"axes: {name} = {cut(repr(axes[name]))}: {expected}")


# ------------------------------------------------------------ what a finished sweep says


def sensitivity(tables: SweepTables) -> pd.DataFrame:
    """Return axis, x, arm, seed, metric, value: each arm along each swept hyper-parameter, the others averaged over."""
    metrics, parts = tables.metrics, []
    for axis in tables.swept:
        # None is a value too: subset_size None is the square root of the width
        x = metrics[axis].astype("object").where(metrics[axis].notna(), "none")
        for metric in MEASURES:
            rows = metrics[metrics["metric"] == metric].assign(x=x)
            means = rows.groupby(["x", "arm", "seed"], sort=False)["value"].mean().reset_index()
            parts.append(means.assign(axis=axis, metric=metric))
    columns = ["axis", "x", "arm", "seed", "metric", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


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
    """Judge each hypothesis on values averaged over all settings, layers and hooks, one a seed.

    A sweep is not searched for a setting in which the hypothesis holds: that would be the best of many.
    """
    over_all = tables.metrics.groupby(["arm", "seed", "metric"])["value"].mean().reset_index()
    return judge_arms(over_all, p, f", mean over {tables.n_settings} settings")


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
