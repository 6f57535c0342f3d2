"""Many cells of a study, several processes at once: joblib runs them, here or, by the same call, on a Ray cluster.

Cells leave their results as units on disk, so nothing is lost by whatever dies: what is called again is only read. A
cell that fails does not stop the others. On a cluster (``pip install -e '.[cluster]'``) Ray schedules; its nodes must
see the folders that the driver writes to, which is checked before anything is computed.
"""

import contextlib
import copy
import functools
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from rkcnn_lib.files import digest
from rkcnn_lib.runs.units import VERSIONS

TRIES = 3  # calls of a single cell whose worker dies, before the cell itself is taken to kill it
CONNECT_SECONDS = 10.0
NODE_SECONDS = 60.0  # a node that has not answered by then is left out: starting a worker imports torch
SETTLE_SECONDS = 5.0  # Ray takes so long to notice that a node is gone
Cell = Callable[..., Any]


class ClusterUnusable(RuntimeError):
    """The cluster cannot be reached, or its nodes cannot do the work; the message says what to do."""


@dataclass(frozen=True)
class Failure:
    """What a cell that failed left."""

    error: str  # type and message
    traceback: str = ""
    exception: Exception | None = None  # to be raised again; None if it cannot be sent between processes


@dataclass(frozen=True)
class Workers:
    """Processes of this machine."""

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


@dataclass(frozen=True)
class RayWorkers:
    """The cores ("cpu") or GPUs ("cuda") of a Ray cluster, a cell on each; counted anew whenever a node was lost."""

    device: str
    folders: tuple[Path, ...]  # that every node must see
    threads: int = 1  # Ray gives each cell one core, or one GPU

    def slots(self) -> int:
        """Return how many cells can run at once on nodes that answer; ClusterUnusable if one refuses or none offers."""
        import ray

        kind = "GPU" if self.device == "cuda" else "CPU"
        nodes = {node["NodeID"]: node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]}
        answers = _ask_nodes([node for node, offered in nodes.items() if offered >= 1], self.folders)
        problems = [problem for problem in answers.values() if problem]
        if problems:
            raise ClusterUnusable("nodes of the cluster cannot do the work:\n  " + "\n  ".join(problems))
        slots = int(sum(nodes[node] for node in answers))
        if not slots:
            raise ClusterUnusable(f"no node of the cluster offers a {kind}")
        return slots

    @contextlib.contextmanager
    def pool(self, n_cells: int) -> Iterator[int]:
        n_jobs = slots = self.slots()  # with one core left the driver works by itself
        wanted = {"num_cpus": 1.0}
        if self.device == "cuda":
            # joblib runs a single process in the driver, which may have no GPU: the last one is shared by two
            wanted, n_jobs = {"num_gpus": 1.0 if slots > 1 else 0.5}, max(2, min(slots, n_cells))
        with joblib.parallel_config(backend="ray", ray_remote_args=wanted):
            yield n_jobs

    def lost(self, error: BaseException) -> bool:
        """As :meth:`Workers.lost`; if so, wait until Ray has noticed."""
        from ray.exceptions import RayError

        if isinstance(error, RayError):
            time.sleep(SETTLE_SECONDS)
        return isinstance(error, RayError)


