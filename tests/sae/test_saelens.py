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


def as_before_version_6(sae, folder, tensors=(), dtype=torch.float32, **fields):
    """A folder as SAELens 2 to 5 wrote it, with more tensors in the file, in another precision."""
    save_saelens(sae, folder)
    weights = load_file(folder / "sae_weights.safetensors") | dict(tensors)
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    written = {
        "d_in": 10, "d_sae": 30, "dtype": str(dtype).removeprefix("torch."), "hook_name": "blocks.8.hook_resid_pre",
        "hook_layer": 8, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "prepend_bos": True,
        "normalize_activations": False, "l1_coefficient": None,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(written | fields), encoding="utf-8")
    return folder


TOPK_4 = {"activation_fn_kwargs": {"k": 4}}


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "standard", "activation_fn_str": "topk"} | TOPK_4,
        {"architecture": "standard", "activation_fn": "topk"} | TOPK_4,
        {"activation_fn_str": "topk"} | TOPK_4,
        {"activation_fn": "topk"} | TOPK_4,
        {"architecture": "topk", "activation_fn_str": "topk"} | TOPK_4,
        {"architecture": "topk"} | TOPK_4,
        {"architecture": "topk", "k": 4},
    ],
)
def test_a_topk_of_before_version_6_is_read_as_one(fields, tmp_path):
    back = load_saelens(as_before_version_6(example("topk"), tmp_path, **fields))
    assert back.config == SAEConfig(10, 30, k=4)
    assert torch.equal(back.encode(X), example("topk").encode(X))


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_fn_str": "relu", "activation_fn_kwargs": {}},
        {"architecture": "standard", "activation_fn": "relu", "activation_fn_kwargs": None},
        {"architecture": None, "metadata": {"l1_coefficient": None}, "normalize_activations": None},
        {},
    ],
)
def test_a_relu_of_before_version_6_is_read_as_one(fields, tmp_path):
    back = load_saelens(as_before_version_6(example("relu"), tmp_path, **fields))
    assert back.config == SAEConfig(10, 30, "relu", l1=0.0)
    assert torch.equal(back.encode(X), example("relu").encode(X))


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("relu", {"activation_fn_str": "tanh-relu"}),
        ("relu", {"architecture": "standard", "activation_fn": "tanh-relu"}),
        ("relu", {"architecture": "topk", "activation_fn_str": "relu"} | TOPK_4),
        ("jumprelu", {"architecture": "jumprelu", "activation_fn_str": "topk"} | TOPK_4),
    ],
)
def test_other_activation_functions_are_refused_by_name(architecture, fields, tmp_path):
    folder = as_before_version_6(example(architecture), tmp_path, **fields)
    said = fields.get("activation_fn_str", fields.get("activation_fn"))
    with pytest.raises(ValueError, match=f"activation function '{said}' is not supported"):
        load_saelens(folder)


@pytest.mark.parametrize("named", ["scaling_factor", "finetuning_scaling_factor"])
@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu"])
def test_a_finetuned_scale_multiplies_the_codes_that_are_decoded(architecture, named, tmp_path):
    sae, factor = example(architecture), torch.linspace(0.5, 2.0, 30)
    fields = {"relu": {}, "topk": {"activation_fn_str": "topk"} | TOPK_4, "jumprelu": {"architecture": "jumprelu"}}
    folder = as_before_version_6(sae, tmp_path, {named: factor}, finetuning_scaling_factor=True, **fields[architecture])
    back, codes = load_saelens(folder), sae.encode(X)
    assert torch.equal(back.encode(X), codes)  # which latents fire, and how strongly, is untouched
    torch.testing.assert_close(back(X), sae.decode(codes * factor))
    change_config(folder, finetuning_scaling_factor=False)
    with pytest.raises(ValueError, match=f"{named} is not 1"):
        load_saelens(folder)


def test_a_scale_of_ones_that_is_not_in_use_is_left_out(tmp_path):
    folder = as_before_version_6(example("relu"), tmp_path, {"scaling_factor": torch.ones(30)})
    assert torch.equal(load_saelens(folder).W_dec, example("relu").W_dec)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read(dtype, tmp_path):
    sae = example("topk")
    back = load_saelens(as_before_version_6(sae, tmp_path, dtype=dtype, activation_fn_str="topk", **TOPK_4))
    for name, tensor in back.named_parameters():
        assert torch.equal(tensor, getattr(sae, name).to(dtype).float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("named", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_weights_that_are_not_finite_are_refused_by_name(named, value, tmp_path):
    sae = example("jumprelu")
    with torch.no_grad():
        getattr(sae, named)[..., 3] = value
    save_saelens(sae, tmp_path)
    with pytest.raises(ValueError, match=rf"sae_weights.safetensors: {named} holds NaN"):
        load_saelens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gated"}, "'gated' is not supported.*topk"),
        ({"architecture": ["topk"]}, "is not supported.*topk"),
        ({"normalize_activations": True}, "normalize_activations=True"),
        ({"d_in": "10"}, r"cfg.json: d_in='10'"),
        ({"k": None, "activation_fn_kwargs": [4]}, "cfg.json: k=None"),
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
