"""Refinement by sparse coding: from directions that lie near the features to those that code the rows best.

The rows are coded by a few steps of one-sided matching pursuit (features are zero or positive), then all directions
are solved for at once by least squares, and so on: the method of optimal directions (Engan, Aase & Husoy 1999) with
a one-sided code. It needs good starts, for it finds the nearest optimum only; that is what mining is for. It would
sharpen any start, so a comparison of miners must give it to their rivals too (see `rivals.mine`).
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.moments import MAX_ELEMENTS, block_size, chunks
from rkcnn_lib.pursuit import default_steps, one_sided_codes
from rkcnn_lib.tensors import add_at

RIDGE = 1e-3  # towards the directions as they are, as a share of a direction's mean energy: rare ones move less


def pursue(X: torch.Tensor, D: torch.Tensor, n_steps: int, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """Return what ``n_steps`` of one-sided matching pursuit with the unit directions D (r, d) leave of X (n, d)."""
    residual = X.clone()
    if len(D):
        gram = D @ D.T
        for rows in chunks(len(X), len(D), block_size(X, max_elements)):
            residual[rows] -= one_sided_codes(X[rows], D, gram, n_steps).decode(D)
    return residual


def refine(
    X: torch.Tensor,
    D: torch.Tensor,
    n_passes: int = 3,
    n_steps: int | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> torch.Tensor:
    """Move unit directions D (r, d) to where they code the rows of X (n, d) with a smaller squared error.

    `n_passes` alternations of coding, each row with `n_steps` directions (None: `default_steps`), and solving; an
    offset common to all rows is fitted beside the directions. Returns unit rows (r, d) in the dtype of D, in the same
    order. A direction that codes no row stays where it was.
    """
    n_steps = default_steps(X.shape[1]) if n_steps is None else n_steps
    U = D.to(X.dtype)
    offset = X.new_zeros(X.shape[1])
    for _ in range(n_passes if len(D) else 0):
        gram = U @ U.T
        energy = torch.zeros(len(U), len(U), dtype=torch.float64, device=X.device)
        slope = torch.zeros_like(U)
        left = torch.zeros(X.shape[1], dtype=torch.float64, device=X.device)
        for rows in chunks(len(X), len(U), block_size(X, max_elements)):
            part = X[rows] - offset
            codes = one_sided_codes(part, U, gram, n_steps)
            residual = part - codes.decode(U)
            pairs = codes.picked[:, :, None] * len(U) + codes.picked[:, None, :]
            products = codes.values[:, :, None] * codes.values[:, None, :]
            add_at(energy.view(-1), pairs.flatten(), products.flatten().double())
            for step in range(n_steps):
                add_at(slope, codes.picked[:, step], codes.values[:, step, None] * residual)
            left += residual.sum(0, dtype=torch.float64)
        energy.diagonal().add_(RIDGE * energy.diagonal().mean().clamp_min(1e-30))
        U = normalize(U + torch.linalg.solve(energy, slope.double()).to(U.dtype), dim=1)
        offset = offset + (left / len(X)).to(X.dtype)
    return U.to(D.dtype)
