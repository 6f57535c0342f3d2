"""Time the scoring of random subsets against obvious ways to do it, in one run; one JSON line a figure.

    python benchmarks/mining.py                        # 20,000 x 256, 300 subsets of 16: under a minute on 2 cores
    python benchmarks/mining.py --full                 # 100,000 x 768, 600 subsets of 28

Peers: a loop that takes the SVD of each n x m block and scores the projection (as a first implementation would, in
torch and in numpy), a loop of eigenproblems on each block's covariance, scikit-learn's FastICA, and the two dense
matrix products that the scoring cannot do without (the covariance, and the projection of all rows on all directions).
The loops are timed on a sample of the subsets and scaled to all of them. Ratios are what counts: seconds depend on the
machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import kurtosis
from sklearn.decomposition import FastICA

from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import Subsets, draw_subsets

LOOPED = 12  # subsets that a loop is timed on


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the median time of a call after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def loop(X: torch.Tensor, subsets: Subsets, n: int, direction: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Score the first n subsets one by one; ``direction`` finds the principal one of a centred block (n, m)."""
    scores = []
    for i in range(n):
        block = subsets.restrict(X, i)
        block = block - block.mean(0)
        scores.append(kurtosis((block @ direction(block)).numpy()))
    return np.array(scores)


def by_svd(block: torch.Tensor) -> torch.Tensor:
    """First right singular vector, by torch."""
    return torch.linalg.svd(block, full_matrices=False).Vh[0]


def by_numpy_svd(block: torch.Tensor) -> torch.Tensor:
    """First right singular vector, by numpy."""
    return torch.from_numpy(np.linalg.svd(block.numpy(), full_matrices=False)[2][0])


def by_eigh(block: torch.Tensor) -> torch.Tensor:
    """Last eigenvector of the block's covariance."""
    return torch.linalg.eigh(block.T @ block).eigenvectors[:, -1]


def main() -> None:
    """Run all timings and print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--full", action="store_true", help="100,000 x 768, 600 subsets of 28")
    n, d, h, m = (100_000, 768, 600, 28) if options.parse_args().full else (20_000, 256, 300, 16)
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) ** 3
    subsets = draw_subsets(d, m, h, random_state=0)
    directions = torch.randn(h, d)

    ours = seconds(lambda: subset_scores(X, subsets, "kurtosis"))
    assert np.allclose(subset_scores(X, subsets, "kurtosis")[:3], loop(X, subsets, 3, by_svd), rtol=1e-2)
    peers = {
        "two dense products": seconds(lambda: (X.T @ X, X @ directions.T)),
        "loop of torch's SVDs": seconds(lambda: loop(X, subsets, LOOPED, by_svd), 1) * h / LOOPED,
        "loop of numpy's SVDs": seconds(lambda: loop(X, subsets, LOOPED, by_numpy_svd), 1) * h / LOOPED,
        "loop of eigenproblems": seconds(lambda: loop(X, subsets, LOOPED, by_eigh), 1) * h / LOOPED,
        "scikit-learn FastICA, 20 iterations": seconds(
            lambda: FastICA(min(d, 64), max_iter=20, tol=0.0, whiten="unit-variance", random_state=0).fit(X.numpy()), 1
        ),
    }
    size = {"n": n, "d": d, "n_subsets": h, "subset_size": m, "threads": torch.get_num_threads()}
    for peer, taken in peers.items():
        print(json.dumps({"benchmark": "mining", **size, "ours_s": round(ours, 3), "peer": peer,
                          "peer_s": round(taken, 3), "ratio": round(taken / ours, 2)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", message="FastICA did not converge")
    main()
