"""The geometry of features in a hidden space: who is represented, and in what shape.

Everywhere ``W`` is (..., n_features, n_hidden), row i the direction of feature i. Definitions from Elhage et
al. 2022, "Toy Models of Superposition".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

POLYGONS = {2: "digon", 3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}


class Geometry(NamedTuple):
    """How the features of one or many models lie in the hidden space."""

    norms: torch.Tensor
    """(..., n_features): ||W_i||, about 1 when represented and 0 when dropped."""
    dimensionality: torch.Tensor
    """(..., n_features): D_i = ||W_i||^2 / sum_j (w_i . W_j)^2 with w_i = W_i / ||W_i||, in [0, 1]: the share
    of a dimension that feature i has to itself. 1/2 in an antipodal pair, 2/5 in a pentagon, 0 if W_i = 0."""
    interference: torch.Tensor
    """(..., n_features, n_features): w_i . W_j, what feature j adds along the direction of feature i; the
    diagonal is zero, and so are the rows of features with W_i = 0."""


def geometry(W: torch.Tensor) -> Geometry:
    """Norms, dimensionalities and interference of the features ``W`` (..., n_features, n_hidden)."""
    _check_features(W)
    norms = W.norm(dim=-1)
    unit = torch.where(norms.unsqueeze(-1) > 0, W / norms.unsqueeze(-1), 0.0)
    overlaps = unit @ W.mT
    total = overlaps.square().sum(-1)
    dimensionality = torch.where(total > 0, norms.square() / total, 0.0)
    off_diagonal = 1 - torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return Geometry(norms, dimensionality, overlaps * off_diagonal)


def represented(W: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Mask (..., n_features) of the features with ||W_i|| > ``threshold``: those the model did not drop."""
    _check_features(W)
    return W.norm(dim=-1) > threshold


def true_directions(W: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Unit directions (n_represented, n_hidden) of the represented features of one model ``W``."""
    if W.ndim != 2:
        raise ValueError(f"W must be one model, (n_features, n_hidden), got {tuple(W.shape)}")
    kept = W[represented(W, threshold)]
    return kept / kept.norm(dim=-1, keepdim=True)


def polygon(W: torch.Tensor, threshold: float = 0.5, tolerance: float = 10.0) -> str:
    """Name the shape that the represented features of one model form in two dimensions.

    "digon" (an antipodal pair), "triangle", "square" (two antipodal pairs at right angles), "pentagon", ... "octagon"
    where no angle between neighbours is further than ``tolerance`` degrees from that of the regular shape (lengths are
    not looked at); "single" and "empty" for one feature and for none; else "irregular N" with their number N.
    """
    if W.ndim != 2 or W.shape[1] != 2:
        raise ValueError(f"a polygon needs W of shape (n_features, 2), got {tuple(W.shape)}")
    kept = W[represented(W, threshold)].detach().double().cpu().numpy()
    n = len(kept)
    if n < 2:
        return ("empty", "single")[n]
    angles = np.sort(np.degrees(np.arctan2(kept[:, 1], kept[:, 0])))
    gaps = np.diff(angles, append=angles[0] + 360)
    regular = np.abs(gaps - 360 / n).max() <= tolerance
    return POLYGONS[n] if regular and n in POLYGONS else f"irregular {n}"


def _check_features(W: torch.Tensor) -> None:
    if W.ndim < 2:
        raise ValueError(f"W must be (..., n_features, n_hidden), got shape {tuple(W.shape)}")
