"""Explained variance: of any reconstruction, streamed, and of a frozen dictionary before any training.

Everything streams in float64, x and x_hat from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.tensors import as_matrix, as_numbers, check_widths, exponent, unit_rows, whole


def explained_variance(X: Tensor | np.ndarray, X_hat: Tensor | np.ndarray) -> float:
    """``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)`` for rows X and reconstructions X_hat, both (n, d).

    At most 1; 0 for the mean as reconstruction, below for worse. ValueError where X does not vary.
    """
    X, X_hat = as_matrix(X), as_matrix(X_hat, "X_hat")
    if X.shape != X_hat.shape:
        raise ValueError(
            f"X is {tuple(X.shape)}, X_hat {tuple(X_hat.shape)}; they must be the same rows in the same order"
        )
    moments = Moments()
    unit = 2.0 ** exponent(X, X_hat)  # squares of 1e300 are no numbers
    moments.add(X.double() / unit, X_hat.double() / unit)
    return moments.explained_variance()


class Moments:
    """Sums over rows x and their reconstructions x_hat seen so far, in float64."""

    def __init__(self) -> None:
        self.n = 0
        nothing = torch.zeros((), dtype=torch.float64)
        self.total = self.square = self.error = nothing  # (d,) sums of x, x^2 and (x - x_hat)^2
        self.lengths = nothing  # (4,) sums of ||x||, ||x_hat||, ||x_hat||^2 and x . x_hat

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows (n, d) and what they were reconstructed as; ValueError for other shapes or no numbers."""
        if x_hat.shape != x.shape:
            raise ValueError(f"rows {tuple(x.shape)} were reconstructed as {tuple(x_hat.shape)}")
        x, x_hat = x.double(), x_hat.double()
        error = (x - x_hat).square().sum(0)
        if not (torch.isfinite(x).all() and torch.isfinite(error).all()):
            raise ValueError("NaN or infinite values in the held-out rows or in their reconstruction")
        norms, norms_hat = x.norm(dim=1), x_hat.norm(dim=1)
        lengths = torch.stack([norms.sum(), norms_hat.sum(), norms_hat.square().sum(), (x * x_hat).sum()])
        self.n += len(x)
        self.total = self.total + x.sum(0)
        self.square = self.square + x.square().sum(0)
        self.error = self.error + error
        self.lengths = self.lengths + lengths

    def mean(self) -> Tensor:
        """(d,) float64: E x."""
        self.check_seen()
        return self.total / self.n

    def explained_variance(self) -> float:
        """See `explained_variance`."""
        variance = (self.square / self.n - self.mean().square()).sum()
        if not variance > 1e-12 * self.square.sum() / self.n:
            raise ValueError("the held-out rows do not vary; there is no variance to explain")
        return float(1 - (self.error / self.n).sum() / variance)

    def explained_variance_standardised(self) -> float:
        """Mean over the dimensions that vary of each one's own explained variance."""
        variance = self.square / self.n - self.mean().square()
        varies = variance > 1e-12 * self.square / self.n
        return float(1 - (self.error[varies] / self.n / variance[varies]).mean())

    def l2_ratio(self) -> float:
        """``E||x_hat|| / E||x||``: below 1 where a reconstruction shrinks."""
        return float(self.lengths[1] / self.lengths[0])

    def relative_reconstruction_bias(self) -> float:
        """``argmin_g E||x_hat / g - x||^2 = E||x_hat||^2 / E[x_hat . x]``; NaN for reconstructions orthogonal to x."""
        return float(self.lengths[2] / self.lengths[3]) if self.lengths[3] != 0 else math.nan

    def check_seen(self) -> None:
        """Raise ValueError before any row."""
        if self.n == 0:
            raise ValueError("there are no held-out rows to measure on")


@torch.no_grad()
def frozen_dictionary_ev(
    X: Tensor | np.ndarray,
    D: Tensor | np.ndarray,
    ks: tuple[int, ...] = (8, 16, 32),
    bias: Tensor | np.ndarray | None = None,
    batch_size: int = 512,
) -> dict[int, float]:
    """Explained variance {k: share} of X (n, d) coded with fixed directions D (r, d) by one-sided matching pursuit.

    Each step picks, for each token, the direction with the largest *positive* inner product with the residual and
    refits all picked coefficients by least squares; a token stops when no inner product is positive. It asks how good
    the directions themselves are, before any training. (Orthogonal matching pursuit: Pati, Rezaiifar & Krishnaprasad
    1993; a new direction is orthogonalised against those picked, twice, which equals the refit.)

    `X` are held-out activations, `D` signed, made unit length, and `ks` the numbers of directions a token at which to
    report, at least 1. `bias` (d,) is taken from each row first; None is the mean of X. `batch_size` tokens are coded
    at once, each with a (max(ks), d) basis. ValueError on mismatched widths, NaN, a zero direction or X without
    variance.
    """
    counts = [whole("ks", k) for k in ks]
    if not counts:
        raise ValueError("ks is empty; give numbers of directions a token, at least 1")
    X, D = as_matrix(X), unit_rows(D, "D", least=1).float()
    check_widths(X, D, ("X", "D"))
    D, unit = D.to(X.device), 2.0 ** exponent(X)
    X = (X.double() / unit).float()
    centre = X.double().mean(0)
    bias = centre.float() if bias is None else (as_numbers(bias, "bias").double() / unit).to(X)
    if bias.shape != centre.shape:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; {tuple(centre.shape)} is needed")
    total = float((X.double() - centre).square().sum())
    if total == 0:
        raise ValueError("X does not vary; there is no variance to explain")
    steps = {k: min(k, len(D)) for k in counts}  # then all are picked
    left = dict.fromkeys(steps.values(), 0.0)
    for x in X.split(whole("batch_size", batch_size)):
        for k, residual in _pursue(x - bias, D, max(left)):
            if k in left:
                left[k] += float(residual.double().square().sum())
    return {k: 1 - left[steps[k]] / total for k in counts}


def _pursue(residual: Tensor, D: Tensor, k_max: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (k, residual (n, d)) after each of k_max steps of matching pursuit with orthonormal bases."""
    n, d = residual.shape
    basis = residual.new_zeros(n, k_max, d)
    picked = torch.zeros(n, len(D), dtype=torch.bool, device=residual.device)
    floor = 1e-6 * residual.norm(dim=1)
    for k in range(1, k_max + 1):
        products = (residual @ D.t()).masked_fill_(picked, -math.inf)
        best, which = products.max(dim=1)
        picked[torch.arange(n, device=residual.device), which] = True
        new = D[which]
        for _ in range(2):  # the second pass removes what rounding left of the first
            new = new - torch.einsum("nkd,nk->nd", basis, torch.einsum("nkd,nd->nk", basis, new))
        length = new.norm(dim=1)
        usable = (best > floor) & (length > 1e-4)  # else the token is done, or the direction adds nothing new
        new = torch.where(usable[:, None], new / length.clamp_min(1e-12)[:, None], 0.0)
        residual = residual - new * (new * residual).sum(1, keepdim=True)
        basis[:, k - 1] = new
        yield k, residual
