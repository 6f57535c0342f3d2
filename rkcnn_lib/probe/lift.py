"""From a subset's direction, which is only a start, to a direction of the full space.

An m-sparse coordinate vector has a cosine of about sqrt(m / d) with a dense feature, so a subset's own direction
can never be the answer. With labels the lift regresses on the full space; without, it whitens and climbs a
contrast by fixed-point steps. Filters read a feature out (encoder), patterns are what it writes (decoder).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import check_labels
from rkcnn_lib.probe.moments import CONTRASTS, MAX_ELEMENTS, block_size, chunks, covariance, projection_contrast
from rkcnn_lib.tensors import number


def ledoit_wolf_shrinkage(X: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> float:
    """Share in [0, 1] of the scaled identity in the Ledoit-Wolf covariance (J. Multivariate Analysis 2004)."""
    n, d = X.shape
    mu = cov.trace() / d
    spread = cov.square().sum() - d * mu**2  # ||S - mu I||^2
    fourth = sum(((X[r].to(torch.float64) - mean).square().sum(1) ** 2).sum() for r in chunks(n, d))
    noise = (fourth / n - cov.square().sum()) / n
    return float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0


@dataclass(frozen=True)
class Whitening:
    """Shrunk covariance of some rows and its roots; all float64.

    Attributes
    ----------
    mean : torch.Tensor of shape (d,)
    covariance : torch.Tensor of shape (d, d)
        The shrunk one, Sigma.
    root, inverse_root : torch.Tensor of shape (d, d)
        Sigma^1/2 and Sigma^-1/2, symmetric.
    shrinkage : float
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    root: torch.Tensor
    inverse_root: torch.Tensor
    shrinkage: float

    def apply(self, X: torch.Tensor) -> torch.Tensor:
        """Whitened rows (n, d), in the dtype of X."""
        return (X - self.mean.to(X.dtype)) @ self.inverse_root.to(X.dtype)

    def filters(self, U: torch.Tensor) -> torch.Tensor:
        """Unit filters (s, d) of raw space that read what the whitened directions U (s, d) read."""
        return normalize(U.to(torch.float64) @ self.inverse_root, dim=1)

    def patterns(self, U: torch.Tensor) -> torch.Tensor:
        """Unit patterns Sigma w (s, d) of the filters w that belong to the whitened directions U (s, d)."""
        return normalize(U.to(torch.float64) @ self.root, dim=1)

    def from_filters(self, W: torch.Tensor) -> torch.Tensor:
        """Unit whitened directions (s, d) whose projections are those of the raw filters W (s, d)."""
        return normalize(W.to(torch.float64) @ self.root, dim=1)

    def from_patterns(self, D: torch.Tensor) -> torch.Tensor:
        """Unit whitened directions (s, d) whose patterns are D (s, d)."""
        return normalize(D.to(torch.float64) @ self.inverse_root, dim=1)


def check_shrinkage(shrinkage: float | str) -> None:
    """Raise ValueError unless it is "auto" or a number in [0, 1]."""
    if not (isinstance(shrinkage, str) and shrinkage == "auto"):
        number("shrinkage", shrinkage, "[0, 1]")  # or "auto"


def whiten(X: torch.Tensor, shrinkage: float | str = "auto", max_elements: int = MAX_ELEMENTS) -> Whitening:
    """Whitening of X (n, d) with ``Sigma = (1 - s) S + s (tr S / d) I``.

    Parameters
    ----------
    shrinkage : float in [0, 1] or "auto"
        "auto" is Ledoit-Wolf's. Eigenvalues below 1e-7 of the largest are raised to that, so a rank-deficient
        covariance gives finite roots.

    Raises
    ------
    ValueError
        If shrinkage is out of range.
    """
    check_shrinkage(shrinkage)
    mean, cov = covariance(X, max_elements)
    share = ledoit_wolf_shrinkage(X, mean, cov) if shrinkage == "auto" else float(shrinkage)
    d = len(cov)
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    values, vectors = torch.linalg.eigh((1 - share) * cov + share * cov.trace() / d * eye)
    values = values.clamp_min(max(float(values[-1]) * 1e-7, 1e-30))
    return Whitening(
        mean,
        (vectors * values) @ vectors.T,
        (vectors * values.sqrt()) @ vectors.T,
        (vectors * values.rsqrt()) @ vectors.T,
        share,
    )


