"""From a subset's direction, which is only a start, to a direction of the full space.

An m-sparse coordinate vector has a cosine of about sqrt(m / d) with a dense feature. With labels the lift regresses on
the full space; without, it whitens and climbs a contrast by fixed-point steps. Filters read a feature out (encoder),
patterns are what it writes (decoder). In the end sparse coding sharpens all directions together (`refine`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import SearchOptions
from rkcnn_lib.probe.scores import block_size, covariance, principal_directions, projection_contrast, subset_scores
from rkcnn_lib.probe.subsets import Subsets
from rkcnn_lib.tensors import add_at, chunks, default_steps, one_sided_codes

CONVERGED = 1e-4  # 1 - |cosine| of two steps of an ascent
RIDGE = 1e-3  # towards the directions as they are, as a share of a direction's mean energy: rare ones move less


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
    """Mean (d,) of some rows, and Sigma^1/2 and Sigma^-1/2 (d, d) of their shrunk covariance, symmetric; float64."""

    mean: torch.Tensor
    root: torch.Tensor
    inverse_root: torch.Tensor

    def apply(self, X: torch.Tensor) -> torch.Tensor:
        """Whitened rows (n, d), in the dtype of X."""
        return (X - self.mean.to(X.dtype)) @ self.inverse_root.to(X.dtype)

    def filters(self, U: torch.Tensor) -> torch.Tensor:
        """Unit filters (s, d) of raw space that read what the whitened directions U (s, d) read."""
        return normalize(U.to(torch.float64) @ self.inverse_root, dim=1)

    def patterns(self, U: torch.Tensor) -> torch.Tensor:
        """Unit patterns Sigma w (s, d) of the filters w that belong to the whitened directions U (s, d)."""
        return normalize(U.to(torch.float64) @ self.root, dim=1)

    from_filters = patterns  # unit whitened directions whose projections are those of raw filters
    from_patterns = filters  # unit whitened directions that have these patterns


def whiten(X: torch.Tensor, shrinkage: float | None = None) -> Whitening:
    """Whitening of X (n, d) with ``Sigma = (1 - s) S + s (tr S / d) I``, s in [0, 1], Ledoit-Wolf's for None.

    Eigenvalues below 1e-7 of the largest are raised to that, so a rank-deficient covariance gives finite roots.
    """
    mean, cov = covariance(X)
    share = ledoit_wolf_shrinkage(X, mean, cov) if shrinkage is None else shrinkage
    d = len(cov)
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    values, vectors = torch.linalg.eigh((1 - share) * cov + share * cov.trace() / d * eye)
    values = values.clamp_min(max(float(values[-1]) * 1e-7, 1e-30))
    return Whitening(mean, (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T)


def fisher_lift(X: torch.Tensor, y: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Full-space filter ``Sigma^-1 (mu_1 - mu_0)`` and pattern ``mu_1 - mu_0`` of each class (Haufe et al. 2014).

    Two classes give one direction, towards the second. More give one each, towards the class against the rest. Sigma is
    the shrunk covariance within the (two) classes. Returns the classes (c,) that directions point to, filters (c, d) of
    norm 1 and patterns (c, d), float64.
    """
    classes = np.unique(y)
    targets = classes[1:] if len(classes) == 2 else classes
    filters, differences = [], []
    for target in targets:
        inside = torch.as_tensor(y == target, device=X.device)
        means = torch.stack([X[~inside].mean(0, dtype=torch.float64), X[inside].mean(0, dtype=torch.float64)])
        within = whiten(X - means.to(X.dtype)[inside.long()])
        differences.append(means[1] - means[0])
        filters.append(within.inverse_root @ (within.inverse_root @ differences[-1]))
    return targets, normalize(torch.stack(filters), dim=1), torch.stack(differences)


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


def ascend(Z: torch.Tensor, starts: torch.Tensor, contrast: str = "kurtosis", max_steps: int = 20) -> torch.Tensor:
    """Climb a contrast from many starts (s, d), not zero, in parallel, each on its own; unit rows (s, d).

    One-unit fixed-point steps (Hyvarinen & Oja 1997; Hyvarinen 1999) on whitened rows Z (n, d) of mean zero; with a
    shrunk covariance their second moment need not be the identity. A start that has converged drops out; a step that
    leaves nothing keeps the previous direction, and none changes its side.
    """
    U = normalize(starts.to(Z.dtype), dim=1).clone()
    second = covariance(Z)[1].to(Z.dtype)
    for part in chunks(len(U), len(Z), block_size(Z)):
        active = torch.arange(part.start, part.stop, device=U.device)
        for _ in range(max_steps):
            old = U[active]
            step = _fixed_point_step(Z, second, old, contrast)
            new = torch.where(step.square().sum(1, keepdim=True) > 1e-24, normalize(step, dim=1), old)
            cosine = (new * old).sum(1)
            U[active] = new * torch.where(cosine < 0, -1.0, 1.0)[:, None]
            active = active[1 - cosine.abs() > CONVERGED]
            if len(active) == 0:
                break
    return U


