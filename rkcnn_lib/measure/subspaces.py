"""Subspaces of activation space: bases, what random ones of equal rank or variance look like, the rowspace part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.tensors import as_matrix, number, scaled, whole


def orthonormal_basis(directions: Tensor | np.ndarray, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis of the span of some directions.

    Parameters
    ----------
    directions : (r, d) tensor or array
        Rows that span the subspace; near-dependent ones do not count twice.
    tolerance : float
        Singular values below ``tolerance`` times the largest are taken as zero.

    Returns
    -------
    (d, rank) float64 tensor with orthonormal columns.

    Raises
    ------
    ValueError
        If there are no directions, or they are not finite, or all zero.
    """
    rows = scaled(as_matrix(directions, "directions"))
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > tolerance * singular[0]).sum()) if singular[0] > 0 else 0
    if rank == 0:
        raise ValueError("all directions are zero: they span nothing")
    return right[:rank].T


def leading_basis(directions: Tensor, rank: int, name: str = "A") -> Tensor:
    """Return an orthonormal basis (d, rank) of the first rows of ``directions`` (r, d) that span ``rank`` dimensions.

    Rows that add no dimension are passed over, so that subspaces are compared at equal rank, not at equal count.

    Raises
    ------
    ValueError
        If ``rank`` is below 1 or above the width, or the rows span fewer dimensions.
    """
    directions = as_matrix(directions, name)
    whole("rank", rank, 1, directions.shape[1])
    for count in range(rank, len(directions) + 1):
        basis = orthonormal_basis(directions[:count], tolerance=1e-4)
        if basis.shape[1] == rank:
            return basis
    raise ValueError(f"rank = {rank}: {name} supplies {len(directions)} directions that span less; lower the ranks")


def captured_variance(basis: Tensor, X: Tensor) -> float:
    """Return the share of the variance of X (n, d) that lies inside the subspace ``basis`` (d, r), in [0, 1]."""
    X = scaled(as_matrix(X))
    centred = X - X.mean(0)
    total = float(centred.square().sum())
    if total == 0:
        raise ValueError("X does not vary: no subspace holds a share of its variance")
    basis = as_matrix(basis, "basis").to(centred)
    if len(basis) != X.shape[1]:
        raise ValueError(f"basis lives in {len(basis)} dimensions, X in {X.shape[1]}")
    return float((centred @ basis).square().sum()) / total


def random_basis(d: int, rank: int, generator: torch.Generator) -> Tensor:
    """Return an orthonormal basis (d, rank) of a subspace drawn uniformly."""
    whole("rank", rank, 1, whole("d", d))
    return torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64)).Q


def random_basis_of_variance(X: Tensor, rank: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random subspace of a rank that holds a given share of the variance of X.

    ``span(S^t Z)`` with S the covariance and Z Gaussian is uniform at t = 0 and turns towards the leading
    principal components as t grows, towards the trailing ones as it falls; the variance inside grows
    monotonically with t, so bisection finds the t that matches.

    Parameters
    ----------
    X : (n, d) tensor
    rank : int
    share : float
        Of the total variance, in [0, 1]; one out of reach at this rank gives the nearest that is in reach.
    generator : torch.Generator

    Returns
    -------
    (d, rank) float64 tensor with orthonormal columns.
    """
    X = scaled(as_matrix(X))
    d = X.shape[1]
    whole("rank", rank, 1, d)
    number("share", share, "[0, 1]")
    centred = X - X.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(X))
    values = values.clamp_min(float(values[-1]) * 1e-9)
    start = torch.randn(d, rank, generator=generator, dtype=torch.float64).to(X.device)
    logs, shares = values.log() - values.log().mean(), values / values.sum()

    def turned(t: float) -> Tensor:
        scale = t * logs
        return torch.linalg.qr((scale - scale.max()).exp()[:, None] * start).Q

    low, high = -8.0, 8.0
    for _ in range(40):
        t = (low + high) / 2
        inside = float((turned(t).square().sum(1) * shares).sum())
        low, high = (t, high) if inside < share else (low, t)
    return vectors @ turned((low + high) / 2)


def rowspace_part(basis: Tensor, weight: Tensor, tolerance: float = 1e-5) -> Tensor | None:
    """Return the part of a subspace that the weight downstream can read, or None if there is none.

    Activations x enter the next layer as ``x @ weight``, so what lies in the weight's nullspace cannot matter.
    A subspace may still show an effect through such a part: a direction that varies with the label but is not
    read, added to one that is read but does not vary, carries the variation of the first into the second
    (the interpretability illusion of Makelov, Lange & Nanda 2023, arXiv:2311.17030). Projecting each direction
    on the rowspace takes that away.

    Parameters
    ----------
    basis : (d, r) tensor
        Orthonormal columns.
    weight : (d, d_out) tensor
    tolerance : float
        Relative size below which a singular value, of the weight or of the projected basis, counts as zero.
    """
    weight = scaled(as_matrix(weight, "weight"))
    if weight.shape[0] != basis.shape[0]:
        raise ValueError(f"the subspace lives in {basis.shape[0]} dimensions, the weight reads {tuple(weight.shape)}")
    left, singular, _ = torch.linalg.svd(weight, full_matrices=False)
    read = left[:, singular > tolerance * singular[0]]
    projected = read @ (read.T @ basis.to(read))
    if float(projected.norm(dim=0).max()) <= tolerance:
        return None
    return orthonormal_basis(projected.T, tolerance)