def connect(address: str, device: str, folders: list[Path]) -> RayWorkers:
    """Join a running Ray cluster: ``auto`` (the one that this machine belongs to), HOST:PORT or ray://HOST:PORT.

    Raises ClusterUnusable if Ray is not installed, nothing answers at the address, a node does not see the folders or
    runs other code, or no node offers the device.
    """
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ClusterUnusable("--cluster needs Ray: pip install -e '.[cluster]'") from None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise ClusterUnusable(f"--cluster {address!r}: expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        if address != "auto":  # knock: Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises a dozen kinds for the same thing
        reason = str(error).strip().splitlines()[0]
        raise ClusterUnusable(f"no Ray cluster at {address!r}: {reason}. Start one with `ray start --head`") from None
    register_ray()
    workers = RayWorkers(device, tuple(folders))
    workers.slots()
    return workers


def _ask_nodes(ids: list[str], folders: tuple[Path, ...]) -> dict[str, str]:
    """Ask nodes what keeps them from doing the work (nothing: ""); those that do not answer in time are left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tokens = [folder / f".seen-{uuid.uuid4().hex}" for folder in folders]
    for token in tokens:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(_problem)
        there = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in ids}
        asked = {ask.options(scheduling_strategy=there[node]).remote(tokens, _version()): node for node in ids}
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)[0] if asked else []
        answers = {}
        for task in ready:
            with contextlib.suppress(ray.exceptions.RayError):  # the node died in the meantime
                answers[asked[task]] = ray.get(task)
        return answers
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)


def _version() -> str:
    """What must be the same on all machines: the package's version and those of its units."""
    return digest([metadata.version("rkcnn"), VERSIONS])


def _problem(tokens: list[Path], version: str) -> str:
    """Run on a node: return what keeps it from doing the work, or ""."""
    try:
        unseen = [str(token.parent) for token in tokens if not token.is_file()]
        if unseen:
            return f"{socket.gethostname()}: does not see {', '.join(unseen)}; use a file system that all nodes mount"
        if _version() != version:
            return f"{socket.gethostname()}: runs another version of rkcnn_lib: install the same one on every node"
    except Exception as error:
        return f"{socket.gethostname()}: {type(error).__name__}: {error}"
    return ""


def process_count(n_jobs: int | None, device: str, bytes_each: float = 0.0) -> int:
    """Return how many processes work at once: as many as asked, else one a core, or one a GPU.

    ``bytes_each`` is what a process will take: no more are started than the free memory holds.
    """
    if n_jobs:
        return n_jobs
    n = max(1, torch.cuda.device_count()) if device == "cuda" else joblib.cpu_count()
    return max(1, min(n, int(psutil.virtual_memory().available // bytes_each))) if bytes_each else n


def run_cells(function: Cell, cells: list[tuple], n_jobs: int, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell, ``n_jobs`` processes at once, and return the results in order.

    If cells fail the others are finished first; then the first of the errors is raised, with a note of how many failed.
    """
    results = try_cells(function, cells, Workers(max(1, min(n_jobs, len(cells)))), label)
    if failures := [result for result in results if isinstance(result, Failure)]:
        error = failures[0].exception or RuntimeError(f"{failures[0].error}\n{failures[0].traceback}")
        error.add_note(f"{label}: {len(failures)} of {len(cells)} failed; what is finished is kept")
        raise error
    return results


def try_cells(function: Cell, cells: list[tuple], workers: Workers | RayWorkers, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell and return for each what it returned, or a :class:`Failure`, in order.

    The function must find finished work again by itself: after a worker died cells are called anew.
    """
    if isinstance(workers, Workers) and workers.n_jobs == 1:
        return [_tried(function, cell) for cell in tqdm(cells, desc=label, unit="cell")]
    with tqdm(total=len(cells), desc=label, unit="cell") as bar:
        return _called(function, cells, workers, bar, done=0)


def _called(function: Cell, cells: list[tuple], workers: Workers | RayWorkers, bar: tqdm, done: int) -> list[Any]:
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


def _at_once(function: Cell, cells: list[tuple], workers: Workers | RayWorkers, bar: tqdm, done: int) -> list[Any]:
    """Call all cells in one pool; ``done`` cells before them are finished."""

    class Counted(joblib.Parallel):
        """Moves the bar: generators, which would too, are not to be had from every backend."""

        def print_progress(self) -> None:
            bar.update(max(0, done + self.n_completed_tasks - bar.n))

    with workers.pool(len(cells)) as n_jobs:
        parent = os.getpid() if isinstance(workers, Workers) else None
        tasks = (joblib.delayed(_tried)(function, cell, workers.threads, parent) for cell in cells)
        one_by_one: Any = {"batch_size": 1, "pre_dispatch": "n_jobs"}
        results = list(Counted(n_jobs=n_jobs, **one_by_one)(tasks))
    bar.update(max(0, done + len(cells) - bar.n))
    return results


def _tried(function: Cell, cell: tuple, threads: int | None = None, parent: int | None = None) -> Any:
    """Call the function, in a worker with its threads and a GPU of its own where there are several."""
    try:
        if parent is not None:
            _end_with(parent)
        if threads is not None:
            number = current_process().name.rpartition("-")[2]
            if number.isdigit() and torch.cuda.device_count() > 1:
                torch.cuda.set_device(int(number) % torch.cuda.device_count())
            torch.set_num_threads(threads)
        return function(*cell)
    except Exception as error:
        sent, told = None, traceback.format_exc()
        with contextlib.suppress(Exception):
            sent = copy.deepcopy(error)  # by the same means as to another process
        return Failure(f"{type(error).__name__}: {error}", told, sent)


@functools.cache
def _end_with(parent: int) -> None:
    """Let this worker end when the process that started it was killed; by itself it would wait for work for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
