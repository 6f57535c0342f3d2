from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from rkcnn_lib.sae import SAE, SAEConfig, TrainConfig
from rkcnn_lib.sae.architectures import random_directions


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"d_in": 0, "d_sae": 8, "k": 2}, "d_in=0"),
        ({"d_in": 4, "d_sae": -1, "k": 2}, "d_sae=-1"),
        ({"d_in": 4, "d_sae": 8}, "k=None"),
        ({"d_in": 4, "d_sae": 8, "k": 0}, "k=0"),
        ({"d_in": 4, "d_sae": 8, "k": 9}, r"k=9 .*\[1, 8\]"),
        ({"d_in": 4, "d_sae": 8, "k": 2.5}, "k=2.5"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "aux_k": 0}, "aux_k=0"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "aux_k": 2, "aux_coefficient": -1.0}, "aux_coefficient=-1.0"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "l1": 1.0}, "l1=1.0"),
        ({"d_in": 4, "d_sae": 8, "architecture": "gated"}, "architecture='gated'.*topk"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu"}, "l1=None"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": -1.0}, "l1=-1.0"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": 1.0, "k": 2}, "k=2"),
        ({"d_in": 4, "d_sae": 8, "architecture": "jumprelu", "aux_k": 2}, "aux_k=2"),
        ({"d_in": True, "d_sae": 8, "k": 2}, "d_in=True"),
        ({"d_in": 4, "d_sae": 8, "k": np.True_}, "k=np.True_"),
        ({"d_in": 4, "d_sae": 8, "k": np.float64(2.0)}, "k=np.float64"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": math.inf}, "l1=inf"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": math.nan}, "l1=nan"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": "5"}, "l1='5'"),
        ({"d_in": 4, "d_sae": 8, "architecture": "relu", "l1": True}, "l1=True"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "aux_k": 2, "aux_coefficient": math.inf}, "aux_coefficient=inf"),
        ({"d_in": 4, "d_sae": 8, "k": 2, "aux_k": 2, "aux_coefficient": None}, "aux_coefficient=None"),
    ],
)
def test_config_refuses_and_names_the_parameter(settings, named):
    with pytest.raises(ValueError, match=named):
        SAEConfig(**settings)


def test_numbers_of_numpy_become_numbers_in_json():
    given = SAEConfig(np.int64(5), np.int32(8), k=np.uint8(2), aux_k=np.int64(3), aux_coefficient=np.float64(0.25))
    assert json.loads(json.dumps(asdict(given))) == asdict(SAEConfig(5, 8, k=2, aux_k=3, aux_coefficient=0.25))
    assert json.dumps(asdict(SAEConfig(5, 8, "relu", l1=np.float32(0.5)))).count('"l1": 0.5') == 1
    given = TrainConfig(
        steps=np.int64(20), batch_size=np.int16(8), lr=np.float32(0.5), seed=np.int64(7), warmup=np.float16(0.25),
        clip=np.float64(1.5), snapshot_steps=np.arange(3), train_decoder=np.bool_(False), autocast=np.False_,
    )  # fmt: skip
    plain = TrainConfig(20, 8, 0.5, 7, 0.25, clip=1.5, snapshot_steps=(0, 1, 2), train_decoder=False, autocast=False)
    assert json.dumps(asdict(given)) == json.dumps(asdict(plain))


def example(architecture: str) -> SAE:
    settings = {"topk": {"k": 3}, "batchtopk": {"k": 3}, "relu": {"l1": 1.0}, "jumprelu": {}}[architecture]
    sae = SAE(SAEConfig(6, 20, architecture, **settings), random_state=1)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-0.2, 0.2, 20))
        sae.b_dec.copy_(torch.linspace(-1, 1, 6))
        sae.threshold.fill_(0.3)
    return sae


def test_encoding_follows_the_definition():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for architecture in ("relu", "topk", "batchtopk", "jumprelu"):
        sae = example(architecture)
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        if architecture == "relu":
            expected = pre.clamp_min(0)
        elif architecture == "topk":
            kth = pre.sort(dim=1, descending=True).values[:, 2:3]
            expected = torch.where(pre >= kth, pre, 0).clamp_min(0)
        else:
            expected = torch.where(pre > 0.3, pre, 0)
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae(x), expected @ sae.W_dec + sae.b_dec)
        # one token at a time gives the same code: nothing depends on the batch
        torch.testing.assert_close(torch.stack([sae.encode(row) for row in x]), sae.encode(x))


def test_reconstructing_by_active_latents_changes_nothing():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    for architecture in ("relu", "topk", "batchtopk", "jumprelu"):
        for bias in (-0.8, 1.0):  # few active latents, and many
            sae = example(architecture)
            with torch.no_grad():
                sae.b_enc.add_(bias)
            x_hat, tokens, latents = sae.reconstruct(x)
            z = sae.encode(x)
            torch.testing.assert_close(x_hat, sae.decode(z).detach())
            assert torch.equal(torch.stack([tokens, latents], 1), (z > 0).nonzero())


def test_rows_that_are_not_finite_stay_visible_and_touch_no_others():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[7, 2] = torch.nan
    others = torch.arange(50) != 7
    for architecture in ("relu", "topk", "batchtopk", "jumprelu"):
        sae = example(architecture)
        for found, whole in ((sae(spoiled), sae(x)), (sae.reconstruct(spoiled)[0], sae.reconstruct(x)[0])):
            assert found[7].isnan().all()
            torch.testing.assert_close(found[others], whole[others])


def test_scaling_the_inputs_scales_codes_and_reconstructions():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    for architecture in ("relu", "topk", "batchtopk", "jumprelu"):
        raw, scaled = example(architecture), example(architecture)
        scaled.scale_inputs_(2.5)
        torch.testing.assert_close(scaled.encode(2.5 * x), 2.5 * raw.encode(x))
        torch.testing.assert_close(scaled(2.5 * x), 2.5 * raw(x))


def test_random_decoder_points_in_all_directions():
    sae = SAE(SAEConfig(40, 500, k=4))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(500))
    # rand instead of randn would make every entry positive and the mean row long
    assert abs(float((sae.W_dec > 0).float().mean()) - 0.5) < 0.02
    assert sae.W_dec.mean(dim=0).norm() < 0.1
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_random_rows_follow_their_seed():
    assert torch.equal(random_directions(10, 7, 3), random_directions(10, 7, 3))
    assert not torch.equal(random_directions(10, 7, 3), random_directions(10, 7, 4))


def test_wrong_widths_are_refused():
    sae = example("topk")
    for function in (sae.encode, sae.encode_batch, sae):
        with pytest.raises(ValueError, match=r"width 5.*d_in=6"):
            function(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="d_sae=20"):
        sae.decode(torch.zeros(3, 5))
