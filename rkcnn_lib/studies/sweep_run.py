"""``rkcnn sweep``: run a sweep's settings everywhere, lose nothing, and write its tables.

Finished work lies in ``outputs/units`` (one folder an SAE, written whole or not at all, shared with all notebooks and
sweeps). The sweep's own folder holds what can be made again from it: ``sweep.json`` (the file, provenance, counts);
``metrics.parquet``, one row a cell and metric (setting, the swept values, steps, layer, hook, arm, seed, metric,
value); ``times.parquet``, the seconds that mining and training took, which differ from one run to the next; and
``failures.parquet``, error and traceback of each cell that failed.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from rkcnn_lib.files import DamagedFile, outputs_root, read_json, write_json, write_whole
from rkcnn_lib.runs.grid import Failure, Workers, connect, process_count, try_cells
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.run import provenance
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import VERSIONS, unit_scalars
from rkcnn_lib.studies import comparison, plan
from rkcnn_lib.studies.activations import opened_layers
from rkcnn_lib.studies.sweeps import Sweep, read_sweep
from rkcnn_lib.worlds.models.bridge import pick_device


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
    if cluster is None:
        workers = Workers(process_count(planned.p.n_jobs, device))
    else:
        workers = connect(cluster, device, [out, outputs_root()])
    if not _agreed(planned, device, workers, yes):
        return 2
    write_json(out / "sweep.json", {"file": planned.file.model_dump(), "status": "running"})
    stores = _open_stores(planned, device, workers)
    columns, work = [], []
    for setting, ((layer, hook), store) in itertools.product(planned.settings, stores.items()):
        p = setting.p.model_copy(update={"hook": hook})
        about = {"setting": setting.number} | setting.values | {"steps": p.steps, "layer": layer, "hook": hook}
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
    rate = plan.matmul_rate(measured)
    cost = plan.estimate_sweep(planned, measured, rate, n_jobs)
    places = f"{len(planned.hooks)} hook(s), {len(planned.seeds)} seed(s), {len(planned.p.arms)} arms"
    print(f"{len(planned.settings)} setting(s) of {', '.join(planned.swept) or 'nothing swept'}; {places}; "
          f"{n_jobs} at once")  # fmt: skip
    return plan.agreed({"sweep": cost}, measured, rate, yes)


def _open_stores(planned: Sweep, device: str, workers: Any) -> dict[tuple[int, str], Any]:
    """Open (or capture in one pass of the model) the activations of every layer and hook."""
    if isinstance(workers, Workers):
        return opened_layers(planned.p, planned.hooks, device)
    # a worker may have the GPU that this machine lacks
    (left,) = try_cells(_capture, [(str(outputs_root()), planned, device)], workers, "capture")
    if isinstance(left, Failure):
        raise RuntimeError(f"capture failed: {left.error}")
    return opened_layers(planned.p, planned.hooks, "cpu")  # nothing is left to capture


def _capture(root: str, planned: Sweep, device: str) -> None:
    os.environ["RKCNN_OUTPUTS"] = root  # a worker elsewhere has an environment of its own
    opened_layers(planned.p, planned.hooks, device)


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
        "settings": [{"setting": s.number} | s.values for s in planned.settings],
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
