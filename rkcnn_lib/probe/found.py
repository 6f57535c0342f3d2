"""What a search is told and what it gives back; selection of subsets and merging of near-copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rkcnn_lib.probe.moments import CONTRASTS, MAX_ELEMENTS

SELECTIONS = ("best", "random", "worst")
BLOCK = 256  # directions compared among themselves at once


@dataclass(frozen=True)
class SearchOptions:
    """What a search does; see `RkCNNMiner` for the meaning of each."""

    n_lifted: int
    score: str = "kurtosis"
    lift: bool = True
    select: str = "best"
    n_stages: int = 4
    n_refinements: int = 3
    merge_cosine: float = 0.9
    shrinkage: float | str = "auto"
    max_iter: int = 20
    pursuit_steps: int = 2
    n_neighbours: int = 16
    max_elements: int = MAX_ELEMENTS
    seed: int = 0

    @property
    def contrast(self) -> str:
        """The contrast that is climbed and that ranks directions: the score itself where it is one."""
        return self.score if self.score in CONTRASTS else "kurtosis"


@dataclass(frozen=True)
class Found:
    """Distinct directions of a search, in decreasing order of their score on the rows searched.

    Attributes
    ----------
    filters, directions : torch.Tensor of shape (s, d), float64, unit rows
    origin : torch.Tensor of shape (s,), int64
        Subset from which each was started.
    targets : array of shape (s,) or None
        With labels, the class each points to.
    n_lifted : int
        Starts that were lifted, all stages together.
    """

    filters: torch.Tensor
    directions: torch.Tensor
    origin: torch.Tensor
    n_lifted: int
    targets: np.ndarray | None = None


def choose(scores: torch.Tensor, starts: torch.Tensor, options: SearchOptions, stage: int = 0) -> torch.Tensor:
    """Indices of the subsets to lift: the best, the worst or random ones, none of them near-copies of each other.

    Without the second condition the best are many views of a few dense spots, and hardly any direction is found.

    Parameters
    ----------
    scores : torch.Tensor of shape (h,)
    starts : torch.Tensor of shape (h, d)
        Unit direction that each subset would be lifted from.
    options : SearchOptions
        `select`, `n_lifted` (the most that are returned) and `merge_cosine`.
    """
    if options.select == "random":
        rank = torch.as_tensor(np.random.RandomState(options.seed + stage).permutation(len(scores)))
        rank = rank.to(scores)
    else:
        rank = scores if options.select == "best" else -scores
    return distinct(starts, rank, options.merge_cosine, options.n_lifted)


def distinct(
    directions: torch.Tensor, scores: torch.Tensor, cosine: float = 0.9, limit: int | None = None
) -> torch.Tensor:
    """Rows to keep so that no kept pair of unit directions (s, d) has a signed cosine above `cosine`.

    Greedy: the best score first, everything near it merged into it. Returns indices, best first, `limit` at most.
    """
    limit = len(directions) if limit is None else limit
    kept = scores.argsort(descending=True, stable=True)[:0]
    for block in scores.argsort(descending=True, stable=True).split(BLOCK):
        near = directions[block] @ directions[kept].T > cosine
        block = block[~near.any(1)]
        close = (directions[block] @ directions[block].T > cosine).cpu().numpy()
        merged = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not merged[i]:
                merged[i + 1 :] |= close[i, i + 1 :]
        kept = torch.cat([kept, block[torch.as_tensor(~merged, device=block.device)]])
        if len(kept) >= limit:
            break
    return kept[:limit]
