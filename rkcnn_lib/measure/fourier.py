"""Is it the Fourier circuit? Key frequencies of modular addition, their losses, and what an SAE keeps of them.

A transformer that has grokked a + b mod p embeds its inputs as waves cos(2 pi k a / p), sin(2 pi k a / p) of a few
*key frequencies* k and answers by waves in a + b (Nanda et al. 2023, arXiv:2301.05217). Frequencies run over half of
the spectrum, 1 to (p - 1) / 2: k and p - k are the same wave, and counting both would halve every share. Phases are
arbitrary: :mod:`rkcnn_lib.measure.fourier_planes` holds directions against planes. "All pairs" is the grid of p * p
inputs in the order of ``torch.cartesian_prod``, a varying slowest. Every number has a chance level, simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rkcnn_lib.measure.recovery import Chance
from rkcnn_lib.tensors import bool_mask

KEY_SHARE = 0.9  # key frequencies together carry this share of the embedding's non-constant power, or more


def waves(values: Tensor, frequencies: Sequence[int], p: int) -> Tensor:
    """Return (n, 2 K) float64: cos and sin of 2 pi k v / p for each of n integers v and K frequencies k.

    Columns are cos k_1, sin k_1, cos k_2 ... ValueError if p is even or below 5, or a frequency is not within 1 to (p -
    1) / 2 or named twice.
    """
    half = _half(p)
    if not len(frequencies) or len(set(frequencies)) < len(frequencies) or not all(1 <= k <= half for k in frequencies):
        raise ValueError(f"frequencies = {list(frequencies)}: expected different ones within 1 to {half} (p = {p})")
    # k v mod p first: the phase stays small and therefore exact.
    values = torch.as_tensor(values).long()
    phases = values[:, None] * torch.tensor(list(frequencies), device=values.device) % p * (2 * np.pi / p)
    return torch.stack([phases.double().cos(), phases.double().sin()], dim=2).flatten(1)


def frequency_power(W: Tensor) -> Tensor:
    """Return ((p - 1) / 2,) float64: share of an embedding's non-constant power at each frequency; they sum to 1.

    Entry i is frequency i + 1. ``W`` is (p, d), the embedding of the numbers 0 to p - 1 (without other tokens). Random
    embeddings have about 2 / (p - 1) at each. ValueError if p is even or below 5, or W is constant or not finite.
    """
    W = torch.as_tensor(W).detach().double().cpu()
    half = _half(len(W))
    power = torch.fft.fft(W, dim=0)[1 : half + 1].abs().square().sum(1)
    if not torch.isfinite(power).all() or power.sum() <= 1e-12 * W.square().sum():
        raise ValueError(f"the embedding {tuple(W.shape)} is constant or not finite: it has no frequencies")
    return power / power.sum()


def key_frequencies(W: Tensor, share: float = KEY_SHARE) -> list[int]:
    """Return the fewest frequencies that together carry ``share`` of the non-constant power, strongest first.

    A grokked model needs 4 to 7 at p = 113, a random embedding nearly all of 56 times ``share``.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share}: expected within (0, 1)")
    power = frequency_power(W)
    order = power.argsort(descending=True)
    n = int((power[order].cumsum(0) < share).sum()) + 1
    return [int(k) + 1 for k in order[:n]]


def strongest_share(W: Tensor, n: int) -> float:
    """Return the share of non-constant power that the ``n`` strongest frequencies carry."""
    return float(frequency_power(W).sort(descending=True).values[:n].sum())


def strongest_share_chance(W: Tensor, n: int, n_draws: int = 200) -> Chance:
    """Return what :func:`strongest_share` gives when the rows of ``W`` are shuffled: mean and 95 % point.

    Shuffling keeps norms and rank: the few dimensions that a trained embedding uses make shares larger by chance than
    a Gaussian embedding's.
    """
    generator = torch.Generator().manual_seed(0)
    shuffles = (torch.randperm(len(W), generator=generator) for _ in range(n_draws))
    return Chance.of([strongest_share(W[order], n) for order in shuffles])


