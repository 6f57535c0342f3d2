"""Is it the Fourier circuit? Key frequencies of modular addition, their losses and planes, and what latents keep.

A transformer that has grokked a + b mod p embeds its inputs as waves cos(2 pi k a / p), sin(2 pi k a / p) of a few
*key frequencies* k and answers by waves in a + b (Nanda et al. 2023, arXiv:2301.05217). Frequencies run over half of
the spectrum, 1 to (p - 1) / 2: k and p - k are the same wave, and counting both would halve every share. Activations
turn with a + b in one plane for each key frequency; where on its circle a direction points is arbitrary, so it is held
against planes by energy, never by a cosine. "All pairs" is the grid of p * p inputs in the order of
``torch.cartesian_prod``, a varying slowest. Every number has a chance level, simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rkcnn_lib.measure.recovery import Chance, covariance_factor, random_directions
from rkcnn_lib.tensors import unit_rows

KEY_SHARE = 0.9  # key frequencies together carry this share of the embedding's non-constant power, or more


def waves(values: Tensor, frequencies: Sequence[int], p: int) -> Tensor:
    """Return (n, 2 K) float64: cos k_1, sin k_1, cos k_2 ... of 2 pi k v / p, for n integers v and K frequencies k."""
    # k v mod p first: the phase stays small and therefore exact.
    phases = values.long()[:, None] * torch.tensor(list(frequencies), device=values.device) % p * (2 * np.pi / p)
    return torch.stack([phases.double().cos(), phases.double().sin()], dim=2).flatten(1)


def frequency_power(W: Tensor) -> Tensor:
    """Return ((p - 1) / 2,) float64: share of an embedding's non-constant power at frequencies 1, 2 ...; they sum to 1.

    ``W`` (p, d) embeds the numbers 0 to p - 1, without other tokens. ValueError if p is even or below 5.
    """
    p = len(W)
    if p < 5 or p % 2 == 0:
        raise ValueError(f"p = {p}: expected an odd modulus of 5 or more")
    power = torch.fft.fft(W.detach().double().cpu(), dim=0)[1 : (p + 1) // 2].abs().square().sum(1)
    return power / power.sum()


def key_frequencies(W: Tensor) -> list[int]:
    """Return the fewest frequencies that together carry `KEY_SHARE` of the non-constant power, strongest first.

    A grokked model needs 4 to 7 at p = 113, a random embedding nearly all of 56 times the share.
    """
    strongest = frequency_power(W).sort(descending=True)
    n = int((strongest.values.cumsum(0) < KEY_SHARE).sum()) + 1
    return (strongest.indices[:n] + 1).tolist()


def strongest_share(W: Tensor, n: int) -> float:
    """Return the share of non-constant power that the ``n`` strongest frequencies carry."""
    return float(frequency_power(W).sort(descending=True).values[:n].sum())


def strongest_share_chance(W: Tensor, n: int, n_draws: int = 200) -> Chance:
    """Return what :func:`strongest_share` gives when the rows of ``W`` are shuffled, which keeps norms and rank."""
    generator = torch.Generator().manual_seed(0)
    shuffles = (torch.randperm(len(W), generator=generator) for _ in range(n_draws))
    return Chance.of([strongest_share(W[order], n) for order in shuffles])


def neuron_frequencies(N: Tensor) -> Tensor:
    """Return (m, (p - 1) / 2): share of each neuron's variance over all pairs that one frequency explains.

    Of frequency k count all eight waves in which a or b or both turn at k and neither at another (the products of
    1, cos k, sin k in a and in b but the constant). Neurons, columns of ``N`` (p * p, m), that never vary have 0.
    """
    p = isqrt(len(N))
    power = torch.fft.fft2(N.detach().float().cpu().view(p, p, -1), dim=(0, 1)).abs().square()
    everything, power[0, 0] = power.sum((0, 1)), 0.0
    total = power.sum((0, 1))
    total[total <= 1e-9 * everything] = torch.inf  # rounding alone
    blocks = [[0, k, p - k] for k in range(1, (p + 1) // 2)]
    return torch.stack([power[block][:, block].sum((0, 1)) / total for block in blocks], dim=1)


def logit_share(logits: Tensor, frequencies: Sequence[int]) -> float:
    """Return the share of the logits' variance that is a sum of cos(2 pi k (a + b - c) / p) over the frequencies.

    ``logits`` is (p * p, p), on all pairs; each row's mean is taken off first. 1 for the published algorithm, about
    len(frequencies) / p^3 for noise.
    """
    p = logits.shape[1]
    L = logits.detach().double().cpu()
    L = L - L.mean(1, keepdim=True)
    difference = (_sums(p)[:, None] - torch.arange(p)) % p
    by_difference = torch.zeros(p, dtype=torch.float64).scatter_add_(0, difference.flatten(), L.flatten())
    cosines = waves(torch.arange(p), frequencies, p)[:, ::2]  # (p, K); over all (a, b, c) each has squared norm p^3 / 2
    return float((by_difference @ cosines).square().sum() * 2 / p**3 / L.square().sum())


def fourier_losses(logits: Tensor, frequencies: Sequence[int], counted: Tensor) -> dict[str, float]:
    """Return cross-entropy in nats with all, only, and none of the key frequencies' waves in a + b.

    Nanda et al. 2023, section 5.1: full, restricted, excluded, and uniform, ln p. In a model that adds by these
    frequencies alone restricted is near full or below it, and excluded near ln p or far above. ``counted`` (p * p,)
    bool are the pairs whose loss counts; the waves are always fitted on all pairs.
    """
    p = isqrt(len(logits))
    full, right, counted = logits.double(), _sums(p, logits.device), counted.to(logits.device)
    W = waves(right, frequencies, p)
    turning = W @ (W.T @ full) * (2 / p**2)  # the waves are orthogonal, of squared norm p^2 / 2
    versions = {"full": full, "restricted": full.mean(0) + turning, "excluded": full - turning}
    losses = {name: F.cross_entropy(L[counted], right[counted]).item() for name, L in versions.items()}
    return losses | {"uniform": float(np.log(p))}


def fourier_losses_chance(
    logits: Tensor, frequencies: Sequence[int], counted: Tensor, n_draws: int = 20
) -> dict[str, Chance]:
    """Return restricted (should be ln p) and excluded losses (full) of as many frequencies that are *not* the keys."""
    others = _other_frequencies(frequencies, isqrt(len(logits)), n_draws)
    drawn = [fourier_losses(logits, some, counted) for some in others]
    return {name: Chance.of([losses[name] for losses in drawn]) for name in ("restricted", "excluded")}


class Circuit(NamedTuple):
    """Whether a model is the Fourier circuit: its key frequencies, and figures, most of them with a chance level."""

    frequencies: list[int]
    figures: dict[str, float]
    chance: dict[str, Chance]


def circuit(W_E: Tensor, neurons: Tensor, logits: Tensor, counted: Tensor, n_draws: int = 20) -> Circuit:
    """Hold a model of modular addition against the published circuit.

    ``W_E`` (p, d) embeds the numbers; ``neurons`` (p * p, m) are MLP activations and ``logits`` (p * p, p) those of the
    numbers, at the ``=`` on all pairs; accuracy and losses are of the pairs ``counted`` (p * p,): those never trained
    on. The figures: accuracy; key_power (share of W_E's power at the keys; chance: as many strongest ones of shuffled
    rows); neuron_share (mean over neurons of the largest share of variance at one frequency; chance: Gaussian noise);
    neurons_at_keys (share of neurons for which that is a key; chance: as many of all frequencies); logit_share and the
    losses (chance: as many other frequencies, drawn ``n_draws`` times).
    """
    p, keys, shares = len(W_E), key_frequencies(W_E), neuron_frequencies(neurons)
    noise = torch.randn(neurons.shape, generator=torch.Generator().manual_seed(0))
    right, at_random = logits.argmax(1) == _sums(p, logits.device), len(keys) / ((p - 1) // 2)
    figures = {
        "accuracy": float(right[counted.to(logits.device)].double().mean()),
        "key_power": strongest_share(W_E, len(keys)),
        "neuron_share": float(shares.amax(1).mean()),
        "neurons_at_keys": float(torch.isin(shares.argmax(1) + 1, torch.tensor(keys)).double().mean()),
        "logit_share": logit_share(logits, keys),
    }
    by_chance = {
        "accuracy": Chance(1 / p, 1 / p),
        "key_power": strongest_share_chance(W_E, len(keys)),
        "neuron_share": Chance.of(neuron_frequencies(noise).amax(1).tolist()),
        "neurons_at_keys": Chance(at_random, at_random),
        "logit_share": Chance.of([logit_share(logits, some) for some in _other_frequencies(keys, p, n_draws)]),
    }
    by_chance |= fourier_losses_chance(logits, keys, counted, n_draws)
    return Circuit(keys, figures | fourier_losses(logits, keys, counted), by_chance)


def _other_frequencies(frequencies: Sequence[int], p: int, n_draws: int) -> list[list[int]]:
    """Draw sets of as many frequencies, none of them among those given (fewer where fewer are left)."""
    rng = np.random.default_rng(0)
    others = np.setdiff1d(np.arange(1, (p + 1) // 2), list(frequencies))
    n = min(len(frequencies), len(others))
    return [rng.choice(others, n, replace=False).tolist() for _ in range(n_draws)]


def _sums(p: int, device: torch.device | None = None) -> Tensor:
    """(p * p,): a + b mod p on all pairs."""
    numbers = torch.arange(p, device=device)
    return ((numbers[:, None] + numbers) % p).flatten()


# ---------------------------------------------------------------- directions and latents


class Planes(NamedTuple):
    """The planes in which activations turn with a + b, one a frequency."""

    basis: Tensor  # (K, 2, d) float64, two orthonormal rows each
    explained: Tensor  # (K,) share of the variance of the rows fitted that each frequency's waves explain


def fourier_planes(X: Tensor, sums: Tensor, frequencies: Sequence[int], p: int) -> Planes:
    """Find each frequency's plane: least squares of activations X (n, d) on cos and sin of sums (n,) at all of them."""
    X, W = X.double().cpu(), waves(sums.cpu(), frequencies, p)
    X, W = X - X.mean(0), W - W.mean(0)
    coefficients = torch.linalg.lstsq(W, X).solution.view(len(frequencies), 2, -1)
    fitted = torch.einsum("nkt,ktd->knd", W.view(len(W), -1, 2), coefficients)
    basis = torch.linalg.qr(coefficients.transpose(1, 2)).Q.transpose(1, 2)
    return Planes(basis.contiguous(), fitted.square().sum((1, 2)) / X.square().sum())


