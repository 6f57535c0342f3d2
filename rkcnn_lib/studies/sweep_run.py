"""``rkcnn sweep``: run a sweep's settings everywhere, lose nothing, and write its tables.

Finished work lies in ``outputs/units`` (one folder an SAE, written whole or not at all, shared with all notebooks and
sweeps). The sweep's own folder holds what can be made again from it: ``sweep.json`` (the file, provenance, counts) and
the tables

``metrics.parquet``
    One row a cell and metric: setting, the swept values, steps, layer, hook, arm, seed, metric, value.
``times.parquet``
    The same with the seconds that mining and training took: what differs from one run to the next.
``failures.parquet``
    The same with error and traceback of each cell that failed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rkcnn_lib.files import DamagedFile, outputs_root, read_json, write_json, write_whole
from rkcnn_lib.runs.grid import Failure, Workers, process_count, try_cells
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.run import provenance
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import VERSIONS, unit_scalars
from rkcnn_lib.studies import comparison
from rkcnn_lib.studies.activations import invented_store
from rkcnn_lib.studies.sweeps import Setting, Sweep, read_sweep
from rkcnn_lib.worlds import capture_layers, model_facts
from rkcnn_lib.worlds.models.bridge import pick_device
from rkcnn_lib.worlds.toy.planted import INVENTED_MODELS

CELL = ("layer", "hook", "arm", "seed")


@dataclass(frozen=True)
class Cell:
    """One arm of one setting at one layer, hook and seed."""

    setting: Setting
    layer: int
    hook: str
    seed: int
    arm: str

    @property
    def p(self) -> Multilayer:
        """05's parameters for this cell."""
        return self.setting.p.model_copy(update={"hook": self.hook})

    @property
    def columns(self) -> dict[str, Any]:
        """The cell's columns in the tables."""
        named = {"setting": self.setting.number} | self.setting.values | {"steps": self.setting.p.steps}
        return named | {name: getattr(self, name) for name in CELL}


@dataclass(frozen=True)
class Ended:
    """A cell and what came of it: the SAE's numbers and folder, or why it failed."""

    cell: Cell
    scalars: dict[str, Any]
    unit: str | None = None
    supply: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None


def sweep(path: Path, out: Path, resume: bool = False, cluster: str | None = None, yes: bool = False) -> int:
    """Run a sweep file; return 0 if every cell finished, 1 if some failed, 2 if it was not started.

    Parameters
    ----------
    path, out : Path
        The sweep file and the folder for its tables.
    resume : bool
        Go on in a folder that holds this very sweep: what is finished is read, what failed is tried again.
    cluster : str, optional
        Address of a Ray cluster, see :func:`rkcnn_lib.runs.cluster.connect`.
    yes : bool
        Do not ask before a long sweep.

    Raises
    ------
    ParameterError
        For a sweep file or folder that cannot work.
    ClusterUnusable
        See :func:`rkcnn_lib.runs.cluster.connect`.
    """
    planned = read_sweep(path)
    planned.check()  # a layer that the model lacks, a text that is not there
    out = out.expanduser().resolve()
    device = _device(planned.p, cluster)
    _check_folder(out, planned, resume)
    workers = _workers(planned.p, device, cluster, out)
    if not _agreed(planned, device, workers, yes):
        return 2
    write_json(out / "sweep.json", {"file": planned.file.model_dump(), "status": "running"})
    stores = _open_stores(planned, device, workers)
    cells = [
        Cell(setting, layer, hook, seed, arm)
        for setting in planned.settings
        for layer, hook in stores
        for seed in planned.seeds
        for arm in (*planned.p.arms, *planned.p.variants)
    ]
    return finish(_run(cells, stores, device, workers), planned, out)


def _device(p: Multilayer, cluster: str | None) -> str:
    """Return the device of the cells: on a cluster it may be one that this machine lacks."""
    return p.device if cluster and p.device else str(pick_device(p.device))


