"""The search itself: score subsets, select, lift, merge near-copies, refine; a pure function that surrogates re-run."""

from __future__ import annotations

import numpy as np
import torch

from rkcnn_lib.probe.contrast import ContrastLift, contrast_of_directions
from rkcnn_lib.probe.found import Found, SearchOptions, choose, distinct
from rkcnn_lib.probe.labelled import search_labelled, separation_of_directions
from rkcnn_lib.probe.lift import skew_sign
from rkcnn_lib.probe.moments import covariance
from rkcnn_lib.probe.neighbours import NEIGHBOURS, NeighbourLift, concentration
from rkcnn_lib.probe.refine import pursue, refine
from rkcnn_lib.probe.scores import principal_directions, subset_scores
from rkcnn_lib.probe.subsets import Subsets


def search(X: torch.Tensor, subsets: Subsets, options: SearchOptions, y: np.ndarray | None = None) -> Found:
    """Score the subsets on X (n, d), lift the chosen ones, merge near-copies and orient them.

    Without labels and with lift: `n_stages` rounds. Each scores every subset on what the directions found so
    far leave unexplained, lifts the `n_lifted` best, and adds what is new; so a few strong features cannot
    swallow all starts. In the end `n_refinements` passes of sparse coding sharpen all directions together.
    """
    if y is not None:
        return search_labelled(X, subsets, y, options)
    return _search_in_rounds(X, subsets, options) if options.lift else _search_unlifted(X, subsets, options)


def _search_in_rounds(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    lift = (NeighbourLift if options.score == NEIGHBOURS else ContrastLift)(X, options)
    residual = lift.rows
    U, origin = residual.new_zeros(0, residual.shape[1]), torch.zeros(0, dtype=torch.long, device=X.device)
    n_lifted = 0
    for stage in range(options.n_stages):
        share = torch.arange(len(subsets), device=X.device)[lift.share(len(subsets), stage)]
        scores, starts = lift.propose(residual, subsets.take(share))
        picked = choose(scores, starts, options, stage)
        new = lift.lift(residual, starts[picked])
        n_lifted += len(picked)
        kept = lift.merge(U, new, residual)
        U, origin = torch.cat([U, new])[kept], torch.cat([origin, share[picked]])[kept]
        if stage + 1 < options.n_stages:
            residual = pursue(lift.rows, U, options.pursuit_steps, options.max_elements)
    D = lift.patterns(U)
    if options.n_refinements:
        D = refine(X - lift.origin, D, options.n_refinements, max_elements=options.max_elements)
    D, filters = lift.oriented(D)
    # What refinement or orientation brought together is one direction; the order is that of merging, best first.
    kept = distinct(D, -torch.arange(len(D), device=D.device).double(), options.merge_cosine)
    return Found(filters[kept], D[kept], origin[kept], n_lifted)


def _search_unlifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    """The baseline: each chosen subset's own principal direction, zero outside the subset."""
    size = options.max_elements
    principal = principal_directions(covariance(X, size)[1], subsets, size)
    scores = subset_scores(X, subsets, options.score, max_elements=size, principal=principal)
    D = principal[0] * skew_sign(X, principal[0].to(X.dtype), size).to(principal[0].dtype)
    picked = choose(scores, D, options)
    return Found(D[picked], D[picked], picked, 0)


def direction_scores(
    X: torch.Tensor, filters: torch.Tensor, options: SearchOptions, y: np.ndarray | None, targets: np.ndarray | None
) -> torch.Tensor:
    """Score (s,) of full-space filters on rows X: separation with labels, else concentration or contrast."""
    if y is not None and targets is not None:
        return separation_of_directions(X, filters, y, targets)
    if options.score == NEIGHBOURS:
        return concentration(X, filters, options.n_neighbours, options.max_elements)
    return contrast_of_directions(X, filters, options)
