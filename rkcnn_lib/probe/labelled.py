"""The search with labels: a subset votes for the class it separates best; the class's full-space lift is the find."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.found import Found, SearchOptions, choose
from rkcnn_lib.probe.lift import fisher_lift
from rkcnn_lib.probe.scores import scatter_matrices, subset_scores
from rkcnn_lib.probe.subsets import Subsets


def search_labelled(X: torch.Tensor, subsets: Subsets, y: np.ndarray, options: SearchOptions) -> Found:
    """Return the distinct directions that the chosen subsets of X (n, d) with labels y (n,) vote for.

    The full-space lift no longer depends on the subset, so at most one direction a class is found (and there is no
    funnel: the score decides only which classes are voted for). Without lift a
    direction is Fisher's within its subset. Labels of one class (those permuted by group can leave one in a half)
    give none.
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
    picked, _ = choose(scores, patterns, options, options.n_directions)
    named = targets[best[picked].cpu().numpy()]
    return Found(filters[picked], patterns[picked], picked, [], named)


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


def separation_of_directions(
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
