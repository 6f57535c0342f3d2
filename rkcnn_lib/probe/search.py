"""The search itself: score subsets, select, lift, merge near-copies; a pure function that surrogates re-run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe import neighbours
from rkcnn_lib.probe.lift import Whitening, ascend, fisher_lift, skew_sign, whiten
from rkcnn_lib.probe.scores import (
    CONTRASTS,
    MAX_ELEMENTS,
    chunks,
    covariance,
    principal_directions,
    projection_contrast,
    scatter_matrices,
    subset_scores,
)
from rkcnn_lib.probe.subsets import Subsets

SELECTIONS = ("best", "random", "worst")


@dataclass(frozen=True)
class SearchOptions:
    """What a search does; see `RkCNNMiner` for the meaning of each."""

    n_lifted: int
    score: str = "kurtosis"
    lift: bool = True
    select: str = "best"
    n_stages: int = 4
    merge_cosine: float = 0.9
    shrinkage: float | str = "auto"
    max_iter: int = 20
    pursuit_steps: int = 2
    n_neighbours: int = 16
    max_elements: int = MAX_ELEMENTS
    seed: int = 0

    @property
    def contrast(self) -> str:
        """The contrast that is climbed and that ranks directions: the score itself where it is one."""
        return self.score if self.score in CONTRASTS else "kurtosis"


@dataclass(frozen=True)
class Found:
    """Distinct directions of a search, in decreasing order of their score on the rows searched.

    Attributes
    ----------
    filters, directions : torch.Tensor of shape (s, d), float64, unit rows
    origin : torch.Tensor of shape (s,), int64
        Subset from which each was started.
    targets : array of shape (s,) or None
        With labels, the class each points to.
    n_lifted : int
        Starts that were lifted, all stages together.
    """

    filters: torch.Tensor
    directions: torch.Tensor
    origin: torch.Tensor
    n_lifted: int
    targets: np.ndarray | None = None


def distinct(directions: torch.Tensor, scores: torch.Tensor, cosine: float = 0.9) -> torch.Tensor:
    """Rows to keep so that no kept pair of unit directions (s, d) has a signed cosine above `cosine`.

    Greedy: the best score first, everything near it merged into it. Returns indices, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    left = order
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][directions[left[1:]] @ directions[left[0]] <= cosine]
    return torch.stack(kept) if kept else order


