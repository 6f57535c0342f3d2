"""Contrasts: subsets are scored by how heavy-tailed their principal direction is, and lifted by climbing that."""

from __future__ import annotations

import torch

from rkcnn_lib.probe.found import SearchOptions
from rkcnn_lib.probe.lift import ascend, skew_sign, whiten
from rkcnn_lib.probe.moments import covariance, projection_contrast
from rkcnn_lib.probe.scores import principal_directions, subset_scores
from rkcnn_lib.probe.subsets import Subsets


class ContrastLift:
    """Directions live in the whitened space of X (n, d), where contrasts can be climbed by fixed-point steps.

    One of the two ways to lift without labels (the other is `neighbours.NeighbourLift`); `search` runs the rounds.

    Attributes
    ----------
    rows : torch.Tensor of shape (n, d)
        What directions are to explain: the whitened rows.
    origin : torch.Tensor of shape (d,)
        The mean, from which contrasts are taken.
    """

    def __init__(self, X: torch.Tensor, options: SearchOptions) -> None:
        self.options = options
        self.white = whiten(X, options.shrinkage, options.max_elements)
        self.rows = self.white.apply(X)
        self.origin = self.white.mean.to(X.dtype)

    def propose(self, residual: torch.Tensor, subsets: Subsets) -> tuple[torch.Tensor, torch.Tensor]:
        """Score (h,) of every subset on the residual (n, d), and the raw direction (h, d) it would start from."""
        size = self.options.max_elements
        raw = residual @ self.white.root.to(residual.dtype)
        principal = principal_directions(covariance(raw, size)[1], subsets, size)
        scores = subset_scores(raw, subsets, self.options.score, max_elements=size, principal=principal)
        return scores, principal[0]

    def lift(self, residual: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Whitened directions (s, d) reached from raw starts (s, d): climbed on the residual, then on the rows."""
        options, Z = self.options, self.rows
        arguments = {"contrast": options.contrast, "max_elements": options.max_elements}
        u = self.white.from_filters(starts)
        if residual is Z:
            u = ascend(Z, u.to(Z.dtype), max_iter=options.max_iter, **arguments)
        else:
            own = whiten(residual, options.shrinkage, options.max_elements)  # pursuit left it anisotropic
            u = ascend(own.apply(residual), own.from_filters(u).to(Z.dtype), max_iter=options.max_iter, **arguments)
            # A residual is missing pieces of every feature: a few steps on the data themselves put that right.
            u = ascend(Z, own.patterns(u).to(Z.dtype), max_iter=max(1, options.max_iter // 4), **arguments)
        return u * skew_sign(Z, u, options.max_elements)

    def compared(self, U: torch.Tensor) -> torch.Tensor:
        """What tells near-copies: the patterns of the whitened directions (s, d)."""
        return self.white.patterns(U)

    def patterns(self, U: torch.Tensor) -> torch.Tensor:
        """Unit patterns (s, d) of raw space, float64."""
        return self.white.patterns(U)

    def oriented(self, D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patterns D (s, d), signed so that they lean to the right, and filters ``Sigma^-1 D`` (Haufe et al. 2014)."""
        u = self.white.from_patterns(D)
        sign = skew_sign(self.rows, u.to(self.rows.dtype), self.options.max_elements).to(D.dtype)
        return D * sign, self.white.filters(u) * sign


def contrast_of_directions(X: torch.Tensor, filters: torch.Tensor, options: SearchOptions) -> torch.Tensor:
    """Contrast (s,) of the projections of X (n, d) on full-space filters (s, d)."""
    return projection_contrast(X, filters.to(X.dtype), options.contrast, options.max_elements)
