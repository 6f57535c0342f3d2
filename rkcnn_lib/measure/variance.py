"""Explained variance: of any reconstruction, streamed in float64, and of a frozen dictionary before any training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.tensors import as_matrix, check_widths, exponent, unit_rows

ROWS_AT_ONCE = 512  # each with a basis of its own


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
        """Add rows (n, d) and what they were reconstructed as; ValueError for NaN and infinities."""
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


@torch.no_grad()
def frozen_dictionary_ev(
    X: Tensor | np.ndarray, D: Tensor | np.ndarray, ks: Sequence[int] = (8, 16, 32)
) -> dict[int, float]:
    """Explained variance {k: share} of X (n, d) coded with k directions a row of D (r, d), signed, made unit length.

    Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993), one-sided: each step picks, for each row less
    the mean, the direction with the largest *positive* inner product with the residual and refits all coefficients by
    least squares; a row stops when no inner product is positive. It asks how good directions are before any training.
    ValueError for mismatched widths, NaN, a zero direction or X without variance.
    """
    X, D = as_matrix(X), unit_rows(D, "D", least=1).float()
    check_widths(X, D, ("X", "D"))
    D, unit = D.to(X.device), 2.0 ** exponent(X)
    X = (X.double() / unit).float()
    centre = X.double().mean(0)
    total = float((X.double() - centre).square().sum())
    if total == 0:
        raise ValueError("X does not vary; there is no variance to explain")
    steps = {k: min(k, len(D)) for k in ks}  # then all are picked
    left = dict.fromkeys(steps.values(), 0.0)
    for x in X.split(ROWS_AT_ONCE):
        for k, residual in _pursue(x - centre.float(), D, max(left)):
            if k in left:
                left[k] += float(residual.double().square().sum())
    return {k: 1 - left[steps[k]] / total for k in ks}


def _pursue(residual: Tensor, D: Tensor, k_max: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (k, residual (n, d)) after each of k_max steps of matching pursuit with orthonormal bases.

    A new direction is orthogonalised against those picked, which equals the refit.
    """
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
