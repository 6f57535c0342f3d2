"""The search, a pure function that null data re-run: score subsets, lift, merge near-copies, select, refine.

Within a round all rules and their controls ("random", "worst") choose from one pool, in which no score has a say. From
the second round on a pool comes from what the rule's own earlier choices leave unexplained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import NEIGHBOURS, Found, SearchOptions
from rkcnn_lib.probe.lift import ContrastLift, fisher_lift, pursue, refine, skew_sign
from rkcnn_lib.probe.neighbours import NeighbourLift, concentration, distinct, unit
from rkcnn_lib.probe.scores import (
    covariance,
    principal_directions,
    projection_contrast,
    scatter_matrices,
    subset_scores,
)
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import chunks

MAX_COVERED = 4000  # rows that rule="cover" covers
PURSUIT_STEPS = 2  # directions by which a row is coded before the next round
MIN_RATIO = 3  # candidates for each place, or the score does not select (Lu & Gweon 2025: r << h)
BLOCK = 256  # candidates whose gains are summed at once
REFRESHED = 128  # candidates whose gain the lazy greedy search computes anew at once
FOUND_AGAIN = 0.8  # cosine from which another ensemble's direction is the same one
N_ENSEMBLES = 6  # of subsets, each with half of the rows


def search(X: torch.Tensor, y: np.ndarray | None, subsets: Subsets, options: SearchOptions) -> Found:
    """Score the subsets on X (n, d), lift them, keep the chosen ones of the distinct directions and orient them.

    Without labels and with lift: `n_stages` rounds. Each scores and lifts every subset on what the directions found so
    far leave unexplained, and keeps a round's share of what is new; so a few strong features cannot take all places. In
    the end `n_refinements` passes of sparse coding sharpen all directions together.
    """
    if y is not None:
        return _search_labelled(X, y, subsets, options)
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
        return lift.propose(residual, subsets)
    rng = np.random.RandomState([options.seed, stage])
    dealt = torch.arange(len(subsets), device=residual.device) % N_ENSEMBLES
    scores = torch.zeros(len(subsets), dtype=torch.float64, device=residual.device)
    new = residual.new_zeros(len(subsets), residual.shape[1])
    for ensemble in range(min(N_ENSEMBLES, len(subsets))):
        half = rng.permutation(len(residual))[: -(-len(residual) // 2)]
        rows = residual[torch.as_tensor(half, device=residual.device)]
        own = (dealt == ensemble).nonzero()[:, 0]
        scores[own], lifted = lift.propose(rows, subsets.take(own))
        new[own] = lifted.to(new)
    return votes(lift.patterns(new), dealt, scores), new


def _round(stage: int, subsets: Subsets, candidates: int, places: int, chosen: torch.Tensor) -> dict[str, int]:
    counts = {"drawn": len(subsets), "candidates": candidates, "places": places, "kept": len(chosen)}
    return {"round": stage + 1, **counts}


def _search_unlifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    """The baseline: each chosen subset's own principal direction, zero outside the subset."""
    principal = principal_directions(covariance(X)[1], subsets)
    scores = subset_scores(X, subsets, options.score, principal=principal)
    D = principal[0] * skew_sign(X, principal[0])
    chosen, n = choose(scores, D, options, options.n_directions)
    return Found(D[chosen], D[chosen], [_round(0, subsets, n, options.n_directions, chosen)])


def _search_labelled(X: torch.Tensor, y: np.ndarray, subsets: Subsets, options: SearchOptions) -> Found:
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


def direction_scores(X: torch.Tensor, y: np.ndarray | None, found: Found, options: SearchOptions) -> torch.Tensor:
    """Score (s,) of the filters found on rows X: concentration or contrast, with labels separation.

    That of the target class and the rest, and 0 where the class is absent or fills the rows.
    """
    if found.targets is None or y is None:
        if options.score == NEIGHBOURS:
            return concentration(X, found.filters, options.n_neighbours)
        return projection_contrast(X, found.filters.to(X.dtype), options.contrast)
    scores = torch.zeros(len(found.filters), dtype=torch.float64, device=X.device)
    for target in np.unique(found.targets):
        inside = y == target
        if inside.all() or not inside.any():
            continue
        rows = torch.as_tensor(np.flatnonzero(found.targets == target), device=X.device)
        between, within = scatter_matrices(X @ found.filters[rows].to(X.dtype).T, inside)
        spread = within.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        scores[rows] = (between.diagonal() / spread).clamp_max(1e300)
    return scores


