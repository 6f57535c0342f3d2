from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.sae import SAE, SAEConfig, load_saelens, save_saelens

SETTINGS = {"relu": {"l1": 2.5}, "topk": {"k": 4}, "batchtopk": {"k": 4}, "jumprelu": {}}
X = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))


def example(architecture: str) -> SAE:
    sae = SAE(SAEConfig(10, 30, architecture, **SETTINGS[architecture]))
    with torch.no_grad():
        sae.W_enc.mul_(1.3)
        sae.b_enc.normal_(generator=torch.Generator().manual_seed(1))
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(2))
        sae.threshold.fill_(0.4)
    return sae


@pytest.mark.parametrize("architecture", list(SETTINGS))
def test_what_is_saved_comes_back(architecture, tmp_path):
    sae = example(architecture)
    back = load_saelens(
        save_saelens(sae, tmp_path / "sae", {"model_name": "gpt2", "hook_name": "blocks.6.hook_mlp_out"})
    )
    torch.testing.assert_close(back.encode(X), sae.encode(X), atol=1e-6, rtol=0)
    torch.testing.assert_close(back(X), sae(X), atol=1e-6, rtol=0)
    if architecture != "batchtopk":
        assert back.config == sae.config
    fields = json.loads((tmp_path / "sae" / "cfg.json").read_text(encoding="utf-8"))
    assert fields["architecture"] == {"relu": "standard", "topk": "topk"}.get(architecture, "jumprelu")
    assert fields["apply_b_dec_to_input"] is True and fields["normalize_activations"] == "none"
    assert fields["metadata"]["hook_name"] == "blocks.6.hook_mlp_out"
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_batchtopk_becomes_a_jumprelu_with_one_threshold(tmp_path):
    save_saelens(example("batchtopk"), tmp_path)
    back = load_saelens(tmp_path)
    assert back.config.architecture == "jumprelu"
    assert torch.equal(back.threshold, torch.full((30,), 0.4))
    assert json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8"))["metadata"]["k"] == 4


def test_bias_not_applied_to_the_input_is_folded_in(tmp_path):
    sae = example("relu")
    save_saelens(sae, tmp_path)
    change_config(tmp_path, apply_b_dec_to_input=False)
    expected = (X @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(load_saelens(tmp_path).encode(X), expected, atol=1e-5, rtol=1e-5)


def change_config(folder, **changes):
    fields = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps(fields | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gated"}, "'gated' is not supported.*topk"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"d_sae": 31}, "W_enc has shape"),
        ({"k": 99}, "k=99"),
        ({"rescale_acts_by_decoder_norm": True}, "not unit length"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused(changes, named, tmp_path):
    sae = example("topk")
    with torch.no_grad():
        sae.W_dec.mul_(2.0)
    save_saelens(sae, tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=named):
        load_saelens(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no cfg\.json"):
        load_saelens(tmp_path)
    save_saelens(example("jumprelu"), tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "threshold"}, weights)
    with pytest.raises(ValueError, match="threshold has shape None"):
        load_saelens(tmp_path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="missing or damaged"):
        load_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_saelens(tmp_path)
