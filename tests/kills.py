"""Runs a job in processes that are killed outright at random moments, then once to its end."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

N_KILLS = 10


def start(job: Callable[[Path], None], folder: Path) -> multiprocessing.process.BaseProcess:
    """Start ``job(folder)`` in milliseconds, from a process without threads that has the job's module loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__module__])
    process = context.Process(target=job, args=(folder,))
    process.start()
    return process


def killed_and_whole(job: Callable[[Path], None], root: Path) -> tuple[Path, Path]:
    """Return the folder of a job that was killed ten times before it ended, and that of one left alone."""
    killed, whole = root / "killed", root / "whole"
    for folder in (killed, whole, root / "nowhere"):
        folder.mkdir()
    start(job, root / "nowhere").join()  # warms up the fork server
    began = time.monotonic()
    start(job, whole).join()
    seconds = time.monotonic() - began
    n_killed = 0
    for wait in np.random.default_rng(0).uniform(0, seconds / 3, N_KILLS):
        process = start(job, killed)
        time.sleep(wait)
        process.kill()
        process.join()
        n_killed += process.exitcode != 0
    start(job, killed).join()
    assert n_killed >= N_KILLS / 2, "the job ended before it was killed: nothing was tested"
    return killed, whole
