from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from rkcnn_lib.sae import SAE, SAEConfig, geometric_median, init_from_directions
from rkcnn_lib.sae.inits import best_scale
from rkcnn_lib.worlds.toy import PlantedDictionary
from tests.sae.planted import planted

X, TRUTH = planted(2000)
X = 7.0 * X + 3.0
CONFIG = SAEConfig(32, 64, k=3)


def test_every_arm_has_the_same_fill_and_it_lies_as_the_activations_do():
    few = init_from_directions(CONFIG, TRUTH[:10], X=X, random_state=3)
    many = init_from_directions(CONFIG, TRUTH[:40], X=X, random_state=3)
    none = init_from_directions(CONFIG, X=X, random_state=3)
    assert torch.equal(few.W_dec[40:], many.W_dec[40:])
    assert not torch.equal(few.W_dec, init_from_directions(CONFIG, TRUTH[:10], X=X, random_state=4).W_dec)
    for sae in (few, many, none):
        assert torch.equal(sae.b_dec, none.b_dec)
        assert torch.equal(sae.b_enc, torch.zeros(64))
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    stretched = X * torch.where(torch.arange(32) < 4, 10.0, 1.0)
    filled = init_from_directions(CONFIG, TRUTH[:1], X=stretched).W_dec[1:]
    assert filled[:, :4].square().sum(1).mean() > 0.8  # a uniform draw has an eighth there


def test_encoder_is_tied_up_to_one_scalar():
    sae = init_from_directions(CONFIG, TRUTH, X=X)
    ratio = sae.W_enc.norm(dim=0)
    torch.testing.assert_close(ratio, ratio[0].expand(64))
    torch.testing.assert_close(sae.W_enc / ratio, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec[: len(TRUTH)], TRUTH)


def test_a_start_by_the_decoder_only_leaves_the_encoder_random():
    both, half = (init_from_directions(CONFIG, TRUTH[:20], X=X, encoder=kind) for kind in ("tied", "random"))
    torch.testing.assert_close(half.W_dec, both.W_dec)
    scale = half.W_enc.norm(dim=0)[0]
    torch.testing.assert_close(half.W_enc / scale, SAE(CONFIG).W_dec.T)


def test_a_fitted_encoder_reads_what_its_directions_write_better_than_a_tied_one():
    tied, fitted = (init_from_directions(CONFIG, TRUTH, X=X, encoder=kind) for kind in ("tied", "fitted"))
    torch.testing.assert_close(fitted.W_dec, tied.W_dec)
    errors = [float((sae(X) - X).square().mean().detach()) for sae in (tied, fitted)]
    assert errors[1] < 0.7 * errors[0], errors


