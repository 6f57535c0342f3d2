"""Many cells of a study, several processes at once: joblib runs them, here or, by the same call, on a Ray cluster.

Cells leave their results as units on disk, so nothing is lost by whatever dies: what is called again is only read. A
cell that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

import joblib
import psutil
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

TRIES = 3  # calls of a single cell whose worker dies, before the cell itself is taken to kill it


@dataclass(frozen=True)
class Failure:
    """What a cell that failed left."""

    error: str  # type and message
    traceback: str = ""
    exception: Exception | None = None  # to be raised again; None if it cannot be sent between processes


@dataclass(frozen=True)
class Workers:
    """Processes of this machine. A cluster's are :class:`rkcnn_lib.runs.cluster.RayWorkers`."""

    n_jobs: int  # how many work at once; 1: this process does the work itself

    @property
    def threads(self) -> int:
        """Threads that a cell computes with; on the processor results are the same to the bit for the same number."""
        return max(1, joblib.cpu_count() // self.n_jobs)

    @contextlib.contextmanager
    def pool(self, n_cells: int) -> Iterator[int]:
        """Configure joblib; yield the number of processes to ask of it."""
        # threads are said outright, because OMP_NUM_THREADS would otherwise hold for each worker: two workers of two
        # threads on two cores wait for each other many times longer than they compute
        with joblib.parallel_config(backend="loky", inner_max_num_threads=self.threads):
            yield max(2, min(self.n_jobs, n_cells))  # joblib would run a single one here, where its death is ours

    def lost(self, error: BaseException) -> bool:
        """Say whether an error means that a worker died, not that a call was wrong."""
        return isinstance(error, BrokenProcessPool)


def process_count(n_jobs: int | None, device: str, bytes_each: float = 0.0) -> int:
    """Return how many processes work at once: as many as asked, else one a core, or one a GPU.

    ``bytes_each`` is what a process will take: no more are started than the free memory holds.
    """
    if n_jobs:
        return n_jobs
    n = max(1, torch.cuda.device_count()) if device == "cuda" else joblib.cpu_count()
    return max(1, min(n, int(psutil.virtual_memory().available // bytes_each))) if bytes_each else n


def run_cells(function: Callable[..., Any], cells: list[tuple], n_jobs: int, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell, ``n_jobs`` processes at once, and return the results in order.

    If cells fail the others are finished first; then the first of the errors is raised, with a note of how many failed.
    """
    results = try_cells(function, cells, Workers(max(1, min(n_jobs, len(cells)))), label)
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        error = failures[0].exception or RuntimeError(f"{failures[0].error}\n{failures[0].traceback}")
        error.add_note(f"{label}: {len(failures)} of {len(cells)} failed; what is finished is kept")
        raise error
    return results


def try_cells(function: Callable[..., Any], cells: list[tuple], workers: Any, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell and return for each what it returned, or a :class:`Failure`, in order.

    ``workers`` are Workers or RayWorkers. The function must find finished work again by itself: after a worker died
    cells are called anew.
    """
    with tqdm(total=len(cells), desc=label, unit="cell") as bar:
        return _called(function, cells, workers, bar, done=0)


def _called(function: Callable[..., Any], cells: list[tuple], workers: Any, bar: tqdm, done: int) -> list[Any]:
    """Call the cells; where a worker died, each half of them by itself, until the guilty cell is alone."""
    for _ in range(TRIES if len(cells) == 1 else 1):
        try:
            return _at_once(function, cells, workers, bar, done)
        except BaseException as error:
            if not workers.lost(error):
                raise
            tqdm.write(f"{bar.desc}: a worker was lost; {len(cells)} cell(s) are called again, finished ones are read")
    if len(cells) == 1:
        return [Failure(f"its worker died {TRIES} times (out of memory?)")]
    half = len(cells) // 2
    first = _called(function, cells[:half], workers, bar, done)
    return first + _called(function, cells[half:], workers, bar, done + half)


def _at_once(function: Callable[..., Any], cells: list[tuple], workers: Any, bar: tqdm, done: int) -> list[Any]:
    """Call all cells in one pool; ``done`` cells before them are finished."""

    class Counted(joblib.Parallel):
        """Moves the bar: generators, which would too, are not to be had from every backend."""

        def print_progress(self) -> None:
            bar.update(max(0, done + self.n_completed_tasks - bar.n))

    if isinstance(workers, Workers) and workers.n_jobs == 1:
        results = []
        for cell in cells:
            results.append(_tried(function, cell))
            bar.update()
        return results
    with workers.pool(len(cells)) as n_jobs:
        parent = os.getpid() if isinstance(workers, Workers) else None
        tasks = (joblib.delayed(_tried)(function, cell, workers.threads, parent) for cell in cells)
        results = Counted(n_jobs=n_jobs, batch_size=1, pre_dispatch="n_jobs")(tasks)
    bar.update(max(0, done + len(cells) - bar.n))
    return results


def _tried(function: Callable[..., Any], cell: tuple, threads: int | None = None, parent: int | None = None) -> Any:
    """Call the function, in a worker with its threads and a GPU of its own where there are several."""
    try:
        if parent is not None:
            _end_with(parent)
        if threads is None:
            return function(*cell)
        number = current_process().name.rpartition("-")[2]
        if number.isdigit() and torch.cuda.device_count() > 1:
            torch.cuda.set_device(int(number) % torch.cuda.device_count())
        torch.set_num_threads(threads)
        return function(*cell)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), _sendable(error))


@functools.cache
def _end_with(parent: int) -> None:
    """Let this worker end when the process that started it was killed; by itself it would wait for work for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sendable(error: Exception) -> Exception | None:
    try:
        return copy.deepcopy(error)  # by the same means as to another process
    except Exception:
        return None