def skew_sign(X: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Sign (s, 1) that makes the skewness of the projections of X on the filters positive (+1 when it is 0).

    Features are one-sided (zero or positive), so their projections lean to the right.
    """
    skew = projection_contrast(X, filters.to(X.dtype), "skew")
    return torch.where(skew < 0, -1.0, 1.0).to(filters.dtype)[:, None]


class ContrastLift:
    """Directions live in the whitened space of X (n, d), where contrasts can be climbed by fixed-point steps.

    One of two ways to lift without labels (the other is `neighbours.NeighbourLift`); `search` runs the rounds.
    `rows` (n, d), whitened, are what directions are to explain; `origin` (d,) is the mean.
    """

    def __init__(self, X: torch.Tensor, options: SearchOptions) -> None:
        self.options = options
        self.white = whiten(X)
        self.rows = self.white.apply(X)
        self.origin = self.white.mean.to(X.dtype)

    def propose(self, residual: torch.Tensor, subsets: Subsets) -> tuple[torch.Tensor, torch.Tensor]:
        """Score (h,) of every subset on the residual (n, d), and the direction (h, d) of this space that it leads to.

        From the subset's principal direction the contrast is climbed on the residual, then on the rows.
        """
        raw = self.raw(residual)
        principal = principal_directions(covariance(raw)[1], subsets)
        scores = subset_scores(raw, subsets, self.options.score, principal=principal)
        contrast, Z, u = self.options.contrast, self.rows, self.white.from_filters(principal[0])
        if residual.shape == Z.shape and residual.data_ptr() == Z.data_ptr():
            u = ascend(Z, u, contrast)
        else:
            own = whiten(residual)  # pursuit left it anisotropic
            u = ascend(own.apply(residual), own.from_filters(u), contrast)
            # A residual is missing pieces of every feature: a few steps on the data themselves put that right.
            u = ascend(Z, own.patterns(u), contrast, max_steps=5)
        return scores, u * skew_sign(Z, u)

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, d) of this lift's space as they lie in X's, seen from the origin."""
        return rows @ self.white.root.to(rows.dtype)

    def patterns(self, U: torch.Tensor) -> torch.Tensor:
        """Unit patterns (s, d) of raw space, float64; near-copies are told by them."""
        return self.white.patterns(U)

    def oriented(self, D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patterns D (s, d), signed so that they lean to the right, and filters ``Sigma^-1 D`` (Haufe et al. 2014)."""
        u = self.white.from_patterns(D)
        sign = skew_sign(self.rows, u)
        return D * sign, self.white.filters(u) * sign


def pursue(X: torch.Tensor, D: torch.Tensor, n_steps: int) -> torch.Tensor:
    """What ``n_steps`` of one-sided matching pursuit with the unit directions D (r, d) leave of X (n, d)."""
    residual = X.clone()
    if len(D):
        gram = D @ D.T
        for rows in chunks(len(X), len(D), block_size(X)):
            residual[rows] -= one_sided_codes(X[rows], D, gram, n_steps).decode(D)
    return residual


def refine(X: torch.Tensor, D: torch.Tensor, n_passes: int = 3) -> torch.Tensor:
    """Move unit directions D (r, d) to where they code the rows of X (n, d) with a smaller squared error.

    The method of optimal directions (MOD; Engan, Aase & Husoy 1999) with a one-sided code, features being >= 0:
    `n_passes` alternations of coding, each row with `default_steps` directions, and solving; an offset common to all
    rows is fitted beside the directions. It sharpens any start, so a comparison of miners must give it to their rivals
    too. Returns unit rows (r, d) in the dtype of D, in the same order; one that codes no row stays where it was.
    """
    n_steps = default_steps(X.shape[1])
    U = D.to(X.dtype)
    offset = X.new_zeros(X.shape[1])
    for _ in range(n_passes if len(D) else 0):
        gram = U @ U.T
        energy = torch.zeros(len(U), len(U), dtype=torch.float64, device=X.device)
        slope = torch.zeros_like(U)
        left = torch.zeros(X.shape[1], dtype=torch.float64, device=X.device)
        for rows in chunks(len(X), len(U), block_size(X)):
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
