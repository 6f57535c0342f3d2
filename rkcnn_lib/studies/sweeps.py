"""Sweeps: the file that asks for one, checked before compute, and the run, which loses nothing and writes its tables.

A sweep file is YAML with two entries:

    parameters: {model: atlas, steps: 300}    # as in a parameter file of 05; the rest are 05's defaults
    axes: {layers: [0, -1], seeds: [0, 1, 2, 3, 4], k: [8, 16], score: [neighbours, kurtosis]}

A *setting* is one choice of the hyper-parameters. Every setting is run at all layers, hooks and seeds with all arms.

Finished work lies in ``outputs/units``, shared with all notebooks and sweeps. The sweep's own folder holds what can be
made again from it: ``sweep.json`` (the file, provenance, counts); ``metrics.parquet``, one row a cell and metric
(setting, swept values, steps, layer, hook, arm, seed, metric, value); ``times.parquet``, the seconds of mining and
training, which differ from one run to the next; ``failures.parquet``, error and traceback of each cell that failed.
"""

import difflib
import itertools
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from rkcnn_lib.files import DamagedFile, outputs_root, read_json, write_json, write_whole
from rkcnn_lib.runs.fields import Checked
from rkcnn_lib.runs.grid import Failure, Workers, connect, process_count, try_cells
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, checked, defaults, read_parameter_file, resolve
from rkcnn_lib.runs.run import provenance
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import VERSIONS, unit_scalars
from rkcnn_lib.strings import cut
from rkcnn_lib.studies import comparison, plan
from rkcnn_lib.studies.activations import opened_layers
from rkcnn_lib.worlds import pick_device

