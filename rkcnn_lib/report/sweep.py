"""Many cells of a study, several processes at once: joblib runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
from tqdm import tqdm


def process_count(n_jobs: int | None, device: str) -> int:
    """Return how many processes work at once: as many as asked, else one a core, or one on a GPU."""
    return n_jobs or (1 if device == "cuda" else joblib.cpu_count())


def run_cells(function: Callable[..., Any], cells: list[tuple], n_jobs: int, label: str) -> list[Any]:
    """Call ``function(*cell)`` for each cell, ``n_jobs`` processes at once, and return the results in order."""
    n_jobs = min(n_jobs, len(cells))
    if n_jobs <= 1:
        return [function(*cell) for cell in tqdm(cells, desc=label, unit="cell")]
    # said outright, because OMP_NUM_THREADS would otherwise hold for each worker: two workers of two threads on
    # two cores wait for each other many times longer than they compute
    threads = max(1, joblib.cpu_count() // n_jobs)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        work = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(joblib.delayed(function)(*cell) for cell in cells)
        return list(tqdm(work, desc=label, unit="cell", total=len(cells)))
