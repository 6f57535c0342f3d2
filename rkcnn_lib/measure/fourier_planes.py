"""What directions and latents have to do with the Fourier circuit of modular addition: planes, energies, fits.

Activations of a grokked model turn with a + b in one plane for each key frequency (:mod:`rkcnn_lib.measure.fourier`).
Where on its circle a direction points is arbitrary, so it is held against planes by energy, never by a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.fourier import waves
from rkcnn_lib.measure.recovery import Chance, covariance_factor, random_directions
from rkcnn_lib.tensors import as_matrix, scaled, unit_rows


class Planes(NamedTuple):
    """The planes in which activations turn with a + b, one a frequency."""

    frequencies: list[int]
    basis: Tensor
    """(K, 2, d) float64, two orthonormal rows each."""
    explained: Tensor
    """(K,) share of the activations' variance that each frequency's waves explain, on the rows fitted."""


def fourier_planes(X: Tensor, sums: Tensor, frequencies: Sequence[int], p: int) -> Planes:
    """Find each frequency's plane: least squares of activations X (n, d) on cos and sin of all the frequencies.

    `sums` (n,) are a + b of each row; n is at least 4 K + 2. ValueError on too few rows, or where the activations do
    not turn with some frequency at all (no plane).
    """
    X, sums = scaled(as_matrix(X).cpu()), torch.as_tensor(sums).cpu()
    if len(X) != len(sums) or len(X) < 4 * len(frequencies) + 2:
        raise ValueError(f"X {tuple(X.shape)} and {len(sums)} sums: expected (n, d), n >= {4 * len(frequencies) + 2}")
    X = X - X.mean(0)
    W = waves(sums, frequencies, p)
    W = W - W.mean(0)
    coefficients = torch.linalg.lstsq(W, X).solution.view(len(frequencies), 2, -1)
    fitted = torch.einsum("nkt,ktd->knd", W.view(len(W), -1, 2), coefficients)
    width = torch.linalg.svdvals(coefficients)[:, 1]  # of each ellipse, across
    flat = width <= 1e-9 * X.norm() / len(X) ** 0.5
    if flat.any():
        lost = [k for k, is_flat in zip(frequencies, flat.tolist(), strict=True) if is_flat]
        raise ValueError(f"activations span no plane at frequencies {lost}: they do not turn with a + b there")
    basis = torch.linalg.qr(coefficients.transpose(1, 2)).Q.transpose(1, 2)
    return Planes(list(frequencies), basis.contiguous(), fitted.square().sum((1, 2)) / X.square().sum())


def plane_energy(D: Tensor, planes: Planes) -> Tensor:
    """Return (r, K) in [0, 1]: squared length of the projection of unit directions (r, d) on each plane.

    1: the direction lies in the plane, at whatever phase. Random directions: 2 / d on average.
    """
    return torch.einsum("ktd,rd->rkt", planes.basis, unit_rows(D, "D")).square().sum(2)


def span_energy(D: Tensor, planes: Planes) -> Tensor:
    """Return (r,) in [0, 1]: squared length of the projection on what all planes span together (chance 2 K / d)."""
    span = torch.linalg.qr(planes.basis.flatten(0, 1).T).Q
    return (unit_rows(D, "D") @ span).square().sum(1)


class EnergyChance(NamedTuple):
    """What random unit directions reach in given planes."""

    best: Chance
    """Mean over directions of the best plane's energy."""
    span: Chance
    """Mean over directions of the energy in all planes together."""
    largest: Chance
    """The single largest energy in a plane among all directions."""


def energy_chance(n: int, planes: Planes, spread: Tensor | None = None, n_draws: int = 50) -> EnergyChance:
    """Simulate ``n`` random unit directions against the planes.

    With ``spread``, centred activations (m, d), directions have the activations' covariance: in a grokked model these
    fill little more than the planes together, and whatever points into the activations has energy there without being
    of one frequency.
    """
    rng, d = np.random.default_rng(0), planes.basis.shape[2]
    factor = None if spread is None else covariance_factor(spread)
    drawn = []
    for _ in range(n_draws):
        D = torch.from_numpy(random_directions(rng, n, d, factor))
        best = plane_energy(D, planes).amax(1)
        drawn.append([float(best.mean()), float(span_energy(D, planes).mean()), float(best.max())])
    return EnergyChance(*(Chance.of(draws) for draws in zip(*drawn, strict=True)))


class LatentFit(NamedTuple):
    """How well waves in a + b predict each latent on rows that were not fitted."""

    best: Tensor
    """(m,) R^2 of cos and sin at the one frequency that fitted best; at most 1, NaN for latents that never vary."""
    all: Tensor
    """(m,) R^2 of cos and sin at all key frequencies."""
    frequency: Tensor
    """(m,) that one frequency."""


def latent_fit(
    Z: Tensor, sums: Tensor, Z_heldout: Tensor, sums_heldout: Tensor, frequencies: Sequence[int], p: int
) -> LatentFit:
    """Regress latents (n, m) on waves in a + b; choose the frequency on these rows, judge on the held-out ones.

    R^2 is 1 - squared error / squared deviation from the held-out mean: below 0 where a fit does not carry over.
    A latent that is a narrow bump in one plane has an R^2 well below 1, since a bump is no cosine.
    """
    fitted, truth = as_matrix(Z, "Z").double().cpu(), as_matrix(Z_heldout, "Z_heldout").double().cpu()
    W, W_heldout = (waves(torch.as_tensor(some).cpu(), frequencies, p) for some in (sums, sums_heldout))
    columns = [slice(2 * i, 2 * i + 2) for i in range(len(frequencies))]
    inside = torch.stack([_r2(W[:, c], fitted, W[:, c], fitted) for c in columns])  # (K, m)
    chosen = inside.nan_to_num(-torch.inf).argmax(0)
    outside = torch.stack([_r2(W[:, c], fitted, W_heldout[:, c], truth) for c in columns])
    return LatentFit(
        outside.gather(0, chosen[None])[0],
        _r2(W, fitted, W_heldout, truth),
        torch.tensor(list(frequencies))[chosen],
    )


def _r2(W: Tensor, Z: Tensor, W_heldout: Tensor, Z_heldout: Tensor) -> Tensor:
    """(m,) R^2 on held-out rows of the least-squares fit, with intercept, of Z on W; NaN where nothing varies."""
    coefficients = torch.linalg.lstsq(W - W.mean(0), Z - Z.mean(0)).solution
    error = Z_heldout - Z.mean(0) - (W_heldout - W.mean(0)) @ coefficients
    spread = (Z_heldout - Z_heldout.mean(0)).square().sum(0)
    varies = (spread > 0) & (Z.var(0) > 0)
    return torch.where(varies, 1 - error.square().sum(0) / spread, torch.nan)
