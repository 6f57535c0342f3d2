"""A Ray cluster as the place where joblib runs a sweep's cells (``pip install -e '.[cluster]'``).

Ray schedules; nothing here does. Nodes must see the folders that the driver writes to: put ``RKCNN_OUTPUTS`` and
``--out`` on a file system that all of them mount. This is checked on every node before anything is computed.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib

from rkcnn_lib.files import digest
from rkcnn_lib.runs.units import VERSIONS

CONNECT_SECONDS = 10.0
NODE_SECONDS = 60.0  # a node that has not answered by then is left out: starting a worker imports torch
SETTLE_SECONDS = 5.0  # Ray takes so long to notice that a node is gone


class ClusterUnusable(RuntimeError):
    """The cluster cannot be reached, or its nodes cannot do the work; the message says what to do."""


def connect(address: str, device: str, folders: list[Path]) -> RayWorkers:
    """Join a running Ray cluster and see that its nodes can do the work: a cell on a core each ("cpu") or a GPU.

    ``address`` is ``auto`` (the cluster that this machine belongs to), ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises ClusterUnusable if Ray is not installed, nothing answers at the address, a node does not see the folders or
    runs other code, or no node offers the device. Nothing has been computed by then.
    """
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ClusterUnusable("--cluster needs Ray: pip install -e '.[cluster]'") from None
    _check_address(address)
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises a dozen kinds for the same thing
        reason = str(error).strip().splitlines()[0]
        raise ClusterUnusable(f"no Ray cluster at {address!r}: {reason}. Start one with `ray start --head`") from None
    register_ray()
    workers = RayWorkers(device, tuple(folders))
    workers.slots()
    return workers


def _check_address(address: str) -> None:
    """Knock at the address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise ClusterUnusable(f"--cluster {address!r}: expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterUnusable(
            f"nothing answers at {address}: {error}. Is the cluster running, the port open?"
        ) from None


@dataclass(frozen=True)
class RayWorkers:
    """The cluster's cores or GPUs, a cell on each; counted anew whenever a node was lost."""

    device: str
    folders: tuple[Path, ...]
    threads: int = 1  # Ray gives each cell one core, or one GPU

    def slots(self) -> int:
        """Return how many cells can run at once on the nodes that answer.

        Raises ClusterUnusable if a node answers that it cannot do the work, or none offers the device.
        """
        import ray

        kind = "GPU" if self.device == "cuda" else "CPU"
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind, 0) >= 1]
        answers = _ask_nodes([node["NodeID"] for node in nodes], self.folders)
        problems = [f"{answer['host']}: {answer['problem']}" for answer in answers.values() if answer["problem"]]
        if problems:
            raise ClusterUnusable("nodes of the cluster cannot do the work:\n  " + "\n  ".join(problems))
        slots = int(sum(node["Resources"][kind] for node in nodes if node["NodeID"] in answers))
        if not slots:
            raise ClusterUnusable(f"no node of the cluster offers a {kind}")
        return slots

    @contextlib.contextmanager
    def pool(self, n_cells: int) -> Iterator[int]:
        """Configure joblib; yield the number of processes to ask of it."""
        slots = self.slots()
        if self.device == "cuda":
            # joblib runs a single process in the driver, which may have no GPU: the last one is shared by two
            wanted = {"num_gpus": 1.0 if slots > 1 else 0.5}
            n_jobs = max(2, min(slots, n_cells))
        else:
            wanted, n_jobs = {"num_cpus": 1}, slots  # with one core left the driver works by itself
        with joblib.parallel_config(backend="ray", ray_remote_args=wanted):
            yield n_jobs

    def lost(self, error: BaseException) -> bool:
        """Say whether an error means that a worker or node died; if so, wait until Ray has noticed."""
        from ray.exceptions import RayError

        if not isinstance(error, RayError):
            return False
        time.sleep(SETTLE_SECONDS)
        return True


def _ask_nodes(ids: list[str], folders: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """Ask every node whether it sees the folders and runs this code; nodes that do not answer in time are left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = f".seen-{uuid.uuid4().hex}"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / token).touch()
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(_examine)
        asked = {
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                [str(folder / token) for folder in folders], _version()
            ): node
            for node in ids
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS) if asked else ([], [])
        answers = {}
        for task in ready:
            with contextlib.suppress(ray.exceptions.RayError):  # the node died in the meantime
                answers[asked[task]] = ray.get(task)
        return answers
    finally:
        for folder in folders:
            (folder / token).unlink(missing_ok=True)


def _version() -> str:
    """Return what must be the same on all machines: the package's version and those of its units."""
    return digest([metadata.version("rkcnn"), VERSIONS])


def _examine(tokens: list[str], ours: str) -> dict[str, Any]:
    """Run on a node: what keeps it from doing the work?"""
    problem = None
    try:
        unseen = [str(Path(token).parent) for token in tokens if not Path(token).is_file()]
        if unseen:
            problem = f"does not see {', '.join(unseen)}; use a file system that all nodes mount"
        elif _version() != ours:
            problem = "runs another version of rkcnn_lib: install the same one on every node"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return {"host": socket.gethostname(), "problem": problem}
