"""The search itself: score subsets, select, lift, merge near-copies, refine; a pure function that null data re-run."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.lift import ContrastLift, fisher_lift, pursue, refine, skew_sign
from rkcnn_lib.probe.neighbours import NeighbourLift, concentration, unit
from rkcnn_lib.probe.parameters import NEIGHBOURS, Found, SearchOptions
from rkcnn_lib.probe.scores import (
    covariance,
    principal_directions,
    projection_contrast,
    scatter_matrices,
    subset_scores,
)
from rkcnn_lib.probe.selection import N_ENSEMBLES, choose, distinct, votes
from rkcnn_lib.probe.subsets import Subsets

MAX_COVERED = 4000  # rows that rule="cover" covers
PURSUIT_STEPS = 2  # directions by which a row is coded before the next round


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
    U = residual.new_zeros(0, residual.shape[1])
    funnel = []
    for stage in range(options.n_stages):
        scores, new = _proposed(lift, residual, subsets, options, stage)
        chosen, n = choose(scores, lift.patterns(new), options, options.places, stage, lift.patterns(U), covered)
        funnel.append(_round(stage, subsets, n, options.places, chosen))
        U = torch.cat([U, new[chosen]])
        if stage + 1 < options.n_stages:
            residual = pursue(lift.rows[searched], U, PURSUIT_STEPS)
    D = lift.patterns(U).double()
    if options.n_refinements:
        D = refine(X - lift.origin, D, options.n_refinements)
    D, filters = lift.oriented(D)
    # What refinement or orientation brought together is one direction, the one chosen first.
    kept = distinct(D, -torch.arange(len(D), device=D.device), options.merge_cosine)
    return Found(filters[kept], D[kept], funnel)


def _rows_to_cover(
    lift: NeighbourLift | ContrastLift, X: torch.Tensor, options: SearchOptions
) -> tuple[slice | torch.Tensor, torch.Tensor | None]:
    """Which of the lift's rows are searched, and with ``rule="cover"`` those (n, d), of norm 1, that are covered."""
    if options.rule != "cover":
        return slice(None), None
    order = torch.as_tensor(np.random.RandomState(options.seed).permutation(len(lift.rows)), device=X.device)
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


def _round(stage: int, subsets: Subsets, candidates: int, places: int, chosen: torch.Tensor) -> dict[str, int]:
    counts = {"drawn": len(subsets), "candidates": candidates, "places": places, "kept": len(chosen)}
    return {"round": stage + 1, **counts}


def _search_unlifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    """The baseline: each chosen subset's own principal direction, zero outside the subset."""
    principal = principal_directions(covariance(X)[1], subsets)
    scores = subset_scores(X, subsets, options.score, principal=principal)
    D = principal[0] * skew_sign(X, principal[0].to(X.dtype)).to(principal[0].dtype)
    chosen, n = choose(scores, D, options, options.n_directions)
    return Found(D[chosen], D[chosen], [_round(0, subsets, n, options.n_directions, chosen)])


def _search_labelled(X: torch.Tensor, subsets: Subsets, y: np.ndarray, options: SearchOptions) -> Found:
    """Distinct directions that the chosen subsets vote for, each for the class that it separates best.

    The full-space lift does not depend on the subset, so at most one direction a class is found, and there is no
    funnel: the score decides only which classes are voted for. Labels of one class (those permuted by group can leave
    one in a half) give none.
    """
    if len(np.unique(y)) < 2:
        none = X.new_zeros(0, X.shape[1], dtype=torch.float64)
        return Found(none, none, [], y[:0])
    scores = subset_scores(X, subsets, options.score, y=y)
    targets, filters, difference = fisher_lift(X, y)
    # WV of a subset is the same for all classes, so it does not enter the choice of the one that it separates best.
    best = [int(subsets.restrict(difference, i).square().sum(1).argmax()) for i in range(len(subsets))]
    patterns = normalize(difference, dim=1)
    chosen, _ = choose(scores, patterns[best], options, options.n_directions)
    best = np.array(best)[chosen.cpu().numpy()]
    return Found(filters[best], patterns[best], [], targets[best])


def direction_scores(X: torch.Tensor, found: Found, options: SearchOptions, y: np.ndarray | None) -> torch.Tensor:
    """Score (s,) of the filters found on rows X: separation with labels, else concentration or contrast."""
    if found.targets is not None and y is not None:
        return _separation_of_directions(X, found.filters, y, found.targets)
    if options.score == NEIGHBOURS:
        return concentration(X, found.filters, options.n_neighbours)
    return projection_contrast(X, found.filters.to(X.dtype), options.contrast)


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
