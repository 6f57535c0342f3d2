"""Many cells of a study, several processes at once: joblib runs them, here or on a Ray cluster.

:func:`run_cells` is for notebooks: it returns what the cells return and raises what they raise. :func:`run_recorded`
is for long sweeps: each cell leaves a record on disk, what failed is recorded with its traceback, and a worker, a node
or the driver may die at any moment.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from rkcnn_lib.files import DamagedFile, read_json, write_json

ALONE_AFTER = 3  # losses of a cell's worker after which the cell is run alone, so that blame falls on the guilty
GIVEN_UP_AFTER = 5  # losses after which the cell itself is taken to kill its worker
IDLE_SECONDS = 20  # after which a worker without work ends: a killed run leaves them without a word
IDLE_LOSSES = 5  # pools that may break with no cell at work before the machine is taken to be unusable


def process_count(n_jobs: int | None, device: str, bytes_each: float = 0.0) -> int:
    """Return how many processes work at once: as many as asked, else one a core, or one a GPU.

    ``bytes_each`` is what a process will take: no more are started than the free memory holds.
    """
    if n_jobs:
        return n_jobs
    n = max(1, torch.cuda.device_count()) if device == "cuda" else joblib.cpu_count()
    return max(1, min(n, int(psutil.virtual_memory().available // bytes_each))) if bytes_each else n


def run_cells(function: Callable[..., Any], cells: list[tuple], n_jobs: int, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell, ``n_jobs`` processes at once, and return the results in order."""
    n_jobs = min(n_jobs, len(cells))
    if n_jobs <= 1:
        return [function(*cell) for cell in tqdm(cells, desc=label, unit="cell")]
    with local_pool(n_jobs):
        tasks = (joblib.delayed(_on_own_card)(function, cell) for cell in cells)
        work = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
        return list(tqdm(work, desc=label, unit="cell", total=len(cells)))


def local_pool(n_jobs: int) -> contextlib.AbstractContextManager[Any]:
    """Let joblib run on ``n_jobs`` processes of this machine, which share its cores."""
    # said outright, because OMP_NUM_THREADS would otherwise hold for each worker: two workers of two threads on
    # two cores wait for each other many times longer than they compute
    return joblib.parallel_config(
        backend="loky", inner_max_num_threads=_threads(n_jobs), idle_worker_timeout=IDLE_SECONDS
    )