NOTEBOOK = "05_multilayer"
HYPER = (
    "architecture", "expansion", "k", "l1", "aux_k", "encoder", "n_subsets", "subset_size", "score",
    "subsets", "rule", "n_stages", "n_neighbours", "n_shifts", "mining_rows", "lr", "steps", "batch_size",
)  # fmt: skip
AXES = ("layers", "hooks", "seeds", *HYPER)  # a setting is run at all of the first three
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
    parameters: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: what varies, where every setting is run, and the settings to try."""

    file: SweepFile
    swept: tuple[str, ...]  # hyper-parameters that vary, in the order of the file
    layers: list[int] | None  # blocks, as named in the file (-1 is the last); None: all
    hooks: list[str]
    seeds: list[int]
    settings: list[Multilayer]  # 05's parameters with each choice of the swept ones

    @property
    def p(self) -> Multilayer:
        """What all settings share (the first setting's parameters)."""
        return self.settings[0]

    def values(self, setting: Multilayer) -> dict[str, Any]:
        """Return a setting's choice, as 05 reads it (of ``lr: 1`` 1.0): a table has one type a column."""
        return {name: getattr(setting, name) for name in self.swept}

    def check(self) -> None:
        """Hold every setting at every hook against the model and the memory, see `rkcnn_lib.runs.limits.check`."""
        for setting, hook in itertools.product(self.settings, self.hooks):
            check(setting.model_copy(update={"hook": hook}))


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
    settings = [
        resolve(NOTEBOOK, shared | {"hook": hooks[0]} | dict(zip(swept, values, strict=True)))
        for values in itertools.product(*(axes[name] for name in swept))
    ]
    for name in swept:  # 8 and '8' are the same
        _check_distinct(name, axes[name], {getattr(setting, name) for setting in settings})
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


# ---------------------------------------------------------------- running one


def sweep(path: Path, out: Path, resume: bool = False, cluster: str | None = None, yes: bool = False) -> int:
    """Run a sweep file; return 0 if every cell finished, 1 if some failed, 2 if it was not started.

    ``resume``: go on in a folder that holds this very sweep; what is finished is read, what failed is tried again.
    ``cluster``: address of a Ray cluster, see :func:`rkcnn_lib.runs.grid.connect`. ``yes``: do not ask before a long
    sweep. ParameterError for a sweep file or folder that cannot work; ClusterUnusable.
    """
    planned = read_sweep(path)
    planned.check()  # a layer that the model lacks, a text that is not there
    out = out.expanduser().resolve()
    asked = planned.p.device  # on a cluster it may be one that this machine lacks
    device = asked if cluster and asked else str(pick_device(asked))
    _check_folder(out, planned, resume)
    here = Workers(process_count(planned.p.n_jobs, device))
    workers = connect(cluster, device, [out, outputs_root()]) if cluster else here
    if not _agreed(planned, device, workers, yes):
        return 2
    write_json(out / "sweep.json", {"file": planned.file.model_dump(), "status": "running"})
    stores = _open_stores(planned, device, workers)
    columns, work = [], []
    for (number, setting), ((layer, hook), store) in itertools.product(enumerate(planned.settings), stores.items()):
        p = setting.model_copy(update={"hook": hook})
        about = {"setting": number} | planned.values(p) | {"steps": p.steps, "layer": layer, "hook": hook}
        for seed, arm in itertools.product(planned.seeds, (*p.arms, *p.variants)):
            columns.append(about | {"arm": arm, "seed": seed})
            work.append((str(outputs_root()), store, p, arm, seed, device))
    return _finish(columns, try_cells(_cell, work, workers, "SAEs"), planned, out)


def _check_folder(out: Path, planned: Sweep, resume: bool) -> None:
    """Refuse a folder that holds something else, or this very sweep if it is not meant to go on."""
    file = out / "sweep.json"
    if not file.is_file():
        if out.exists() and any(not path.name.startswith(".sweep.json.part-") for path in out.iterdir()):
            raise ParameterError(f"{out} is not empty and holds no sweep: give another --out")
        return
    try:
        held = read_json(file).get("file")
    except DamagedFile as error:
        if not resume:
            raise ParameterError(f"{error}: add --resume to write it anew, or give another --out") from None
        print(f"rkcnn: {error}: written anew", file=sys.stderr)
        return
    if held != json.loads(json.dumps(planned.file.model_dump())):
        raise ParameterError(f"{out} holds another sweep: give another --out")
    if not resume:
        raise ParameterError(f"{out} holds this sweep: add --resume to go on, or give another --out")


def _agreed(planned: Sweep, device: str, workers: Any, yes: bool) -> bool:
    """Print what the sweep will cost, by this machine's speed, and ask where it is long."""
    local = isinstance(workers, Workers)
    measured, n_jobs = (device, workers.n_jobs) if local else (str(pick_device(None)), workers.slots())
    rate, grids = plan.matmul_rate(measured), [p.model_copy(update={"n_jobs": n_jobs}) for p in planned.settings]
    cost = plan.estimate_grids(planned.p, planned.hooks, planned.layers, grids, measured, rate)
    places = f"{len(planned.hooks)} hook(s), {len(planned.seeds)} seed(s), {len(planned.p.arms)} arms"
    print(f"{len(planned.settings)} setting(s) of {', '.join(planned.swept) or 'nothing swept'}; {places}; "
          f"{n_jobs} at once")  # fmt: skip
    return plan.agreed({"sweep": cost}, measured, rate, yes)


def _open_stores(planned: Sweep, device: str, workers: Any) -> dict[tuple[int, str], Any]:
    """Open (or capture in one pass of the model) the activations of every layer and hook."""
    if isinstance(workers, Workers):
        return opened_layers(planned.p, planned.layers, planned.hooks, device)
    # a worker may have the GPU that this machine lacks
    (left,) = try_cells(_capture, [(str(outputs_root()), planned, device)], workers, "capture")
    if isinstance(left, Failure):
        raise RuntimeError(f"capture failed: {left.error}")
    return opened_layers(planned.p, planned.layers, planned.hooks, "cpu")  # nothing is left to capture


def _capture(root: str, planned: Sweep, device: str) -> None:
    os.environ["RKCNN_OUTPUTS"] = root  # a worker elsewhere has an environment of its own
    opened_layers(planned.p, planned.layers, planned.hooks, device)


def _cell(root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str) -> tuple[dict, str, dict]:
    """Return the numbers of a cell's SAE, its unit, and what the arm supplied."""
    os.environ["RKCNN_OUTPUTS"] = root  # as above
    folder, supply = comparison.cell(store, p, arm, seed, device)
    return unit_scalars(folder), str(folder.relative_to(root)), supply


def _finish(columns: list[dict[str, Any]], ended: list[Any], planned: Sweep, out: Path) -> int:
    """Write the tables and say what came of the sweep: of each cell its ``columns``, and a Failure or `_cell`'s."""
    tables = _tables(columns, ended)
    failed, units = len(tables["failures"]), {one[1] for one in ended if not isinstance(one, Failure)}
    finished = f"{len(ended) - failed} of {len(ended)} cells"
    record = {
        "file": planned.file.model_dump(), "status": "failures" if failed else "finished",
        "counts": {"cells": len(ended), "failed": failed, "units": len(units)}, "swept": planned.swept,
        "settings": [{"setting": number} | planned.values(p) for number, p in enumerate(planned.settings)],
        "parameters": planned.p.model_dump(), "versions": VERSIONS, "provenance": provenance("cpu"),
    }  # fmt: skip
    try:
        for name, table in tables.items():
            write_whole(out / f"{name}.parquet", table.to_parquet)
        write_json(out / "sweep.json", record)
    except OSError as error:
        problem = f"{out} cannot be written: {error}. {finished} are finished and kept: go on with --resume"
        raise RuntimeError(problem) from None
    print(f"rkcnn: {finished} finished ({len(units)} distinct SAEs), {failed} failed; tables in {out}")
    if failed:
        first = tables["failures"].iloc[0]
        print(f"rkcnn: the first failure: {first['error']}\nrkcnn: see failures.parquet; --resume tries them again")
    return int(failed > 0)


def _tables(columns: list[dict[str, Any]], ended: list[Any]) -> dict[str, pd.DataFrame]:
    """The three tables; a column holds one kind of value: parquet needs it, and 28 must not become 28.0."""
    metrics, times, failures = [], [], []
    for cell, one in zip((tuple(row.values()) for row in columns), ended, strict=True):
        if isinstance(one, Failure):
            failures.append((*cell, one.error, one.traceback))
        else:
            scalars, _, supply = one
            times.append((*cell, supply.get("seconds"), scalars.pop("seconds")))
            metrics += [(*cell, name, float(value)) for name, value in scalars.items()]

    def table(rows: list[tuple], *added: str) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=[*columns[0], *added]).convert_dtypes()

    return {
        "metrics": table(metrics, "metric", "value").astype({"value": "float64"}),
        "times": table(times, "mining_seconds", "training_seconds"),
        "failures": table(failures, "error", "traceback"),
    }
