"""What a search is told and what it gives back; selection of subsets and merging of near-copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rkcnn_lib.probe.moments import CONTRASTS, MAX_ELEMENTS

SELECTIONS = ("best", "random", "worst")
MIN_RATIO = 3  # candidates for each place, or the score does not select (Lu & Gweon 2025: r << h)
BLOCK = 256  # directions compared among themselves at once


@dataclass(frozen=True)
class SearchOptions:
    """What a search does; see `RkCNNMiner` for the meaning of each."""

    n_directions: int
    score: str = "neighbours"
    lift: bool = True
    select: str = "best"
    n_stages: int = 6
    n_refinements: int = 3
    merge_cosine: float = 0.9
    shrinkage: float | str = "auto"
    max_iter: int = 20
    pursuit_steps: int = 2
    n_neighbours: int = 16
    max_elements: int = MAX_ELEMENTS
    seed: int = 0

    @property
    def places(self) -> int:
        """How many directions a round may keep."""
        return -(-self.n_directions // self.n_stages)

    @property
    def contrast(self) -> str:
        """The contrast that is climbed and that ranks directions: the score itself where it is one."""
        return self.score if self.score in CONTRASTS else "kurtosis"


@dataclass(frozen=True)
class Found:
    """Distinct directions of a search, in decreasing order of their score on the rows searched.

    `filters`, `directions` (s, d), float64, unit rows; `origin` (s,), the subset from which each was started; `targets`
    (s,), with labels, the class each points to. `funnel` has a row a round: round, drawn (subsets), candidates
    (distinct directions they lead to, apart from what is kept already), places (how many may be kept) and kept.
    """

    filters: torch.Tensor
    directions: torch.Tensor
    origin: torch.Tensor
    funnel: list[dict[str, int]]
    targets: np.ndarray | None = None


class SelectionWarning(UserWarning):
    """A score had little or nothing to select from: fewer than `MIN_RATIO` candidates for each place."""


def selects_nothing(funnel: list[dict[str, int]]) -> str:
    """Say, with the numbers, which rounds had fewer than `MIN_RATIO` candidates for each place; "" if none had."""
    tight = [row for row in funnel if row["candidates"] < MIN_RATIO * row["places"]]
    if not tight:
        return ""
    rounds = "; ".join(f"round {row['round']}: {row['candidates']} for {row['places']}" for row in tight)
    return (
        f"fewer than {MIN_RATIO} distinct candidates a place, so the score hardly selects ({rounds}): draw more "
        "subsets, from more rows, or ask for fewer directions"
    )


def choose(
    scores: torch.Tensor,
    directions: torch.Tensor,
    options: SearchOptions,
    places: int,
    stage: int = 0,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """Choose among the distinct directions that subsets lead to: the best, the worst or random ones.

    Near-copies are merged first, and the first drawn stays: no score has a say in what is a candidate, so all ways to
    select have one pool. A candidate's score is the mean over all subsets that lead to it, its near-copies: one
    subset's is noisy.

    `scores` (h,) and the unit `directions` (h, d) that each subset leads to; at most `places` are chosen; what lies
    near a row of `kept` (s, d) is no candidate. Returns rows of `directions`, best (or worst) first, random ones as
    drawn; and the number of candidates.
    """
    known = directions[:0] if kept is None else kept
    scores = scores.double().nan_to_num().clamp(-1e300, 1e300)
    joined = torch.cat([known, directions])
    first = distinct(joined, -torch.arange(len(joined), device=joined.device), options.merge_cosine)
    candidates = first[first >= len(known)] - len(known)
    if options.select == "random":
        picked = np.random.RandomState([options.seed, stage]).permutation(len(candidates))[:places]
        return candidates[torch.as_tensor(np.sort(picked), device=candidates.device)], len(candidates)
    near = directions[candidates] @ directions.T > options.merge_cosine
    near[torch.arange(len(candidates), device=near.device), candidates] = True
    near = near.double()
    value = (near @ scores) / near.sum(1)
    rank = value.argsort(descending=options.select == "best", stable=True)
    return candidates[rank[:places]], len(candidates)


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