def plane_energy(D: Tensor, planes: Planes) -> Tensor:
    """Return (r, K) in [0, 1]: squared length of directions (r, d), made units, in each plane; 2 / d on average."""
    return torch.einsum("ktd,rd->rkt", planes.basis, unit_rows(D, "D")).square().sum(2)


def span_energy(D: Tensor, planes: Planes) -> Tensor:
    """Return (r,) in [0, 1]: squared length in what all planes span together; 2 K / d on average."""
    span = torch.linalg.qr(planes.basis.flatten(0, 1).T).Q
    return (unit_rows(D, "D") @ span).square().sum(1)


def energy_chance(n: int, planes: Planes, spread: Tensor | None = None, n_draws: int = 50) -> list[Chance]:
    """Return the mean energy of ``n`` random directions in their best plane, and in all planes together.

    With ``spread``, centred activations (m, d), directions have the activations' covariance: in a grokked model these
    fill little more than the planes, where any of them has energy without being of one frequency.
    """
    rng, d = np.random.default_rng(0), planes.basis.shape[2]
    factor = None if spread is None else covariance_factor(spread)
    drawn = []
    for _ in range(n_draws):
        D = torch.from_numpy(random_directions(rng, n, d, factor))
        drawn.append([float(plane_energy(D, planes).amax(1).mean()), float(span_energy(D, planes).mean())])
    return [Chance.of(draws) for draws in zip(*drawn, strict=True)]


