"""What the estimators, `mine` and a search are told, what that may be (a line each), and what a search gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from rkcnn_lib.tensors import number, one_of, switch, whole

KINDS = ("coordinate", "rotated")  # of subsets
NEIGHBOURS = "neighbours"
CONTRASTS = ("kurtosis", "logcosh", "skew")
LABELLED_SCORES = ("separation", "knn_label_consistency")
SCORES = (*CONTRASTS, "coordinate_kurtosis", "variance_ratio", *LABELLED_SCORES)
SURROGATES = ("gaussian", "elliptical")
RULES = ("separation", "votes", "cover")
SELECTIONS = ("best", "random", "worst")
MIN_RATIO = 3  # candidates for each place, or the score does not select (Lu & Gweon 2025: r << h)


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "n_subsets": partial(whole, least=3),  # a third of them is selected
    "subset_size": _or_none(whole),
    "n_directions": whole,
    "n_selected": _or_none(whole),
    "k": whole,
    "ensemble": switch,
    "subsets": partial(one_of, allowed=KINDS),
    "score": partial(one_of, allowed=(*SCORES, NEIGHBOURS)),
    "lift": switch,
    "null": _or_none(partial(one_of, allowed=SURROGATES)),
    "rule": partial(one_of, allowed=RULES),
    "n_neighbours": partial(whole, least=2),
    "n_shifts": partial(whole, least=0),
    "select": partial(one_of, allowed=SELECTIONS),
    "n_stages": whole,
    "n_refinements": partial(whole, least=0),
    "full_null_size": partial(number, interval="[0, inf]"),
    "merge_cosine": partial(number, interval="(0, 1]"),
    "max_steps": whole,
    "max_rows": partial(whole, least=2),
}


def check_parameters(given: dict[str, Any]) -> None:
    """Raise ValueError for the first of the parameters given that has the wrong type or lies out of its range."""
    for name, value in given.items():
        if name in CHECKS:
            CHECKS[name](name, value)


@dataclass(frozen=True)
class SearchOptions:
    """What a search does; see `RkCNNMiner` for the meaning of each."""

    n_directions: int
    score: str = NEIGHBOURS
    lift: bool = True
    rule: str = "separation"
    select: str = "best"
    n_stages: int = 6
    n_refinements: int = 3
    merge_cosine: float = 0.9
    max_steps: int = 20
    n_neighbours: int = 16
    n_shifts: int = 3
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

    `filters`, `directions` (s, d), float64, unit rows; `targets` (s,), with labels, the class each points to. `funnel`
    has a row a round: round, drawn (subsets), candidates (distinct directions they lead to, apart from what is kept
    already), places (how many may be kept) and kept.
    """

    filters: torch.Tensor
    directions: torch.Tensor
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
