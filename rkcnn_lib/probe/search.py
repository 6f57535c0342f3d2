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
    """Score the subsets on X (n, d), lift them, keep the chosen ones of the distinct directions and orient them.

    Without labels and with lift: `n_stages` rounds. Each scores and lifts every subset on what the directions found so
    far leave unexplained, and keeps a round's share of what is new; so a few strong features cannot take all places. In
    the end `n_refinements` passes of sparse coding sharpen all directions together.
    """
    if y is not None:
        return search_labelled(X, subsets, y, options)
    return _search_in_rounds(X, subsets, options) if options.lift else _search_unlifted(X, subsets, options)


def _search_in_rounds(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    lift = (NeighbourLift if options.score == NEIGHBOURS else ContrastLift)(X, options)
    residual = lift.rows
    U, origin = residual.new_zeros(0, residual.shape[1]), torch.zeros(0, dtype=torch.long, device=X.device)
    funnel = []
    for stage in range(options.n_stages):
        scores, starts = lift.propose(residual, subsets)
        new = lift.lift(residual, starts)
        chosen, n = choose(scores, lift.compared(new), options, options.places, stage, lift.compared(U))
        funnel.append(_round(stage, len(subsets), n, options.places, len(chosen)))
        U, origin = torch.cat([U, new[chosen]]), torch.cat([origin, chosen])
        if stage + 1 < options.n_stages:
            residual = pursue(lift.rows, U, options.pursuit_steps, options.max_elements)
    D = lift.patterns(U)
    if options.n_refinements:
        D = refine(X - lift.origin, D, options.n_refinements, max_elements=options.max_elements)
    D, filters = lift.oriented(D)
    # What refinement or orientation brought together is one direction, the one chosen first.
    kept = distinct(D, -torch.arange(len(D), device=D.device), options.merge_cosine)
    return Found(filters[kept], D[kept], origin[kept], funnel)


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


def direction_scores(
    X: torch.Tensor, filters: torch.Tensor, options: SearchOptions, y: np.ndarray | None, targets: np.ndarray | None
) -> torch.Tensor:
    """Score (s,) of full-space filters on rows X: separation with labels, else concentration or contrast."""
    if y is not None and targets is not None:
        return separation_of_directions(X, filters, y, targets)
    if options.score == NEIGHBOURS:
        return concentration(X, filters, options.n_neighbours, options.max_elements)
    return contrast_of_directions(X, filters, options)
