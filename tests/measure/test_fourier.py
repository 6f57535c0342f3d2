"""A perfect Fourier circuit scores 1 on every measure, noise and shuffled weights score chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rkcnn_lib.measure.fourier import (
    circuit,
    energy_chance,
    fourier_losses,
    fourier_losses_chance,
    fourier_planes,
    frequency_power,
    key_frequencies,
    latent_fit,
    logit_share,
    neuron_frequencies,
    plane_energy,
    span_energy,
    strongest_share,
    strongest_share_chance,
    waves,
)

P, KEYS = 31, [3, 7, 12]
EVERYTHING = torch.ones(P * P, dtype=torch.bool)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embedding(d=24):
    """Numbers embedded by waves of the key frequencies alone, plus a constant."""
    return waves(torch.arange(P), KEYS, P).float() @ random(6, d) + random(1, d, seed=1)


def grid():
    return torch.cartesian_prod(torch.arange(P), torch.arange(P))


def sums():
    return grid().sum(1) % P


def circuit_logits(frequencies=KEYS, scale=3.0):
    """Logits of the published algorithm: a sum of cos(2 pi k (a + b - c) / p)."""
    difference = (sums()[:, None] - torch.arange(P)) * 2 * math.pi / P
    return scale * sum((k * difference.double()).cos() for k in frequencies)


def test_a_perfect_embedding_has_exactly_its_key_frequencies():
    assert sorted(key_frequencies(embedding())) == KEYS
    assert strongest_share(embedding(), 3) == pytest.approx(1, abs=1e-9)
    assert frequency_power(embedding()).sum() == pytest.approx(1)


def test_power_equals_its_slow_twin_by_sines_and_cosines():
    W = random(P, 5).double()
    slow = []
    for k in range(1, (P - 1) // 2 + 1):
        angle = torch.arange(P).double() * 2 * math.pi * k / P
        slow.append(float(((W.T @ angle.cos()) ** 2 + (W.T @ angle.sin()) ** 2).sum()))
    assert frequency_power(W).numpy() == pytest.approx(np.array(slow) / sum(slow))


def test_conjugate_frequencies_are_one():
    conjugate = torch.stack([(torch.arange(P) * (P - 3) * 2 * math.pi / P).cos()], dim=1)
    assert key_frequencies(conjugate) == [3]


def test_a_random_embedding_is_at_chance_and_so_are_shuffled_weights():
    by_chance = strongest_share_chance(random(P, 24), 3)
    noise = [strongest_share(random(P, 24, seed=seed), 3) for seed in range(100, 140)]
    assert by_chance.mean == pytest.approx(np.mean(noise), abs=0.01) and by_chance.mean < by_chance.upper < 0.4
    of_the_perfect = strongest_share_chance(embedding(), 3)
    shuffles = [
        strongest_share(embedding()[torch.randperm(P, generator=torch.Generator().manual_seed(seed))], 3)
        for seed in range(100, 140)
    ]
    assert of_the_perfect.mean == pytest.approx(np.mean(shuffles), abs=0.02) and of_the_perfect.upper < 0.6
    assert len(key_frequencies(random(P, 24))) > 10


def test_an_even_modulus_is_refused():
    with pytest.raises(ValueError, match="odd modulus"):
        frequency_power(random(30, 4))


def test_a_neuron_of_one_frequency_is_all_of_that_frequency_and_noise_is_chance():
    a, b = waves(grid()[:, 0], [7], P), waves(grid()[:, 1], [7], P)
    neurons = torch.stack([a[:, 0] + b[:, 1], a[:, 0] * b[:, 0] + 2.0, torch.ones(P * P)], dim=1)
    shares = neuron_frequencies(neurons)
    assert shares[:2].argmax(1).tolist() == [6, 6] and shares[:2, 6].numpy() == pytest.approx(1, abs=1e-4)
    assert shares[2].max() == 0  # never varies
    noise = random(P * P, 50, seed=5)
    chance = circuit(embedding(), noise, circuit_logits(), EVERYTHING).chance["neuron_share"]
    assert neuron_frequencies(noise).amax(1).mean() == pytest.approx(chance.mean, abs=0.005)
    assert chance.upper < 0.05


def test_the_published_algorithm_has_all_its_logits_and_noise_none():
    assert logit_share(circuit_logits() + 5.0, KEYS) == pytest.approx(1)
    assert logit_share(circuit_logits(), KEYS[:1]) == pytest.approx(1 / 3)
    assert logit_share(random(P * P, P), KEYS) < 1e-3


def test_restricted_loss_keeps_the_algorithm_and_excluded_loss_takes_it_away():
    losses = fourier_losses(circuit_logits() + 0.1 * random(P * P, P), KEYS, EVERYTHING)
    assert losses["restricted"] == pytest.approx(losses["full"], abs=0.05) and losses["full"] < 0.2
    assert losses["excluded"] == pytest.approx(math.log(P), abs=0.1) and losses["uniform"] == math.log(P)
    chance = fourier_losses_chance(circuit_logits() + 0.1 * random(P * P, P), KEYS, EVERYTHING)
    assert chance["restricted"].mean == pytest.approx(math.log(P), abs=0.1)
    assert chance["excluded"].mean == pytest.approx(losses["full"], abs=0.05)


def test_a_planted_circuit_passes_every_check_and_noise_none():
    a, b = waves(grid()[:, 0], KEYS, P), waves(grid()[:, 1], KEYS, P)
    planted = circuit(embedding(), torch.cat([a * b, a + b], dim=1), circuit_logits(), EVERYTHING)
    noise = circuit(embedding(), random(P * P, 12), random(P * P, P), EVERYTHING)
    assert sorted(planted.frequencies) == KEYS
    for name in ("accuracy", "key_power", "neuron_share", "neurons_at_keys", "logit_share"):
        assert planted.figures[name] == pytest.approx(1, abs=1e-3) and planted.chance[name].upper < 0.6, name
    assert planted.figures["excluded"] > math.log(P) - 0.1 > planted.figures["restricted"] + 3
    assert noise.figures["neuron_share"] == pytest.approx(noise.chance["neuron_share"].mean, abs=0.01)
    assert noise.figures["accuracy"] < 0.1 and noise.figures["logit_share"] < 1e-3
    assert noise.figures["excluded"] == pytest.approx(noise.figures["full"], abs=0.05)


def test_losses_count_the_pairs_asked_for_alone():
    logits = circuit_logits()
    logits[0] = 0.0
    only = torch.zeros(P * P, dtype=torch.bool)
    only[0] = True
    assert fourier_losses(logits, KEYS, only)["full"] == pytest.approx(math.log(P))


def test_planes_are_found_and_directions_in_them_have_energy_1_at_any_phase():
    basis = torch.linalg.qr(random(40, 6).double()).Q.T.view(3, 2, 40)
    X = torch.einsum("nkt,ktd->nd", waves(sums(), KEYS, P).view(-1, 3, 2), basis) + 0.05 * random(P * P, 40)
    planes = fourier_planes(X[:300], sums()[:300], KEYS, P)
    phases = torch.linspace(0, 6, 20).double()
    for i in range(3):
        D = phases.cos()[:, None] * basis[i, 0] + phases.sin()[:, None] * basis[i, 1]
        assert plane_energy(D, planes)[:, i].min() > 0.99 and span_energy(D, planes).min() > 0.99
    assert planes.explained.sum() == pytest.approx(1, abs=0.1)


def test_random_directions_have_the_energy_of_chance():
    planes = fourier_planes(waves(sums(), KEYS, P) @ random(6, 128, seed=9).double(), sums(), KEYS, P)
    best, span = energy_chance(200, planes)
    D = random(200, 128, seed=3)
    assert span_energy(D, planes).mean() == pytest.approx(6 / 128, abs=0.01)
    assert span.mean == pytest.approx(6 / 128, abs=0.003)
    assert plane_energy(D, planes).amax(1).mean() == pytest.approx(best.mean, abs=0.01)
    assert best.mean < best.upper


def test_directions_that_lie_as_the_activations_do_have_energy_by_chance():
    """Activations that fill the planes and nothing else: all energy is there, and of one plane more than by chance."""
    X = waves(sums(), KEYS, P) @ random(6, 128, seed=9).double()
    planes = fourier_planes(X, sums(), KEYS, P)
    (best, span), anywhere = energy_chance(100, planes, spread=X - X.mean(0)), energy_chance(100, planes)
    assert span.mean == pytest.approx(1, abs=1e-6) and anywhere[1].mean < 0.1
    rows = X[torch.randperm(P * P, generator=torch.Generator().manual_seed(0))[:100]]  # points of the torus
    assert plane_energy(rows - X.mean(0), planes).amax(1).mean() < 0.75
    assert 0.4 < best.mean < best.upper < 0.85 and anywhere[0].mean < 0.05


def test_a_latent_that_is_a_wave_is_fitted_on_held_out_pairs_and_shuffled_sums_give_chance():
    Z = torch.cat([waves(sums(), [7], P) + 1, waves(sums(), [3], P)[:, :1] ** 2, torch.ones(P * P, 1)], dim=1)
    Z[:, :2] += 0.01 * random(P * P, 2)
    order = torch.randperm(P * P, generator=torch.Generator().manual_seed(0))
    fit, held_out = order[:500], order[500:]
    best, of_all = latent_fit(Z[fit], sums()[fit], Z[held_out], sums()[held_out], KEYS, P)
    assert best[:2].min() > 0.99
    assert abs(best[2]) < 0.05  # cos^2 turns at twice the frequency, which is none of the keys
    assert best[3].isnan() and of_all[3].isnan()
    shuffled = sums()[order]
    best, of_all = latent_fit(Z[fit], shuffled[fit], Z[held_out], shuffled[held_out], KEYS, P)
    assert best[:3].max() < 0.05 and of_all[:3].max() < 0.05