def _workers(p: Multilayer, device: str, cluster: str | None, out: Path) -> Any:
    if cluster is None:
        return Workers(process_count(p.n_jobs, device))
    from rkcnn_lib.runs.cluster import connect

    return connect(cluster, device, [out, outputs_root().resolve()])


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
    from rkcnn_lib.studies import plan

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
    p = planned.p
    if p.model in INVENTED_MODELS:
        return {(0, hook): invented_store(p.model, p.n_tokens) for hook in planned.hooks}
    n_layers = model_facts(p.model, p.revision).n_layers
    layers = sorted({layer % n_layers for layer in (range(n_layers) if planned.layers is None else planned.layers)})
    capture = functools.partial(
        capture_layers, p.model, layers, planned.hooks, p.n_tokens, text=p.text,
        root=outputs_root().resolve() / "cache", context_size=p.context_size, revision=p.revision,
    )  # fmt: skip
    if not isinstance(workers, Workers):  # a worker may have the GPU that this machine lacks
        (left,) = try_cells(_capture, [(capture, device)], workers, "capture")
        if isinstance(left, Failure):
            raise RuntimeError(f"capture failed: {left.error}")
        device = "cpu"  # nothing is left to capture
    stores = capture(device=device)
    return {(layer, hook): stores[layer, hook] for layer in layers for hook in planned.hooks}


def _capture(capture: Any, device: str) -> int:
    return len(capture(device=device))


def _run(cells: list[Cell], stores: dict[Any, Any], device: str, workers: Any) -> list[Ended]:
    root = str(outputs_root())
    work = [(root, stores[cell.layer, cell.hook], cell.p, cell.arm, cell.seed, device) for cell in cells]
    done = try_cells(_cell, work, workers, "SAEs")
    return [
        Ended(cell, {}, failure={"error": result.error, "traceback": result.traceback})
        if isinstance(result, Failure) else Ended(cell, *result)
        for cell, result in zip(cells, done, strict=True)
    ]  # fmt: skip


def _cell(
    root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    os.environ["RKCNN_OUTPUTS"] = root  # a worker elsewhere has an environment of its own
    folder, supply = comparison.cell(store, p, arm, seed, device)
    return unit_scalars(folder), str(folder.relative_to(root)), supply


def finish(ended: list[Ended], planned: Sweep, out: Path) -> int:
    """Write the tables and say what came of the sweep."""
    tables = _tables(ended)
    failed, units = len(tables["failures"]), {e.unit for e in ended if e.unit}
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
        raise RuntimeError(
            f"{out} cannot be written: {error}. {len(ended) - failed} of {len(ended)} cells are finished and kept: "
            "go on with --resume"
        ) from None
    print(f"rkcnn: {len(ended) - failed} of {len(ended)} cells finished ({len(units)} distinct SAEs), {failed} failed; "
          f"tables in {out}")  # fmt: skip
    if failed:
        first = tables["failures"].iloc[0]
        print(f"rkcnn: the first failure: {first['error']}\nrkcnn: see failures.parquet; --resume tries them again")
    return int(failed > 0)


def _tables(ended: list[Ended]) -> dict[str, pd.DataFrame]:
    """The three tables; a column holds one kind of value: parquet needs it, and 28 must not become 28.0."""
    seconds = ("mining_seconds", "training_seconds")
    rows: dict[str, list[dict[str, Any]]] = {
        "metrics": [
            e.cell.columns | {"metric": name, "value": float(value)}
            for e in ended for name, value in e.scalars.items() if name != "seconds"
        ],
        "times": [
            e.cell.columns | dict(zip(seconds, ((e.supply or {}).get("seconds"), e.scalars["seconds"]), strict=True))
            for e in ended if e.scalars
        ],
        "failures": [e.cell.columns | e.failure for e in ended if e.failure],
    }  # fmt: skip
    more = {"metrics": ("metric", "value"), "times": seconds, "failures": ("error", "traceback")}
    columns = list(ended[0].cell.columns) if ended else []
    tables = {name: pd.DataFrame(rows[name], columns=[*columns, *more[name]]).convert_dtypes() for name in rows}
    tables["metrics"] = tables["metrics"].astype({"value": "float64"})
    return tables
