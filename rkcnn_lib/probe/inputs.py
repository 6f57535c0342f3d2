"""What the estimators, `mine` and a search are told and given: parameters and rows, checked and at one scale."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state as sklearn_random_state
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from rkcnn_lib.tensors import MAX_SEED, as_matrix, chunks, exponent, number, one_of, switch, whole

KINDS = ("coordinate", "rotated")  # of subsets
NEIGHBOURS = "neighbours"
CONTRASTS = ("kurtosis", "logcosh", "skew")
LABELLED_SCORES = ("separation", "knn_label_consistency")
SCORES = (*CONTRASTS, "coordinate_kurtosis", "variance_ratio", *LABELLED_SCORES)
SURROGATES = ("gaussian", "elliptical")
RULES = ("separation", "votes", "cover")
SELECTIONS = ("best", "random", "worst")


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


def estimator_rows(estimator: Any, X: Any, reset: bool = True, least: int = 1) -> torch.Tensor:
    """Rows given to an estimator as a checked tensor (n, d); with ``reset`` their columns are what it then expects."""
    if isinstance(X, torch.Tensor):
        rows = as_matrix(X, least=least)
        if reset:
            estimator.n_features_in_ = rows.shape[1]
        elif rows.shape[1] != estimator.n_features_in_:
            raise ValueError(f"X has {rows.shape[1]} columns; this was fitted with {estimator.n_features_in_}")
        return rows
    if np.ma.is_masked(X):
        as_matrix(X)  # scikit-learn would forget the mask
    try:
        return as_matrix(validate_data(estimator, X, reset=reset, ensure_min_samples=least))
    except (ValueError, TypeError) as error:
        raise type(error)(f"X: {str(error)[:600]}") from error  # some print all of X


def result_dtype(X: Any, rows: torch.Tensor) -> torch.dtype:
    """Type of the directions found in X, whose checked rows are ``rows``: float64 for float64, else float32."""
    double = str(getattr(X, "dtype", rows.dtype)).endswith("float64")
    return torch.float64 if double else torch.float32


def check_labels(y: Any, n: int) -> np.ndarray:
    """Labels as an array (n,); ValueError where they do not fit or are not those of classes."""
    y = one_a_row(y, n, "y")
    try:
        check_classification_targets(y)
    except ValueError as error:
        raise ValueError(f"y: {error}") from error
    n_classes = len(np.unique(y))
    if n_classes < 2:
        raise ValueError("y holds one class only; at least two classes are needed")
    if n_classes == n:
        raise ValueError(f"y holds {n} different labels in {n} rows; a class needs two rows to be told apart by")
    return y


def one_a_row(values: Any, n: int, name: str) -> np.ndarray:
    """Labels or groups as an array (n,), a column (n, 1) too; ValueError for NaN and for what cannot be ordered."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.shape == (n, 1):
        values = column_or_1d(values, warn=True)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape} but X has {n} rows; give one label a row")
    try:
        unknown = bool((values != values).any())  # NaN alone is not what it is
        np.unique(values)
    except TypeError as error:
        raise ValueError(f"{name} mixes what cannot be compared: {error}") from error
    if unknown:
        raise ValueError(f"{name} holds NaN; drop those rows first")
    return values


def check_random_state(value: Any) -> np.random.RandomState:
    """RandomState of None, a RandomState or a whole number; ValueError otherwise."""
    if value is None or isinstance(value, np.random.RandomState):
        return sklearn_random_state(value)
    return np.random.RandomState(whole("random_state", value, 0, MAX_SEED))


def varying_columns(X: torch.Tensor) -> torch.Tensor:
    """Numbers of the columns that vary, with a warning when some do not."""
    varying = torch.stack([(X[rows] != X[0]).any(0) for rows in chunks(len(X), X.shape[1])]).any(0)
    if not bool(varying.all()):
        left_out = int((~varying).sum())
        warnings.warn(f"{left_out} constant columns are left out (their entries are 0)", stacklevel=4)
    return varying.nonzero()[:, 0]


def centred(X: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some columns of X, centred and at unit mean square, float32 (n, c); and the mean of all columns, float64 (d,).

    Differences are formed in float64, a block of rows at a time: a large offset costs no precision.
    """
    blocks = list(chunks(len(X), X.shape[1]))
    unit = 2.0 ** exponent(X)  # of numbers near the largest not even sums exist
    mean = sum(((X[rows].double() / unit).sum(0) for rows in blocks), X.new_zeros(())) / len(X)
    largest = max(float((X[rows].double() / unit - mean).abs().max()) for rows in blocks) or 1.0
    work = X.new_empty(len(X), len(columns), dtype=torch.float32)
    for rows in blocks:
        work[rows] = ((X[rows][:, columns].double() / unit - mean[columns]) / largest).float()
    square = sum(float(work[rows].double().square().sum()) for rows in blocks) / max(1, work.numel())
    return work.div_(square**0.5 or 1.0), mean * unit


def all_centred(X: torch.Tensor) -> torch.Tensor:
    """All columns of X (n, d), centred and at unit mean square, float32: what `mine` works on."""
    return centred(X, torch.arange(X.shape[1], device=X.device))[0]