def test_a_fitted_encoder_is_the_ridge_regression_of_the_codes_at_their_own_slope():
    sae = init_from_directions(CONFIG, TRUTH, X=X, encoder="fitted")
    D, x = sae.W_dec.detach(), X - sae.b_dec.detach()
    codes = torch.zeros(len(X), 64)
    for row in range(len(X)):
        left = x[row].clone()
        for _ in range(3):
            inner = D @ left
            best = int(inner.argmax())
            codes[row, best] += inner[best].clamp_min(0)
            left -= inner[best].clamp_min(0) * D[best]
    centred, mean = x.double() - x.double().mean(0), codes.double().mean(0)
    ridge = 1e-3 * x.double().square().sum(0).mean() * torch.eye(32, dtype=torch.float64)
    W = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (codes.double() - mean))
    b = mean - x.double().mean(0) @ W
    slope = codes.double().square().sum(0) / (codes.double() * (x.double() @ W + b)).sum(0)
    assert slope[codes.any(0)].min() > 1  # a regression shrinks
    W, b = W * slope.clamp_max(20), b * slope.clamp_max(20)  # MOST_SCALED
    coded = codes.any(0)
    scale = float(sae.W_enc.detach()[:, coded].norm() / W[:, coded].norm())
    fitted, bias = sae.W_enc.detach().double() / scale, sae.b_enc.detach().double() / scale
    torch.testing.assert_close(fitted[:, coded], W[:, coded], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(bias[coded], b[coded], atol=1e-3, rtol=1e-2)


def test_a_fitted_encoder_silences_no_rare_direction():
    world = PlantedDictionary(256, 48, mean_active=3.0, noise=0.02, random_state=0)
    rows = world.sample(20_000)[0]
    for encoder in ("tied", "fitted"):
        sae = init_from_directions(SAEConfig(48, 256, k=3), world.directions, X=rows, encoder=encoder)
        assert (sae.encode(rows) > 0).any(0).float().mean() > 0.99, encoder


@pytest.mark.parametrize("config", [CONFIG, SAEConfig(32, 64, "relu", l1=1.0), SAEConfig(32, 64, "batchtopk", k=3)])
def test_no_other_scale_reconstructs_better(config):
    """Long directions in one place, as datapoints give them, must not start the arm far off."""
    sae = init_from_directions(config, X[:40] * 100, X=X)
    assert best_scale(sae, X) == pytest.approx(1.0, abs=1e-4)

    def error(factor: float) -> float:
        other = init_from_directions(config, X[:40], X=X)
        with torch.no_grad():
            other.W_enc.mul_(factor)
            z = other.encode_batch(X).dense() if config.uses_topk else other.encode(X)
            return float((other.decode(z) - X).square().mean())

    assert error(1.0) < min(error(0.9), error(1.1), error(0.5), error(2.0))


def test_batchtopk_starts_with_a_threshold_that_lets_k_latents_through():
    sae = init_from_directions(SAEConfig(32, 64, "batchtopk", k=3), TRUTH, X=X)
    assert (sae.encode(X) > 0).sum() == 3 * len(X)
    few = init_from_directions(SAEConfig(32, 64, "batchtopk", k=60), TRUTH, X=X)
    assert not few.threshold.any() and (few.encode(X) > 0).sum() < 60 * len(X)  # no more than are positive


def test_a_latent_that_no_row_is_coded_with_stays_tied():
    moves = (torch.arange(32) < 31).float()  # the last dimension says nothing
    silent = torch.eye(32)[31:]
    sae = init_from_directions(CONFIG, torch.cat([TRUTH * moves, silent]), X=X * moves, encoder="fitted")
    column = sae.W_enc[:, len(TRUTH)].detach()
    torch.testing.assert_close(column / column.norm(), silent[0])
    assert sae.b_enc[len(TRUTH)] == 0 and sae.W_enc.norm(dim=0).min() > 0


def test_geometric_median_is_where_the_sum_of_distances_is_least():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double().exp()
    found = geometric_median(rows, tolerance=1e-10, n_iterations=2000)
    best = minimize(lambda p: float((rows - torch.from_numpy(p)).norm(dim=1).sum()), rows.mean(0).numpy(), tol=1e-12)
    torch.testing.assert_close(found, torch.from_numpy(best.x), atol=1e-5, rtol=0)
    assert (found - rows.mean(0)).norm() > 0.1  # skewed rows: the mean is another point


def test_geometric_median_of_one_repeated_row_is_that_row():
    assert torch.equal(geometric_median(torch.full((5, 3), 2.0)), torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"directions": torch.ones(3, 5)}, "directions have shape"),
        ({"directions": torch.zeros(3, 32)}, "zero length"),
        ({"directions": torch.full((3, 32), torch.nan)}, "NaN"),
        ({"directions": torch.full((3, 32), 1e30)}, "infinite"),  # their length is: they would become zero
        ({"directions": torch.full((3, 32), 1e-30)}, "zero length"),
        ({"directions": TRUTH, "encoder": "untied"}, "encoder"),
        ({"X": torch.zeros(0, 32)}, "at least 1 row"),
        ({"X": torch.zeros(10, 31)}, "d_in=32"),
        ({"X": torch.full((10, 32), torch.inf)}, "NaN or infinite"),
        ({"X": "rows"}, "X is a str"),
    ],
)
def test_bad_input_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        init_from_directions(CONFIG, **({"X": X} | arguments))


def test_a_plain_sae_is_the_random_arm_before_bias_and_scale():
    assert torch.equal(SAE(CONFIG, 5).W_dec, init_from_directions(CONFIG, X=X, random_state=5).W_dec)
