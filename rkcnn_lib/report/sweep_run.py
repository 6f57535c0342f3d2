"""``rkcnn sweep``: run a sweep's settings everywhere, lose nothing, and write its tables.

Finished work lies in ``outputs/units`` (one folder an SAE, written whole or not at all, shared with all notebooks and
sweeps). The sweep's own folder holds what can be made again from it: ``sweep.json`` (the file, provenance, counts),
``records/`` (a small file for each cell, finished or failed) and the tables

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

import pandas as pd

from rkcnn_lib.files import DamagedFile, digest, outputs_root, read_json, write_json
from rkcnn_lib.report.limits import INVENTED_MODELS
from rkcnn_lib.report.params import ParameterError
from rkcnn_lib.report.schemas import Multilayer
from rkcnn_lib.report.studies.activations import invented_store
from rkcnn_lib.report.studies.cells import UNMINED, matched_unit, mined_unit
from rkcnn_lib.report.sweep import Records, Workers, process_count, run_recorded
from rkcnn_lib.report.sweep_file import Setting, Sweep, read_sweep
from rkcnn_lib.report.sweep_result import Cell, Ended, finish
from rkcnn_lib.report.units import VERSIONS, DamagedUnit, unit_scalars
from rkcnn_lib.worlds import capture_layers, model_facts
from rkcnn_lib.worlds.devices import pick_device


def sweep(
    path: Path, out: Path, resume: bool = False, cluster: str | None = None, shard: str | None = None, yes: bool = False
) -> int:
    """Run a sweep file; return 0 if every cell finished, 1 if some failed, 2 if it was not started.

    Parameters
    ----------
    path, out : Path
        The sweep file and the folder for its records and tables.
    resume : bool
        Go on in a folder that holds this very sweep; cells that failed are tried again.
    cluster : str, optional
        Address of a Ray cluster, see :func:`rkcnn_lib.report.cluster.connect`.
    shard : str, optional
        ``i/n``: this process's share of an array job, i from 1 to n. Run once more without it, with ``resume``, to
        collect the tables of all.
    yes : bool
        Do not ask before a long sweep.

    Raises
    ------
    ParameterError
        For a sweep file, folder or shard that cannot work.
    ClusterUnusable
        See :func:`rkcnn_lib.report.cluster.connect`.
    """
    planned = read_sweep(path)
    part = _shard(shard, planned)
    planned.check()  # a layer that the model lacks, a text that is not there
    out = out.expanduser().resolve()
    device = _device(planned.p, cluster)
    _check_folder(out, planned, resume, part)
    workers = _workers(planned.p, device, cluster, out)
    if not _agreed(planned, device, workers, part, yes):
        return 2
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", {"file": planned.file.model_dump(), "status": "running"})
    stores = _open_stores(planned, device, workers, out)
    records = Records(out / "records")
    records.folder.mkdir(exist_ok=True)
    if resume:
        records.forget_failures()
    settings, ended, trained = planned.settings, [], []
    for n_settings, steps in planned.rungs:
        settings = _best(trained, settings, n_settings)
        cells = [
            Cell(setting, steps if len(planned.rungs) > 1 else setting.p.steps, layer, hook, seed, arm)
            for setting in settings
            for layer, hook in stores
            for seed in planned.seeds
            for arm in (*planned.p.arms, *planned.p.variants)
        ]
        cells = _share(cells, part)
        trained = _run(cells, stores, device, records, workers)
        ended += trained
    return finish(ended, planned, out, part)


def _shard(text: str | None, planned: Sweep) -> tuple[int, int]:
    """Return (number from 1, of how many) of ``i/n``; the whole is 1/1."""
    if text is None:
        return 1, 1
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ParameterError(f"--shard {text}: expected i/n with i from 1 to n, such as 1/8")
    if len(planned.rungs) > 1:
        raise ParameterError("--shard: halving needs the results of all settings at each rung; use --cluster for it")
    return int(number), int(total)


def _device(p: Multilayer, cluster: str | None) -> str:
    """Return the device of the cells: on a cluster it may be one that this machine lacks."""
    return p.device if cluster and p.device else str(pick_device(p.device))


def _workers(p: Multilayer, device: str, cluster: str | None, out: Path) -> Any:
    if cluster is None:
        return Workers(process_count(p.n_jobs, device))
    from rkcnn_lib.report.cluster import connect

    return connect(cluster, device, [out, outputs_root().resolve()])


def _check_folder(out: Path, planned: Sweep, resume: bool, part: tuple[int, int]) -> None:
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
    if not resume and part == (1, 1):
        raise ParameterError(f"{out} holds this sweep: add --resume to go on, or give another --out")


def _agreed(planned: Sweep, device: str, workers: Any, part: tuple[int, int], yes: bool) -> bool:
    """Print what the sweep will cost, by this machine's speed, and ask where it is long."""
    from rkcnn_lib.report import plan

    here = device if isinstance(workers, Workers) else str(pick_device(None))
    n_jobs = workers.n_jobs if isinstance(workers, Workers) else workers.slots()
    rate = plan.matmul_rate(here)
    cost = plan.estimate_sweep(planned, here, rate, n_jobs, part[1])
    places = f"{len(planned.hooks)} hook(s), {len(planned.seeds)} seed(s), {len(planned.p.arms)} arms"
    print(f"{len(planned.settings)} setting(s) of {', '.join(planned.swept) or 'nothing swept'}; {places}; "
          f"{n_jobs} at once")  # fmt: skip
    return plan.agreed({"sweep" if part[1] == 1 else f"shard {part[0]}/{part[1]}": cost}, here, rate, yes)


