"""``rkcnn sweep``: run a sweep's settings everywhere, lose nothing, and write its tables.

Finished work lies in ``outputs/units`` (one folder an SAE, written whole or not at all, shared with all notebooks and
sweeps). The sweep's own folder holds what can be made again from it: ``sweep.json`` (the file, provenance, counts) and
the tables

``metrics.parquet``
    One row a cell and metric: setting, the swept values, steps, layer, hook, arm, seed, metric, value.
``times.parquet``
    The same with the seconds that mining and training took: what differs from one run to the next.
``failures.parquet``
    The same with stage, error and traceback of each cell that failed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from rkcnn_lib.files import DamagedFile, outputs_root, read_json, write_json
from rkcnn_lib.runs.grid import Failure, Workers, process_count, try_cells
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.studies.activations import invented_store
from rkcnn_lib.studies.cells import UNMINED, matched_unit, mined_unit
from rkcnn_lib.studies.sweep_file import Sweep, read_sweep
from rkcnn_lib.studies.sweep_result import Cell, Ended, finish
from rkcnn_lib.worlds import capture_layers, model_facts, pick_device
from rkcnn_lib.worlds.toy.planted import INVENTED_MODELS


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
    """Mine for all cells, then train all whose arms were all mined."""
    root = str(outputs_root())

    def run(stage: str, function: Any, todo: dict[Cell, tuple]) -> dict[Cell, Any]:
        work = [
            (root, stores[cell.layer, cell.hook], cell.p, cell.arm, cell.seed, device, *more)
            for cell, more in todo.items()
        ]
        return dict(zip(todo, try_cells(function, work, workers, stage), strict=True))

    to_mine = [cell for cell in cells if cell.arm in cell.setting.p.arms and cell.arm != UNMINED]
    mined = run("mining", _mine_cell, dict.fromkeys(to_mine, ()))
    supplies: dict[tuple[Any, ...], list[int]] = {}
    lost: dict[tuple[Any, ...], str] = {}
    for cell, result in mined.items():
        if isinstance(result, Failure):
            lost.setdefault(cell.group, cell.arm)
        else:
            supplies.setdefault(cell.group, []).append(result["supply"])
    trained = run("SAEs", _sae_cell, {c: (min(supplies.get(c.group, [0])),) for c in cells if c.group not in lost})
    return [_ended(cell, mined.get(cell), trained.get(cell), lost.get(cell.group)) for cell in cells]


def _ended(cell: Cell, mined: Any, trained: Any, lost: str | None) -> Ended:
    supply = mined if isinstance(mined, dict) else None
    if lost is not None and not isinstance(mined, Failure):
        mined = Failure(f"not trained: mining of {lost} failed for this seed")
    stage, result = ("SAEs", trained) if lost is None else ("mining", mined)
    if isinstance(result, Failure):
        failure = {"stage": stage, "error": result.error, "traceback": result.traceback}
        return Ended(cell, {}, supply=supply, failure=failure)
    return Ended(cell, trained["scalars"], trained["unit"], supply)


def _mine_cell(root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str) -> dict[str, Any]:
    os.environ["RKCNN_OUTPUTS"] = root  # a worker elsewhere has an environment of its own
    return mined_unit(store, p, arm, seed, device).scalars


def _sae_cell(root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str, n_mined: int) -> dict[str, Any]:
    os.environ["RKCNN_OUTPUTS"] = root
    unit = matched_unit(store, p, arm, seed, n_mined, device)
    return {"unit": str(unit.folder.relative_to(root)), "scalars": unit.scalars}