def choose(
    scores: torch.Tensor,
    directions: torch.Tensor,
    options: SearchOptions,
    places: int,
    stage: int = 0,
    kept: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """Choose at most `places` of the distinct directions that subsets lead to: the best, the worst or random ones.

    `scores` (h,) are those of the subsets, `directions` (h, d) the unit ones that they lead to. Near-copies are merged
    first, and the first drawn stays; its score is the mean over all subsets that lead to it: one subset's is noisy.
    What lies near a direction that earlier rounds `kept` (s, d) is no candidate. `rows` (n, d), of norm 1 and not
    searched, are what ``rule="cover"`` covers. Returns rows of `directions` (r,) int64, best (or worst) first, random
    ones as drawn; and how many candidates there were.
    """
    kept = directions[:0] if kept is None else kept
    joined = torch.cat([kept, directions])
    first = distinct(joined, -torch.arange(len(joined), device=joined.device), options.merge_cosine)
    candidates = first[first >= len(kept)] - len(kept)
    if options.select == "random":
        picked = np.random.RandomState([options.seed, stage]).permutation(len(candidates))[:places]
        return candidates[torch.as_tensor(np.sort(picked), device=candidates.device)], len(candidates)
    if options.rule == "cover" and rows is not None:
        picked = cover(directions[candidates], kept, rows, places, worst=options.select == "worst")
    else:
        scores = scores.double().nan_to_num().clamp(-1e300, 1e300)
        value = scores[candidates]
        for part in chunks(len(candidates), len(directions)):
            own = candidates[part]
            near = directions[own] @ directions.T > options.merge_cosine
            near[torch.arange(len(own), device=near.device), own] = True
            near = near.double()
            value[part] = (near @ scores) / near.sum(1)
        picked = value.argsort(descending=options.select == "best", stable=True)[:places]
    return candidates[picked], len(candidates)


def votes(directions: torch.Tensor, ensemble: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """In how many other ensembles each direction is found again, (h,) float64; of as many votes the score decides.

    `directions` (h, d), unit rows; `ensemble` (h,) int64, which of them come from one independent search; `scores`
    (h,), whose rank adds less than a vote.
    """
    found = torch.zeros(len(directions), dtype=torch.float64, device=directions.device)
    for part in chunks(len(directions), len(directions)):
        near = directions[part] @ directions.T >= FOUND_AGAIN
        for name in ensemble.unique():
            found[part] += near[:, ensemble == name].any(1) & (ensemble[part] != name)
    return found + scores.argsort().argsort().double() / len(scores)


def cover(
    candidates: torch.Tensor, kept: torch.Tensor, rows: torch.Tensor, places: int, worst: bool = False
) -> torch.Tensor:
    """Choose so that every row has a direction near it: greedy facility location, (places,) int64, first chosen first.

    What is raised is the sum over the unit `rows` (n, d) of the largest squared one-sided cosine with any direction
    chosen, or of `kept`: submodular, so that greedy choices reach 1 - 1/e of the best (Nemhauser, Wolsey & Fisher 1978)
    and only candidates whose last gain leads are looked at again (Minoux 1978). `worst` takes those that add least to
    `kept`, each alone.
    """
    covered = torch.zeros(len(rows), device=rows.device)
    if len(kept):
        covered = (kept.to(rows) @ rows.T).clamp_min_(0).square_().amax(0)
    nearness = (candidates.to(rows) @ rows.T).clamp_min_(0).square_()  # (c, n)
    gains = torch.cat([(part - covered).clamp_min_(0).sum(1) for part in nearness.split(BLOCK)])
    places = min(places, len(candidates))
    if worst:
        return gains.argsort(stable=True)[:places]
    chosen = []
    while len(chosen) < places:
        bounds, look = gains.topk(min(REFRESHED + 1, len(gains)))
        look = look[:REFRESHED]
        fresh = (nearness[look] - covered).clamp_min_(0).sum(1)
        gains[look] = fresh
        best = int(fresh.argmax())
        if len(bounds) > REFRESHED and fresh[best] < bounds[-1]:
            continue  # one that was not looked at may gain more
        chosen.append(int(look[best]))
        gains[look[best]] = -1.0
        covered = torch.maximum(covered, nearness[look[best]])
    return torch.tensor(chosen, dtype=torch.long, device=rows.device)


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