def latent_fit(
    Z: Tensor, sums: Tensor, Z_heldout: Tensor, sums_heldout: Tensor, frequencies: Sequence[int], p: int
) -> tuple[Tensor, Tensor]:
    """Return two (m,) R^2 of latents (n, m) on waves in a + b: at the one frequency that fits best, and at all.

    The frequency is chosen on these rows, both are judged on the held-out ones: below 0 where a fit does not carry
    over, NaN for latents that never vary. A latent that is a narrow bump in one plane is no cosine: well below 1.
    """
    fitted, truth = Z.double().cpu(), Z_heldout.double().cpu()
    W, W_heldout = (waves(some.cpu(), frequencies, p) for some in (sums, sums_heldout))
    columns = [slice(2 * i, 2 * i + 2) for i in range(len(frequencies))]
    inside = torch.stack([_r2(W[:, c], fitted, W[:, c], fitted) for c in columns])  # (K, m)
    outside = torch.stack([_r2(W[:, c], fitted, W_heldout[:, c], truth) for c in columns])
    chosen = inside.nan_to_num(-torch.inf).argmax(0)
    return outside.gather(0, chosen[None])[0], _r2(W, fitted, W_heldout, truth)


def _r2(W: Tensor, Z: Tensor, W_heldout: Tensor, Z_heldout: Tensor) -> Tensor:
    """(m,) of the least-squares fit, with intercept, of Z on W; 1 - squared error / deviation from the mean."""
    coefficients = torch.linalg.lstsq(W - W.mean(0), Z - Z.mean(0)).solution
    error = Z_heldout - Z.mean(0) - (W_heldout - W.mean(0)) @ coefficients
    spread = (Z_heldout - Z_heldout.mean(0)).square().sum(0)
    varies = (spread > 0) & (Z.var(0) > 0)
    return torch.where(varies, 1 - error.square().sum(0) / spread, torch.nan)
