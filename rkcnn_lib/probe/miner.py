"""RkCNNMiner: draw -> score -> select -> lift -> deduplicate -> orient -> calibrate."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from rkcnn_lib.probe.inputs import (
    CONTRASTS,
    LABELLED_SCORES,
    NEIGHBOURS,
    Found,
    SearchOptions,
    centred,
    check_labels,
    check_parameters,
    check_random_state,
    estimator_rows,
    one_a_row,
    result_dtype,
    varying_columns,
)
from rkcnn_lib.probe.nulls import Halves, calibrate, split_rows
from rkcnn_lib.probe.scores import projection_contrast
from rkcnn_lib.probe.search import SelectionWarning, selects_nothing
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.tensors import scaled

MAX_ROWS = 2**18  # those beyond are left out at random before anything else


class _ScoreParameter:
    """Lets "score" be a parameter of the constructor and, on the instance, scikit-learn's method of that name."""

    def __get__(self, instance: Any, owner: type) -> Any:
        return NEIGHBOURS if instance is None else instance._mean_score

    def __set__(self, instance: Any, value: str) -> None:
        instance.__dict__["score"] = value


@dataclass(eq=False, repr=False)
class RkCNNMiner(TransformerMixin, BaseEstimator):
    """Mine feature directions from activations by random-subset probing (Lu & Gweon 2025, PeerJ CS 11:e2497).

    h random subsets are drawn, scored and lifted to the full space; near-copies are merged and the best kept (without
    labels in `n_stages` rounds, each on what the directions so far leave unexplained, with r / n_stages places);
    directions are oriented, and those kept whose score on rows that the search did not see beats the 95 % point of the
    *maximum* of the same search on 99 null data sets.

    Attributes
    ----------
    directions_ : (n_kept, d), array or tensor as X
        Patterns, unit rows, best score first; signed so that projections are skewed to the right (with labels: towards
        the class).
    filters_ : (n_kept, d), unit rows that read the directions out; mean_ : (d,); n_kept_ : int
    scores_ : (n_kept,) on held-out rows; score_ : str, which was used
    threshold_ : float or None; null_mode_ : {"full", "rescored"} or None
    subsets_ : Subsets, all h, over the original columns
    targets_ : (n_kept,) or None, with labels the class each direction points to
    funnel_ : list of dict
        What selection had to work with, a row a round (see `inputs.Found`); empty with labels.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.random((4000, 6)) * (rng.random((4000, 6)) < 0.05)
    >>> X = codes @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    >>> RkCNNMiner(n_subsets=60, n_directions=20).fit(X).n_kept_
    6
    """

    n_subsets: int = 600
    """h, the subsets drawn; rotated ones that make up the number count."""
    subset_size: int | None = None
    """m; None is round(sqrt(d)) of the columns that vary."""
    n_directions: int = 200
    """r: the most directions returned, r / n_stages of them a round. Cut to h // 3, with a warning, when larger. With
    fewer than 3 distinct candidates for each place of a round a `SelectionWarning` gives the numbers."""
    subsets: str = "coordinate"
    """"coordinate" or "rotated"."""
    score: Any = _ScoreParameter()  # a str, "neighbours"
    """Selects subsets (see `subset_scores`). "kurtosis", "logcosh" (bounded: for heavy-tailed activations) and "skew"
    are also the contrast that the lift climbs and that `scores_` reports; the other unlabelled scores leave those to
    kurtosis. "neighbours": each subset finds the nearest neighbours of a random row and is scored by how they separate
    in the complementary coordinates; the lift is their mean (see `rkcnn_lib.probe.neighbours`; filters equal
    directions). Labels given to `fit` are labels used: a score without labels then gives way to "separation"."""
    lift: bool = True
    """False keeps each subset's own direction, padded with zeros: the baseline, without labels only."""
    null: str | None = "elliptical"
    """Null data of the calibration: "elliptical" or "gaussian" (see `nulls.Surrogate`); with labels these are permuted
    instead, by group where groups are given. None switches calibration off: search and scores on all rows, all distinct
    directions returned, `threshold_` None; scores are then optimistic."""
    random_state: int | np.random.RandomState | None = 0
    _: KW_ONLY
    rule: str = "separation"
    """What makes a candidate good. "separation": the mean score of the subsets that lead to it. "votes": in how many of
    six independent ensembles of subsets, each with half of the rows, it is found again. "cover": how much nearer rows
    that are not searched come to a direction chosen (greedy facility location; see `search.cover`). With labels or
    without lift it is always "separation"."""
    select: str = "best"
    """Which candidates are kept; "random" and "worst" are controls. With "random" nothing ranks by a score: the first
    drawn of near-copies stays, and directions are returned in the order drawn."""
    n_stages: int = 6
    """Rounds. More of them have fewer places each, and so more candidates for a place."""
    n_neighbours: int = 16
    """Rows of a pseudo-class, with "neighbours"; at least 2."""
    n_shifts: int = 3
    """Mean shifts of their lift: more lead to fewer different directions."""
    n_refinements: int = 3
    """Passes of sparse coding that sharpen the directions together at the end (see `lift.refine`); without labels and
    with lift only."""
    full_null_size: float = 2e7
    """The search is run again in full on every surrogate when rows * columns * h * n_stages (10 h for "neighbours") is
    at most this. Above, the directions found, made up with random ones to the number of candidates, are scored again on
    every surrogate's held-out rows, which no direction has seen. `null_mode_` says which was done."""
    merge_cosine: float = 0.9
    """Directions with a signed cosine above it count as one."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the constructor by name; "score" is the name of the score, not the method."""
        return {**super().get_params(deep), "score": self.__dict__["score"]}

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> RkCNNMiner:
        """Mine directions from X (n, d), an array or a tensor; y and groups (n,) are optional.

        ValueError for bad parameters, empty or non-finite X, fewer rows or varying columns than the subset size, labels
        of another length, of one class or all different.
        """
        check_parameters(self.get_params(deep=False))
        given = estimator_rows(self, X, least=2)
        dtype, n = result_dtype(X, given), len(given)
        y = None if y is None else check_labels(y, n)
        groups = None if groups is None else one_a_row(groups, n, "groups")
        self.score_ = self._score_name(y)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=5)
        if n > MAX_ROWS:
            some = np.sort(np.random.RandomState(int(seeds[4])).permutation(n)[:MAX_ROWS])
            given = given[torch.as_tensor(some, device=given.device)]
            y, groups, n = y if y is None else y[some], groups if groups is None else groups[some], len(some)
        columns = varying_columns(given)
        m = max(1, round(len(columns) ** 0.5)) if self.subset_size is None else self.subset_size
        if len(columns) < m:
            raise ValueError(f"only {len(columns)} columns vary, fewer than subset_size={m}")
        if n < m:
            raise ValueError(f"X has n_samples={n}, fewer than subset_size={m}; give more rows")
        work, mean = centred(given, columns)
        drawn = draw_subsets(len(columns), m, self.n_subsets, self.subsets, int(seeds[0]))
        subsets, options = drawn.to(work.device), self._options(int(seeds[1]))
        halves = (np.arange(n),) * 2 if self.null is None else split_rows(n, y, groups, int(seeds[2]))
        if y is not None and len(np.unique(y[halves[0]])) < 2:
            raise ValueError("the groups leave one class in the half searched; give more groups or null=None")
        data = Halves(work, y, groups, *halves)
        found = data.search(subsets, options)
        scores = data.score(found, options)
        self.threshold_ = self.null_mode_ = None
        if self.null is not None:
            # What a round's cost grows with; looking for neighbours costs about ten lifts a subset.
            each = self.n_subsets * (10 if self.score_ == NEIGHBOURS else 1)
            full = work.numel() * each * self.n_stages <= self.full_null_size
            self.threshold_ = calibrate(data, subsets, options, found, self.null, full, int(seeds[3]))
            self.null_mode_ = "full" if full else "rescored"
        self._store(found, scores, columns, mean.to(dtype), isinstance(X, torch.Tensor))
        self.subsets_ = drawn.expand(columns.cpu(), len(mean))
        self.funnel_ = found.funnel
        if problem := selects_nothing(found.funnel):
            warnings.warn(problem, SelectionWarning, stacklevel=2)
        return self

    def transform(self, X: Any) -> Any:
        """Project: ``(X - mean_) @ filters_.T``, (n, n_kept), in the kind of X."""
        check_is_fitted(self)
        rows = estimator_rows(self, X, reset=False)
        mean, filters = (torch.as_tensor(a, device=rows.device) for a in (self.mean_, self.filters_))
        dtype = torch.promote_types(rows.dtype, filters.dtype)
        projected = (rows.to(dtype) - mean) @ filters.to(dtype).T
        return projected if isinstance(X, torch.Tensor) else projected.numpy()

    def _mean_score(self, X: Any, y: Any = None) -> float:
        """Mean contrast of the projections of X on the directions (0 when there are none)."""
        P = scaled(torch.as_tensor(self.transform(X))).float()
        contrast = self.score_ if self.score_ in CONTRASTS else "kurtosis"
        own = torch.eye(self.n_kept_, device=P.device)
        return float(projection_contrast(P, own, contrast).mean()) if self.n_kept_ else 0.0

    def _score_name(self, y: np.ndarray | None) -> str:
        name = self.__dict__["score"]
        if y is not None and not self.lift:
            raise ValueError("lift=False is the baseline of a search without labels; use lift=True")
        if name in LABELLED_SCORES and y is None:
            raise ValueError(f"score={name!r} needs labels; give y")
        if name == NEIGHBOURS and y is None and not self.lift:
            raise ValueError("score='neighbours' is a lift of its own; use lift=True or another score")
        return name if y is None or name in LABELLED_SCORES else "separation"

    def _options(self, seed: int) -> SearchOptions:
        r = min(self.n_directions, self.n_subsets // 3)
        if r < self.n_directions:
            given = f"n_directions={self.n_directions} is more than a third of n_subsets={self.n_subsets}"
            warnings.warn(f"{given}, so the score would hardly select; cut to {r}", stacklevel=3)
        own = {"n_directions": r, "score": self.score_, "seed": seed}
        shared = {f.name: getattr(self, f.name) for f in fields(SearchOptions) if f.name not in own}
        return SearchOptions(**own, **shared)

    def _store(
        self, found: Found, scores: torch.Tensor, columns: torch.Tensor, mean: torch.Tensor, as_tensors: bool
    ) -> None:
        """Rank, apply the threshold and expand to all columns, in the type of the mean."""
        order = torch.arange(len(scores), device=scores.device)
        if self.select != "random":
            order = scores.argsort(descending=True, stable=True)
        if self.threshold_ is not None:
            order = order[scores[order] > self.threshold_]
        order = order[: min(self.n_directions, self.n_subsets // 3)]
        full = mean.new_zeros(2, len(order), len(mean))
        full[:, :, columns] = torch.stack([found.directions, found.filters])[:, order].to(full)
        parts: Any = (*full, mean) if as_tensors else (part.cpu().numpy() for part in (*full, mean))
        self.directions_, self.filters_, self.mean_ = parts
        index = order.cpu().numpy()
        self.scores_ = scores.cpu().numpy()[index]
        self.targets_ = None if found.targets is None else found.targets[index]
        self.n_kept_ = len(index)
