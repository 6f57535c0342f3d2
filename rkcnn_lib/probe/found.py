"""What a search is told and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rkcnn_lib.probe.moments import CONTRASTS, MAX_ELEMENTS

RULES = ("separation", "votes", "cover")
SELECTIONS = ("best", "random", "worst")
MIN_RATIO = 3  # candidates for each place, or the score does not select (Lu & Gweon 2025: r << h)


@dataclass(frozen=True)
class SearchOptions:
    """What a search does; see `RkCNNMiner` for the meaning of each."""

    n_directions: int
    score: str = "neighbours"
    lift: bool = True
    rule: str = "separation"
    select: str = "best"
    n_stages: int = 6
    n_refinements: int = 3
    merge_cosine: float = 0.9
    shrinkage: float | str = "auto"
    max_iter: int = 20
    pursuit_steps: int = 2
    n_neighbours: int = 16
    n_shifts: int = 3
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
