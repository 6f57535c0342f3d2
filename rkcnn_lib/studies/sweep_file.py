"""Sweep files: axes as lists, checked before compute, and the grid of settings that they span.

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

from pydantic import Field

from rkcnn_lib.runs.fields import Checked
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, checked, defaults, read_parameter_file, resolve
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.yaml_values import cut

NOTEBOOK = "05_multilayer"
EVERYWHERE = ("layers", "hooks", "seeds")  # a setting is run at all of these
HYPER = (
    "architecture", "expansion", "k", "l1", "aux_k", "fraction_mined", "n_subsets", "subset_size", "n_directions",
    "score", "subsets", "mining_rows", "lr", "steps", "batch_size",
)  # fmt: skip
AXES = EVERYWHERE + HYPER
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

    Raises
    ------
    ParameterError
        For an unknown entry or axis, an axis that is empty or names a value twice, or a setting that 05 refuses:
        nothing has been computed by then.
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
        for value in axes.get(name, []):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                expected = "expected whole numbers" + " from 0" * (name == "seeds")
                raise ParameterError(f"axes: {name} = {cut(repr(axes[name]))}: {expected}")