def _threads(n_jobs: int) -> int:
    return max(1, joblib.cpu_count() // n_jobs)


def _on_own_card(function: Callable[..., Any], cell: tuple) -> Any:
    """Call the function with a GPU of this worker's own, where there are several: workers are numbered in a row."""
    number = current_process().name.rpartition("-")[2]
    if number.isdigit() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(int(number) % torch.cuda.device_count())
    return function(*cell)


@dataclass(frozen=True)
class Workers:
    """Processes of this machine. A cluster's are :class:`rkcnn_lib.report.cluster.RayWorkers`.

    Attributes
    ----------
    n_jobs : int
        How many work at once; 1: this process does the work itself.
    """

    n_jobs: int

    @property
    def threads(self) -> int:
        """Threads that a cell computes with; on the processor results are the same to the bit for the same number."""
        return _threads(self.n_jobs)

    @contextlib.contextmanager
    def pool(self, n_cells: int) -> Iterator[int]:
        """Configure joblib; yield the number of processes to ask of it."""
        with local_pool(self.n_jobs):
            yield self.n_jobs

    def lost(self, error: BaseException) -> bool:
        """Say whether an error means that a worker died, not that a call was wrong."""
        return isinstance(error, BrokenProcessPool)


class Records:
    """One small JSON file for each finished (``KEY.done``) or failed (``KEY.failed``) cell, written whole or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> dict[str, Any] | None:
        """Return what a cell left, or None."""
        for ending in ("done", "failed"):
            path = self.folder / f"{key}.{ending}"
            if path.is_file():
                try:
                    return read_json(path)
                except DamagedFile as error:
                    tqdm.write(f"{error}: its cell is called again")
                    path.unlink()
        return None

    def write(self, key: str, record: dict[str, Any]) -> None:
        """Keep what a cell left."""
        write_json(self.folder / f"{key}.{'failed' if 'error' in record else 'done'}", record, indent=None)
        (self.folder / f"{key}.started").unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Let a finished cell run again."""
        (self.folder / f"{key}.done").unlink(missing_ok=True)

    def forget_failures(self) -> None:
        """Let cells that failed run again."""
        for path in self.folder.glob("*.failed"):
            path.unlink(missing_ok=True)

    @property
    def n_failed(self) -> int:
        """How many cells have failed, of all in the folder."""
        return sum(1 for _ in self.folder.glob("*.failed"))

    def start(self, key: str) -> None:
        """Note that a worker has begun a cell."""
        (self.folder / f"{key}.started").touch()

    def at_work(self, keys: set[str]) -> set[str]:
        """Return which of the cells were begun and left no record; forget that they were begun."""
        begun = {key for key in keys if (self.folder / f"{key}.started").is_file()}
        for key in begun:
            (self.folder / f"{key}.started").unlink(missing_ok=True)
        return {key for key in begun if self.read(key) is None}


def run_recorded(
    function: Callable[..., Any],
    cells: dict[str, tuple],
    folder: Path,
    workers: Any,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Call ``function(*cell)`` for each cell until every one has left a record.

    Parameters
    ----------
    function : callable
        Returns what JSON can hold. Must find finished work again by itself: a cell whose worker died is called anew.
    cells : dict
        Key, usable as a file name, to arguments. Cells with a record are not called.
    folder : Path
        Where records lie; on a cluster, seen by all nodes.
    workers : Workers or RayWorkers
    label : str
        For the progress bar, which counts cells done and failed.

    Returns
    -------
    dict
        Key to ``{"value": ...}`` or ``{"error": str, "traceback": str}``. A cell whose worker died
        :data:`GIVEN_UP_AFTER` times, the last ones while it ran alone, counts as failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records, losses, idle = Records(folder), Counter(), 0
    found: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(cells), desc=label, unit="cell") as bar:
        while True:
            found |= {key: record for key in cells.keys() - found if (record := records.read(key)) is not None}
            left = {key: cell for key, cell in cells.items() if key not in found}
            bar.update(len(found) - bar.n)
            if not left:
                return {key: found[key] for key in cells}
            alone = next((key for key in left if losses[key] >= ALONE_AFTER), None)
            batch = left if alone is None else {alone: left[alone]}
            records.at_work(set(batch))
            try:
                found |= _round(function, batch, records, workers, bar, done=len(found))
            except BaseException as error:
                if not workers.lost(error):
                    raise
                suspects = records.at_work(set(batch))
                idle = 0 if suspects else idle + 1
                if idle >= IDLE_LOSSES:
                    raise RuntimeError(f"{label}: workers die before they begin to work: {error}") from error
                losses.update(suspects)
                tqdm.write(f"{label}: a worker was lost; {len(suspects)} cell(s) in work are called again")
                for key in (key for key in suspects if losses[key] >= GIVEN_UP_AFTER):
                    said = f"its worker died {losses[key]} times, the last ones alone (out of memory?)"
                    records.write(key, {"error": said, "traceback": str(error)})


def _round(
    function: Callable[..., Any], cells: dict[str, tuple], records: Records, workers: Any, bar: tqdm, done: int
) -> dict[str, dict[str, Any]]:
    """Run all cells once in one pool; ``done`` were finished before."""

    class Counted(joblib.Parallel):
        """Moves the bar: generators, which would too, are not to be had from every backend."""

        def print_progress(self) -> None:
            bar.set_postfix(failed=records.n_failed, refresh=False)
            bar.update(max(0, done + self.n_completed_tasks - bar.n))

    with workers.pool(len(cells)) as n_jobs:
        tasks = (
            joblib.delayed(_recorded_cell)(function, key, cell, records, workers.threads) for key, cell in cells.items()
        )
        left = Counted(n_jobs=n_jobs, batch_size=1, pre_dispatch="n_jobs")(tasks)
    return dict(zip(cells, left, strict=True))


def _recorded_cell(
    function: Callable[..., Any], key: str, cell: tuple, records: Records, threads: int
) -> dict[str, Any]:
    """Call the function in a worker and record what comes of it; a full disk cannot keep a failure from being told."""
    try:
        records.start(key)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            record = {"value": _on_own_card(function, cell)}
        finally:
            torch.set_num_threads(before)
        records.write(key, record)
    except Exception as error:
        record = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            records.write(key, record)
    return record