def neuron_frequencies(N: Tensor) -> Tensor:
    """Return (m, (p - 1) / 2): share of each neuron's variance over all pairs that one frequency explains.

    Of frequency k count all eight waves in which a or b or both turn at k and neither at another (the products of
    1, cos k, sin k in a and in b but the constant); a neuron of the circuit has most of its variance at one k. Rows of
    neurons that never vary are 0. ``N`` is (p * p, m), on all pairs.
    """
    p = _modulus(N)
    power = torch.fft.fft2(N.detach().float().cpu().view(p, p, -1), dim=(0, 1)).abs().square()
    everything = power.sum((0, 1))
    power[0, 0] = 0.0
    total = power.sum((0, 1))
    total[total <= 1e-9 * everything] = torch.inf  # rounding alone
    blocks = [[0, k, p - k] for k in range(1, _half(p) + 1)]
    return torch.stack([power[block][:, block].sum((0, 1)) / total for block in blocks], dim=1)


def neuron_chance(p: int, m: int) -> Chance:
    """Return the largest of a noise neuron's shares, mean and 95 % point over ``m`` Gaussian neurons."""
    noise = torch.randn(p * p, m, generator=torch.Generator().manual_seed(0))
    return Chance.of(neuron_frequencies(noise).amax(1).tolist())


def logit_share(logits: Tensor, frequencies: Sequence[int]) -> float:
    """Return the share of the logits' variance that is a sum of cos(2 pi k (a + b - c) / p) over the frequencies.

    ``logits`` is (p * p, p), on all pairs, column c the logit of answer c; each row's mean, which softmax does not see,
    is taken off first. 1 for the published algorithm, about len(frequencies) / p^3 for noise.
    """
    p = _modulus(logits)
    if logits.shape[1] != p:
        raise ValueError(f"logits are {tuple(logits.shape)}, expected ({p * p}, {p}): the numbers' columns only")
    L = logits.detach().double().cpu()
    L = L - L.mean(1, keepdim=True)
    difference = (_sums(p)[:, None] - torch.arange(p)) % p
    by_difference = torch.zeros(p, dtype=torch.float64).scatter_add_(0, difference.flatten(), L.flatten())
    cosines = waves(torch.arange(p), frequencies, p)[:, ::2]  # (p, K); over all (a, b, c) each has squared norm p^3 / 2
    return float((by_difference @ cosines).square().sum() * 2 / p**3 / L.square().sum())


def fourier_losses(logits: Tensor, frequencies: Sequence[int], counted: Tensor | None = None) -> dict[str, float]:
    """Return cross-entropy in nats with all, only, and none of the key frequencies' waves in a + b.

    Nanda et al. 2023, section 5.1. In a model that adds by these frequencies alone the restricted loss is near the full
    one, or below it (what is left out is noise), and the excluded loss is near ln p (uniform) or far above.

    ``logits`` are (p * p, at least p), at the ``=``, on all pairs. ``counted`` (p * p,) bool are the pairs whose loss
    counts; the waves are always fitted on all pairs. Keys: full, restricted, excluded, uniform (= ln p).
    """
    p = _modulus(logits)
    right = _sums(p, logits.device)
    counted = _counted(counted, right)
    full, turning = logits.double(), _along_sums(logits, frequencies)
    versions = {"full": full, "restricted": full.mean(0) + turning, "excluded": full - turning}
    losses = {name: F.cross_entropy(L[counted], right[counted]).item() for name, L in versions.items()}
    return losses | {"uniform": float(np.log(p))}


def fourier_losses_chance(
    logits: Tensor, frequencies: Sequence[int], counted: Tensor | None = None, n_draws: int = 20
) -> dict[str, Chance]:
    """Return restricted and excluded losses with as many random frequencies that are *not* the key ones.

    Keeping the wrong ones should cost everything, taking the wrong ones away nothing.
    """
    others = _other_frequencies(frequencies, _modulus(logits), n_draws)
    drawn = [fourier_losses(logits, some, counted) for some in others]
    return {name: Chance.of([losses[name] for losses in drawn]) for name in ("restricted", "excluded")}


class Circuit(NamedTuple):
    """Whether a model is the Fourier circuit: its key frequencies, and figures beside their chance levels."""

    frequencies: list[int]
    figures: dict[str, float]
    chance: dict[str, Chance]
    """Of those figures that have one."""


