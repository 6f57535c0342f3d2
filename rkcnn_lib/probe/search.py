"""The search itself: score subsets, select, lift, merge near-copies, refine; a pure function that surrogates re-run.

And its calibration: the threshold that the best direction of the same search on null data seldom exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.lift import ContrastLift, fisher_lift, pursue, refine, skew_sign, whiten
from rkcnn_lib.probe.moments import covariance, projection_contrast
from rkcnn_lib.probe.neighbours import NeighbourLift, concentration, unit
from rkcnn_lib.probe.nulls import Surrogate, max_statistic_threshold, permute_labels
from rkcnn_lib.probe.parameters import NEIGHBOURS, Found, SearchOptions
from rkcnn_lib.probe.scores import principal_directions, scatter_matrices, subset_scores
from rkcnn_lib.probe.selection import N_ENSEMBLES, choose, distinct, votes
from rkcnn_lib.probe.subsets import Subsets

MAX_COVERED = 4000  # rows that rule="cover" covers


def search(X: torch.Tensor, subsets: Subsets, options: SearchOptions, y: np.ndarray | None = None) -> Found:
    """Score the subsets on X (n, d), lift them, keep the chosen ones of the distinct directions and orient them.

    Without labels and with lift: `n_stages` rounds. Each scores and lifts every subset on what the directions found so
    far leave unexplained, and keeps a round's share of what is new; so a few strong features cannot take all places. In
    the end `n_refinements` passes of sparse coding sharpen all directions together.
    """
    if y is not None:
        return _search_labelled(X, subsets, y, options)
    return _search_in_rounds(X, subsets, options) if options.lift else _search_unlifted(X, subsets, options)


def _search_in_rounds(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    lift = (NeighbourLift if options.score == NEIGHBOURS else ContrastLift)(X, options)
    searched, covered = _rows_to_cover(lift, X, options)
    residual = lift.rows[searched]
    U, origin = residual.new_zeros(0, residual.shape[1]), torch.zeros(0, dtype=torch.long, device=X.device)
    funnel = []
    for stage in range(options.n_stages):
        scores, new = _proposed(lift, residual, subsets, options, stage)
        chosen, n = choose(scores, lift.patterns(new), options, options.places, stage, lift.patterns(U), covered)
        funnel.append(_round(stage, len(subsets), n, options.places, len(chosen)))
        U, origin = torch.cat([U, new[chosen]]), torch.cat([origin, chosen])
        if stage + 1 < options.n_stages:
            residual = pursue(lift.rows[searched], U, options.pursuit_steps, options.max_elements)
    D = lift.patterns(U).double()
    if options.n_refinements:
        D = refine(X - lift.origin, D, options.n_refinements, max_elements=options.max_elements)
    D, filters = lift.oriented(D)
    # What refinement or orientation brought together is one direction, the one chosen first.
    kept = distinct(D, -torch.arange(len(D), device=D.device), options.merge_cosine)
    return Found(filters[kept], D[kept], origin[kept], funnel)


def _rows_to_cover(
    lift: NeighbourLift | ContrastLift, X: torch.Tensor, options: SearchOptions
) -> tuple[slice | torch.Tensor, torch.Tensor | None]:
    """Which of the lift's rows are searched, and with ``rule="cover"`` those (n, d), of norm 1, that are covered."""
    if options.rule != "cover":
        return slice(None), None
    order = np.random.RandomState(options.seed).permutation(len(lift.rows))
    order = torch.as_tensor(order, device=X.device)
    n = min(MAX_COVERED, len(order) // 4)
    return order[n:], unit(lift.raw(lift.rows[order[:n]]))


def _proposed(
    lift: NeighbourLift | ContrastLift, residual: torch.Tensor, subsets: Subsets, options: SearchOptions, stage: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (h,) of all subsets in a round, and the directions (h, d) they lead to.

    With ``rule="votes"`` subsets are dealt to ensembles, each of which sees half of the residual's rows, drawn anew.
    """
    if options.rule != "votes":
        scores, starts = lift.propose(residual, subsets)
        return scores, lift.lift(residual, starts)
    rng = np.random.RandomState([options.seed, stage])
    dealt = torch.arange(len(subsets), device=residual.device) % N_ENSEMBLES
    scores = torch.zeros(len(subsets), dtype=torch.float64, device=residual.device)
    new = residual.new_zeros(len(subsets), residual.shape[1])
    for ensemble in range(min(N_ENSEMBLES, len(subsets))):
        half = rng.permutation(len(residual))[: -(-len(residual) // 2)]
        rows = residual[torch.as_tensor(half, device=residual.device)]
        own = (dealt == ensemble).nonzero()[:, 0]
        scores[own], starts = lift.propose(rows, subsets.take(own))
        new[own] = lift.lift(rows, starts).to(new)
    return votes(lift.patterns(new), dealt, scores), new


def _round(stage: int, drawn: int, candidates: int, places: int, kept: int) -> dict[str, int]:
    return {"round": stage + 1, "drawn": drawn, "candidates": candidates, "places": places, "kept": kept}


def _search_unlifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    """The baseline: each chosen subset's own principal direction, zero outside the subset."""
    size, r = options.max_elements, options.n_directions
    principal = principal_directions(covariance(X, size)[1], subsets, size)
    scores = subset_scores(X, subsets, options.score, max_elements=size, principal=principal)
    D = principal[0] * skew_sign(X, principal[0].to(X.dtype), size).to(principal[0].dtype)
    chosen, n = choose(scores, D, options, r)
    return Found(D[chosen], D[chosen], chosen, [_round(0, len(subsets), n, r, len(chosen))])


def _search_labelled(X: torch.Tensor, subsets: Subsets, y: np.ndarray, options: SearchOptions) -> Found:
    """Distinct directions that the chosen subsets vote for, each for the class that it separates best.

    The full-space lift no longer depends on the subset, so at most one direction a class is found, and there is no
    funnel: the score decides only which classes are voted for. Without lift a direction is Fisher's within its subset.
    Labels of one class (those permuted by group can leave one in a half) give none.
    """
    if len(np.unique(y)) < 2:
        none = X.new_zeros(0, X.shape[1], dtype=torch.float64)
        return Found(none, none, torch.zeros(0, dtype=torch.long, device=X.device), [], y[:0])
    scores = subset_scores(X, subsets, options.score, y=y, max_elements=options.max_elements)
    targets, difference, best = _class_of_each(X, subsets, y)
    if options.lift:
        _, filters, patterns = fisher_lift(X, y, options.shrinkage)
        filters, patterns = filters[best], patterns[best]
    else:
        filters, patterns = _fisher_within(X, subsets, y, difference[best])
    chosen, _ = choose(scores, patterns, options, options.n_directions)
    return Found(filters[chosen], patterns[chosen], chosen, [], targets[best[chosen].cpu().numpy()])


def _class_of_each(X: torch.Tensor, subsets: Subsets, y: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Classes, mean differences (c, d) of each against the rest, and which of them each subset separates best."""
    classes = np.unique(y)
    targets = classes[1:] if len(classes) == 2 else classes
    wide = X.to(torch.float64)
    inside = torch.as_tensor(y[None] == targets[:, None], device=X.device).to(torch.float64)  # (c, n)
    n_inside = inside.sum(1, keepdim=True)
    sums = inside @ wide
    difference = sums / n_inside - (wide.sum(0) - sums) / (len(y) - n_inside)
    # WV of a subset is the same for all classes, so it does not enter the choice
    best = [int((subsets.restrict(difference, i).square().sum(1)).argmax()) for i in range(len(subsets))]
    return targets, difference, torch.as_tensor(best, device=X.device)


def _fisher_within(
    X: torch.Tensor, subsets: Subsets, y: np.ndarray, difference: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit filters and patterns (s, d) of Fisher's direction inside each subset, zero outside it."""
    _, within = scatter_matrices(X, y)
    ridge = 1e-6 * within.trace() / len(within) + 1e-30
    filters, patterns = torch.zeros_like(difference), torch.zeros_like(difference)
    for row in range(len(subsets)):
        basis = subsets.basis(row).to(within.dtype)
        inner = basis @ within @ basis.T + ridge * torch.eye(len(basis), device=X.device)
        filters[row] = torch.linalg.solve(inner, basis @ difference[row]) @ basis
        patterns[row] = basis.T @ (basis @ difference[row])
    return normalize(filters, dim=1), normalize(patterns, dim=1)


def direction_scores(
    X: torch.Tensor, filters: torch.Tensor, options: SearchOptions, y: np.ndarray | None, targets: np.ndarray | None
) -> torch.Tensor:
    """Score (s,) of full-space filters on rows X: separation with labels, else concentration or contrast."""
    if y is not None and targets is not None:
        return _separation_of_directions(X, filters, y, targets)
    if options.score == NEIGHBOURS:
        return concentration(X, filters, options.n_neighbours, options.max_elements)
    return projection_contrast(X, filters.to(X.dtype), options.contrast, options.max_elements)


def _separation_of_directions(
    X: torch.Tensor, filters: torch.Tensor, y: np.ndarray, targets: np.ndarray
) -> torch.Tensor:
    """Separation (s,) of each filter's target class and the rest; 0 for a class that is absent or fills the rows."""
    scores = torch.zeros(len(filters), dtype=torch.float64, device=X.device)
    for target in np.unique(targets):
        inside = y == target
        if inside.all() or not inside.any():
            continue
        rows = torch.as_tensor(np.flatnonzero(targets == target), device=X.device)
        between, within = scatter_matrices(X @ filters[rows].to(X.dtype).T, inside)
        spread = within.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        scores[rows] = (between.diagonal() / spread).clamp_max(1e300)
    return scores


@dataclass(frozen=True)
class Halves:
    """Rows (n, d) with labels and groups (n,) or None, and which of them are searched and which are scored on."""

    X: torch.Tensor
    y: np.ndarray | None
    groups: np.ndarray | None
    searched: np.ndarray
    held: np.ndarray

    def search(self, subsets: Subsets, options: SearchOptions, X: torch.Tensor, y: np.ndarray | None) -> Found:
        """Search the first half of X, which is the data or a null draw of it."""
        return search(X[self._index(self.searched)], subsets, options, None if y is None else y[self.searched])

    def score(self, found: Found, options: SearchOptions, X: torch.Tensor, y: np.ndarray | None) -> torch.Tensor:
        """Scores (s,) of what was found on the other half of X."""
        labels = None if y is None else y[self.held]
        return direction_scores(X[self._index(self.held)], found.filters, options, labels, found.targets)

    def _index(self, rows: np.ndarray) -> torch.Tensor | slice:
        return slice(None) if len(rows) == len(self.X) else torch.as_tensor(rows, device=self.X.device)


def split_rows(n: int, y: np.ndarray | None, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of range(n): whole groups where there are groups, else each class in both halves."""
    rng = np.random.RandomState(seed)
    if groups is not None and len(np.unique(groups)) > 1:
        names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        order = rng.permutation(len(names))
        first = np.zeros(len(names), dtype=bool)
        n_first = max(1, int((np.cumsum(sizes[order]) <= n / 2).sum()))
        first[order[:n_first]] = True
        inside = first[group]
    else:
        rank = rng.permutation(n)
        if y is not None:  # rank rows within their class: the search half then holds every class
            codes = np.unique(y, return_inverse=True)[1]
            order = np.lexsort((rank, codes))
            first_of_class = np.searchsorted(codes[order], codes[order])
            rank[order] = np.arange(n) - first_of_class
        inside = rank % 2 == 0
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def calibrate(
    data: Halves, subsets: Subsets, options: SearchOptions, found: Found, null: str, n_surrogates: int, full: bool,
    seed: int,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """Threshold at the 95 % point of the maximum score of the search on null data, and the maxima behind it.

    Null data are surrogates of the kind `null`; with labels these are permuted instead, by group where there are
    groups. `full` searches every one of them anew. Otherwise what was found, made up with random directions to the
    number of candidates, is scored again on their held-out half.
    """
    X, y = data.X, data.y
    candidates = None if full else _with_random_fill(data, found, options, seed)
    generator = torch.Generator(device=X.device).manual_seed(seed)
    rng = np.random.RandomState(seed)
    source = Surrogate(X, null) if y is None else None
    maxima = []
    for _ in range(n_surrogates):
        null_X = source.draw(generator) if source else X
        null_y = None if y is None else permute_labels(y, data.groups, rng)
        scored = data.search(subsets, options, null_X, null_y) if candidates is None else candidates
        scores = data.score(scored, options, null_X, null_y)
        maxima.append(float(scores.max()) if len(scores) else 0.0)
    return max_statistic_threshold(np.array(maxima)), np.array(maxima)


def _with_random_fill(data: Halves, found: Found, options: SearchOptions, seed: int) -> Found:
    """The directions found and random ones, as many together as there were candidates (at least r)."""
    n_candidates = sum(row["candidates"] for row in found.funnel)
    n_fill = max(0, max(n_candidates, options.n_directions) - len(found.filters))
    rng = np.random.RandomState(seed)
    noise = torch.as_tensor(rng.standard_normal((n_fill, data.X.shape[1])), device=data.X.device)
    white = whiten(data.X[torch.as_tensor(data.searched, device=data.X.device)], options.shrinkage)
    filters = torch.cat([found.filters, white.filters(noise)])
    targets = None if found.targets is None else np.concatenate([found.targets, rng.choice(found.targets, n_fill)])
    return Found(filters, filters, found.origin, found.funnel, targets)