def _open_stores(planned: Sweep, device: str, workers: Any, out: Path) -> dict[tuple[int, str], Any]:
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
        key = digest([p.model_dump(), layers, planned.hooks])
        left = run_recorded(_capture, {f"capture-{key}": (capture, device)}, out / "records", workers, "capture")
        if "error" in left[f"capture-{key}"]:
            raise RuntimeError(f"capture failed: {left[f'capture-{key}']['error']}")
        device = "cpu"  # nothing is left to capture
    stores = capture(device=device)
    return {(layer, hook): stores[layer, hook] for layer in layers for hook in planned.hooks}


def _capture(capture: Any, device: str) -> int:
    return len(capture(device=device))


def _share(cells: list[Cell], part: tuple[int, int]) -> list[Cell]:
    """Return a shard's cells; arms that are compared stay together, for all are given as many latents."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    mine = set(groups[part[0] - 1 :: part[1]])
    return [cell for cell in cells if cell.group in mine]


def _run(cells: list[Cell], stores: dict[Any, Any], device: str, records: Records, workers: Any) -> list[Ended]:
    """Mine for all cells, then train all whose arms were all mined."""
    root = str(outputs_root().resolve())

    def run(stage: str, todo: dict[Cell, tuple]) -> dict[Cell, dict[str, Any]]:
        function = {"mining": _mine_cell, "SAEs": _sae_cell}[stage]
        keys = {cell: _key(stage, cell, stores[cell.layer, cell.hook], device, todo[cell]) for cell in todo}
        work = {
            keys[cell]: (root, stores[cell.layer, cell.hook], cell.p, cell.arm, cell.seed, device, *more)
            for cell, more in todo.items()
        }
        for key in work:
            _forget_if_gone(key, records)
        left = run_recorded(function, work, records.folder, workers, stage)
        return {cell: left[key] for cell, key in keys.items()}

    mined = run("mining", {cell: () for cell in cells if cell.arm in cell.setting.p.arms and cell.arm != UNMINED})
    supplies: dict[tuple[Any, ...], list[int]] = {}
    lost: dict[tuple[Any, ...], str] = {}
    for cell, record in mined.items():
        if "error" in record:
            lost.setdefault(cell.group, cell.arm)
        else:
            supplies.setdefault(cell.group, []).append(record["value"]["scalars"]["supply"])
    trained = run("SAEs", {c: (min(supplies.get(c.group, [0])),) for c in cells if c.group not in lost})
    return [_ended(cell, mined.get(cell), trained.get(cell), lost.get(cell.group)) for cell in cells]


def _forget_if_gone(key: str, records: Records) -> None:
    """Let a cell run again whose record is there but whose unit was deleted or is damaged."""
    record = records.read(key)
    if record and "value" in record:
        try:
            unit_scalars(outputs_root() / record["value"]["unit"])
        except DamagedUnit:
            records.forget(key)


def _ended(cell: Cell, mined: dict[str, Any] | None, trained: dict[str, Any] | None, lost: str | None) -> Ended:
    supply = None if mined is None or "error" in mined else mined["value"]["scalars"]
    if lost is not None:
        own = mined if mined is not None and "error" in mined else None
        said = {"error": f"not trained: mining of {lost} failed for this seed", "traceback": ""}
        return Ended(cell, {}, supply=supply, failure={"stage": "mining"} | (own or said))
    if "error" in trained:
        return Ended(cell, {}, supply=supply, failure={"stage": "SAEs"} | trained)
    unit = trained["value"]["unit"]
    return Ended(cell, unit_scalars(outputs_root() / unit), unit, supply)


def _key(stage: str, cell: Cell, store: Any, device: str, more: tuple) -> str:
    """Hash what decides a cell, so that a record is never taken for another's, and not for an older version's."""
    asked = cell.p.model_dump(exclude={"profile", "force", "n_jobs", "n_seeds", "layers", "device"})
    return digest([stage, asked, store.key, cell.arm, cell.seed, device, more, VERSIONS, str(outputs_root().resolve())])


def _mine_cell(root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str) -> dict[str, Any]:
    os.environ["RKCNN_OUTPUTS"] = root  # a worker elsewhere has an environment of its own
    unit = mined_unit(store, p, arm, seed, device)
    return {"unit": str(unit.folder.relative_to(root)), "scalars": unit.scalars}


def _sae_cell(root: str, store: Any, p: Multilayer, arm: str, seed: int, device: str, n_mined: int) -> dict[str, Any]:
    os.environ["RKCNN_OUTPUTS"] = root
    return {"unit": str(matched_unit(store, p, arm, seed, n_mined, device).folder.relative_to(root))}


def _best(trained: list[Ended], settings: list[Setting], n_settings: int) -> list[Setting]:
    """Return the settings that go on to the next rung: those whose SAEs explain most, over all arms alike.

    The mean over arms favours none of them; a setting with a failed cell does not go on.
    """
    if not trained:
        return settings[:n_settings]
    failed = {ended.cell.setting.number for ended in trained if ended.failure}
    scores = pd.DataFrame([
        {"setting": ended.cell.setting.number, "value": ended.scalars["explained_variance"]}
        for ended in trained
        if ended.cell.setting.number not in failed
    ], columns=["setting", "value"])  # fmt: skip
    ranked = scores.groupby("setting")["value"].mean().sort_values(ascending=False, kind="stable").index
    kept = set(ranked[:n_settings])
    return [setting for setting in settings if setting.number in kept]