def circuit(W_E: Tensor, neurons: Tensor, logits: Tensor, counted: Tensor, n_draws: int = 20) -> Circuit:
    """Hold a model of modular addition against the published circuit.

    ``W_E`` (p, d) embeds the numbers; ``neurons`` (p * p, m) are MLP activations and ``logits`` (p * p, p) those of the
    numbers, at the ``=`` on all pairs; accuracy and losses are measured on the pairs ``counted`` (p * p,), bool: those
    never trained on.

    The figures: accuracy; key_power (share of W_E's non-constant power at the key frequencies; chance: as many
    strongest ones when rows are shuffled); neuron_share (mean over neurons of the largest share of variance at one
    frequency; chance: noise) and neurons_at_keys (share of neurons with that frequency among the keys; chance: as many
    of all frequencies); logit_share, restricted and excluded (see the functions; chance: as many other frequencies,
    drawn ``n_draws`` times); full and uniform.
    """
    p, keys = _modulus(logits), key_frequencies(W_E)
    right = _sums(p, logits.device)
    shares = neuron_frequencies(neurons)
    others = _other_frequencies(keys, p, n_draws)
    figures = {
        "accuracy": float((logits.argmax(1) == right)[_counted(counted, right)].double().mean()),
        "key_power": strongest_share(W_E, len(keys)),
        "neuron_share": float(shares.amax(1).mean()),
        "neurons_at_keys": float(torch.isin(shares.argmax(1) + 1, torch.tensor(keys)).double().mean()),
        "logit_share": logit_share(logits, keys),
    }
    by_chance = {
        "accuracy": Chance(1 / p, 1 / p),
        "key_power": strongest_share_chance(W_E, len(keys)),
        "neuron_share": neuron_chance(p, neurons.shape[1]),
        "neurons_at_keys": Chance(len(keys) / _half(p), len(keys) / _half(p)),
        "logit_share": Chance.of([logit_share(logits, some) for some in others]),
    }
    figures |= fourier_losses(logits, keys, counted)
    by_chance |= fourier_losses_chance(logits, keys, counted, n_draws)
    return Circuit(keys, figures, by_chance)


def _other_frequencies(frequencies: Sequence[int], p: int, n_draws: int) -> list[list[int]]:
    """Draw sets of as many frequencies, none of them among those given (fewer where fewer are left)."""
    rng = np.random.default_rng(0)
    others = np.setdiff1d(np.arange(1, _half(p) + 1), list(frequencies))
    if not len(others):
        raise ValueError(f"{len(frequencies)} key frequencies are all there are at p = {p}: none is left for chance")
    n = min(len(frequencies), len(others))
    return [rng.choice(others, n, replace=False).tolist() for _ in range(n_draws)]


def _along_sums(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """Projection of each column, a function of all pairs, on its waves in a + b (orthogonal, squared norm p^2 / 2)."""
    p = _modulus(logits)
    W = waves(_sums(p, logits.device), frequencies, p)
    return W @ (W.T @ logits.double()) * (2 / p**2)


def _sums(p: int, device: torch.device | None = None) -> Tensor:
    numbers = torch.arange(p, device=device)
    return ((numbers[:, None] + numbers) % p).flatten()


def _counted(counted: Tensor | None, right: Tensor) -> Tensor:
    """Return the mask of the pairs that count, all if None, where ``right`` (p * p,) is."""
    if counted is None:
        return torch.ones_like(right, dtype=torch.bool)
    return bool_mask("counted", counted, tuple(right.shape)).to(right.device)


def _half(p: int) -> int:
    if p < 5 or p % 2 == 0:
        raise ValueError(f"p = {p}: expected an odd modulus of 5 or more")
    return (p - 1) // 2


def _modulus(values: Tensor) -> int:
    """The p of a (p * p, ...) tensor on all pairs."""
    p = round(len(values) ** 0.5)
    if values.ndim != 2 or p * p != len(values):
        raise ValueError(f"{tuple(values.shape)}: expected one row for each of the p * p pairs")
    _half(p)
    return p