def fisher_lift(
    X: torch.Tensor, y: np.ndarray, shrinkage: float | str = "auto"
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Full-space filter ``Sigma^-1 (mu_1 - mu_0)`` and pattern ``mu_1 - mu_0`` of each class.

    Two classes give one direction, from the first towards the second. More give one against the rest, a
    direction each, towards the class. Sigma is the shrunk covariance within the (two) classes.
    Filters and patterns: Haufe et al. 2014, NeuroImage 87.

    Returns
    -------
    classes : array of shape (c,)
        The class each direction points to.
    filters, patterns : torch.Tensor of shape (c, d), float64
        Unit rows.
    """
    y = check_labels(y, len(X))
    classes = np.unique(y)
    targets = classes[1:] if len(classes) == 2 else classes
    filters, patterns = [], []
    for target in targets:
        inside = torch.as_tensor(y == target, device=X.device)
        means = torch.stack([X[~inside].mean(0, dtype=torch.float64), X[inside].mean(0, dtype=torch.float64)])
        within = whiten(X - means.to(X.dtype)[inside.long()], shrinkage)
        difference = means[1] - means[0]
        patterns.append(difference)
        filters.append(within.inverse_root @ (within.inverse_root @ difference))
    return targets, normalize(torch.stack(filters), dim=1), normalize(torch.stack(patterns), dim=1)


def _fixed_point_step(Z: torch.Tensor, second: torch.Tensor, U: torch.Tensor, contrast: str) -> torch.Tensor:
    """One unnormalised one-unit step, ``E[z g(p)] - E[g'(p)] C u``, for every row u of U (s, d).

    C is the second moment of Z (d, d), the identity in FastICA. Shrinkage leaves another one, and only with it
    does the step vanish on Gaussian data (Stein's identity); with the identity the shrunk directions attract.
    """
    P = U @ Z.T  # (s, n)
    if contrast == "skew":
        return P.square_() @ Z / len(Z)  # g' = 2p has mean zero
    CU = U @ second
    if contrast == "kurtosis":
        return P.pow(3) @ Z / len(Z) - 3.0 * (CU * U).sum(1, keepdim=True) * CU
    T = P.tanh_()
    return T @ Z / len(Z) - (1.0 - T.square()).mean(1, keepdim=True) * CU


def ascend(
    Z: torch.Tensor,
    starts: torch.Tensor,
    contrast: str = "kurtosis",
    max_iter: int = 20,
    tol: float = 1e-4,
    max_elements: int = MAX_ELEMENTS,
) -> torch.Tensor:
    """Climb a contrast from many starts in parallel, each on its own (no decorrelation between them).

    One-unit fixed-point steps (Hyvarinen & Oja 1997; Hyvarinen 1999) on whitened data. Starts that have
    converged drop out of the computation; a step that leaves nothing keeps the previous direction, so the
    result is never NaN.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, d)
        Whitened rows, mean zero; with a shrunk covariance their second moment need not be the identity.
    starts : torch.Tensor of shape (s, d)
        Need not be unit; not zero.
    contrast : {"kurtosis", "logcosh", "skew"}
    max_iter : int
    tol : float
        A start has converged when 1 - |cosine| between two steps is below tol.
    max_elements : int
        Starts are handled in chunks with at most this many projections.

    Returns
    -------
    torch.Tensor of shape (s, d)
        Unit rows, on the side of the step before (signs do not flip back and forth).
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast={contrast!r} is unknown; choose one of {CONTRASTS}")
    U = normalize(starts.to(Z.dtype), dim=1).clone()
    second = covariance(Z, max_elements)[1].to(Z.dtype)
    for part in chunks(len(U), len(Z), block_size(Z, max_elements)):
        active = torch.arange(part.start, part.stop, device=U.device)
        for _ in range(max_iter):
            old = U[active]
            step = _fixed_point_step(Z, second, old, contrast)
            new = torch.where(step.square().sum(1, keepdim=True) > 1e-24, normalize(step, dim=1), old)
            cosine = (new * old).sum(1)
            U[active] = new * torch.where(cosine < 0, -1.0, 1.0)[:, None]
            active = active[1 - cosine.abs() > tol]
            if len(active) == 0:
                break
    return U


def skew_sign(X: torch.Tensor, filters: torch.Tensor, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """Sign (s, 1) that makes the skewness of the projections of X on the filters positive (+1 when it is 0).

    Features are one-sided (zero or positive), so their projections lean to the right.
    """
    skew = projection_contrast(X, filters, "skew", max_elements)
    return torch.where(skew < 0, -1.0, 1.0).to(filters.dtype)[:, None]