def pursue(Z: torch.Tensor, U: torch.Tensor, n_steps: int, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """What `n_steps` of one-sided matching pursuit (Mallat & Zhang 1993) with unit atoms U leave of Z (n, d)."""
    residual = Z.clone()
    for rows in chunks(len(Z), len(U), max_elements):
        part = residual[rows]
        for _ in range(n_steps):
            value, atom = (part @ U.T).max(1)
            part = part - value.clamp_min(0.0)[:, None] * U[atom]
        residual[rows] = part
    return residual


def choose(scores: torch.Tensor, n: int, select: str, seed: int) -> torch.Tensor:
    """Indices (n,) of the best, the worst or n random subsets."""
    if select == "random":
        picked = np.random.RandomState(seed).permutation(len(scores))[:n]
        return torch.as_tensor(picked, device=scores.device)
    return scores.argsort(descending=select == "best", stable=True)[:n]


def _lift_stage(
    Z: torch.Tensor, residual: torch.Tensor, white: Whitening, starts: torch.Tensor, options: SearchOptions
) -> torch.Tensor:
    """Whitened directions (s, d) reached from raw starts (s, d): climbed on the residual, then on Z itself."""
    arguments = {"contrast": options.contrast, "max_elements": options.max_elements}
    if residual is Z:
        return ascend(Z, white.from_filters(starts).to(Z.dtype), max_iter=options.max_iter, **arguments)
    own = whiten(residual, options.shrinkage, options.max_elements)  # pursuit left it anisotropic
    u = own.from_filters(white.from_filters(starts)).to(Z.dtype)
    u = ascend(own.apply(residual), u, max_iter=options.max_iter, **arguments)
    # A residual is missing pieces of every feature: a few steps on the data themselves put that right.
    return ascend(Z, own.patterns(u).to(Z.dtype), max_iter=max(1, options.max_iter // 4), **arguments)


def _starts(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """First principal direction (h, d) and score (h,) of every subset of X (n, d)."""
    size = options.max_elements
    principal = principal_directions(covariance(X, size)[1], subsets, size)
    return principal[0], subset_scores(X, subsets, options.score, max_elements=size, principal=principal)


def _search_lifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    white = whiten(X, options.shrinkage, options.max_elements)
    Z = white.apply(X)
    residual = Z
    U = Z.new_zeros(0, Z.shape[1])
    origin = torch.zeros(0, dtype=torch.long, device=X.device)
    n_lifted = 0
    for stage in range(options.n_stages):
        raw = residual @ white.root.to(Z.dtype)
        scores = subset_scores(raw, subsets, options.score, max_elements=options.max_elements)
        picked = choose(scores, options.n_lifted, options.select, options.seed + stage)
        starts, _ = principal_directions(covariance(raw, options.max_elements)[1], subsets, options.max_elements)
        u = _lift_stage(Z, residual, white, starts[picked], options)
        u = u * skew_sign(Z, u, options.max_elements)
        U, origin = torch.cat([U, u]), torch.cat([origin, picked])
        value = projection_contrast(Z, U, options.contrast, options.max_elements)
        kept = distinct(white.patterns(U), value, options.merge_cosine)
        U, origin = U[kept], origin[kept]
        n_lifted += len(picked)
        if stage + 1 < options.n_stages:
            residual = pursue(Z, U, options.pursuit_steps, options.max_elements)
    return Found(white.filters(U), white.patterns(U), origin, n_lifted)


def _search_neighbours(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    """The search of `rkcnn_lib.probe.neighbours`; every round adds at most its share of the directions asked for."""
    rng = np.random.RandomState(options.seed)
    sample = torch.as_tensor(np.sort(rng.permutation(len(X))[: neighbours.MAX_ROWS]), device=X.device)
    T = normalize(X[sample], dim=1)
    k = min(options.n_neighbours, len(T))
    share = -(-options.n_lifted // options.n_stages)
    U, origin = T.new_zeros(0, T.shape[1]), sample[:0]
    residual = T
    for stage in range(options.n_stages):
        anchors = neighbours.draw_anchors(residual, len(subsets), rng)
        unit = normalize(residual, dim=1)
        found = neighbours.pseudo_classes(unit, subsets, anchors, k, options.max_elements)
        picked = choose(found.scores, options.n_lifted, options.select, options.seed + stage)
        means = normalize(found.means[picked], dim=1)
        u = neighbours.mean_shift(unit, means, k, options.max_iter // 4, options.max_elements)
        # What is kept comes first, so that a new direction near it is merged into it and not the other way round.
        rank = torch.arange(len(U) + len(u), 0, -1, device=X.device)
        order = neighbours.concentration(residual, u, k, options.max_elements).argsort(descending=True, stable=True)
        joined, source = torch.cat([U, u[order]]), torch.cat([origin, picked[order]])
        kept = distinct(joined, rank.double(), options.merge_cosine)[: len(U) + share]
        U, origin = joined[kept], source[kept]
        if stage + 1 < options.n_stages:
            residual = pursue(T, U, options.pursuit_steps, options.max_elements)
    wide = U.double()
    return Found(wide, wide, origin, options.n_lifted * options.n_stages)


def _search_unlifted(X: torch.Tensor, subsets: Subsets, options: SearchOptions) -> Found:
    scores = subset_scores(X, subsets, options.score, max_elements=options.max_elements)
    picked = choose(scores, options.n_lifted, options.select, options.seed)
    directions, _ = principal_directions(covariance(X, options.max_elements)[1], subsets, options.max_elements)
    D = directions[picked]
    D = D * skew_sign(X, D.to(X.dtype), options.max_elements).to(D.dtype)
    kept = distinct(D, scores[picked], options.merge_cosine)
    return Found(D[kept], D[kept], picked[kept], 0)


def _class_of_each(X: torch.Tensor, subsets: Subsets, y: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Classes, mean differences (c, d) of each against the rest, and which of them each basis separates best."""
    classes = np.unique(y)
    targets = classes[1:] if len(classes) == 2 else classes
    wide = X.to(torch.float64)
    inside = torch.as_tensor(y[None] == targets[:, None], device=X.device).to(torch.float64)  # (c, n)
    n_inside = inside.sum(1, keepdim=True)
    sums = inside @ wide
    difference = sums / n_inside - (wide.sum(0) - sums) / (len(y) - n_inside)
    best = [
        int((subsets.restrict(difference, i).square().sum(1)).argmax()) for i in range(len(subsets))
    ]  # WV of a subset is the same for all classes, so it does not enter the choice
    return targets, difference, torch.as_tensor(best, device=X.device)


def _search_labelled(X: torch.Tensor, subsets: Subsets, y: np.ndarray, options: SearchOptions) -> Found:
    scores = subset_scores(X, subsets, options.score, y=y, max_elements=options.max_elements)
    picked = choose(scores, options.n_lifted, options.select, options.seed)
    _, within = scatter_matrices(X, y)
    targets, difference, best = _class_of_each(X, subsets, y)
    target = best[picked]
    if options.lift:
        _, filters, patterns = fisher_lift(X, y, options.shrinkage)
        filters, patterns = filters[target], patterns[target]
    else:
        filters, patterns = torch.zeros_like(difference[target]), torch.zeros_like(difference[target])
        for row, (i, c) in enumerate(zip(picked.tolist(), target.tolist(), strict=True)):
            basis = subsets.basis(i).to(within.dtype)
            ridge = 1e-6 * within.trace() / len(within) + 1e-30
            inner = basis @ within @ basis.T + ridge * torch.eye(len(basis), device=X.device)
            filters[row] = torch.linalg.solve(inner, basis @ difference[c]) @ basis
            patterns[row] = basis.T @ (basis @ difference[c])
        filters, patterns = normalize(filters, dim=1), normalize(patterns, dim=1)
    kept = distinct(patterns, scores[picked].nan_to_num(posinf=1e300), options.merge_cosine)
    named = targets[target[kept].cpu().numpy()]
    return Found(filters[kept], patterns[kept], picked[kept], len(picked) if options.lift else 0, named)


def search(X: torch.Tensor, subsets: Subsets, options: SearchOptions, y: np.ndarray | None = None) -> Found:
    """Score the subsets on X (n, d), lift the chosen ones, merge near-copies and orient them.

    Without labels and with lift: `n_stages` rounds. Each scores every subset on what the directions found so
    far leave unexplained, lifts the `n_lifted` best, and adds what is new. So a few strong features cannot
    swallow all starts. With labels the full-space lift no longer depends on the subset: a subset only votes
    for the class it separates best.
    """
    if y is not None and len(np.unique(y)) < 2:  # labels permuted by group can leave one class in a half
        none = X.new_zeros(0, X.shape[1], dtype=torch.float64)
        return Found(none, none, torch.zeros(0, dtype=torch.long, device=X.device), 0, y[:0])
    if y is not None:
        return _search_labelled(X, subsets, y, options)
    if options.score == neighbours.NEIGHBOURS:
        return _search_neighbours(X, subsets, options)
    return _search_lifted(X, subsets, options) if options.lift else _search_unlifted(X, subsets, options)


def direction_scores(
    X: torch.Tensor, filters: torch.Tensor, options: SearchOptions, y: np.ndarray | None, targets: np.ndarray | None
) -> torch.Tensor:
    """Score (s,) of the projections of X on full-space filters: contrast, or separation of target and rest.

    A class that is absent from the rows, or that fills them, scores 0.
    """
    if options.score == neighbours.NEIGHBOURS and y is None:
        return neighbours.concentration(X, filters, options.n_neighbours, options.max_elements)
    if y is None or targets is None:
        return projection_contrast(X, filters.to(X.dtype), options.contrast, options.max_elements)
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
