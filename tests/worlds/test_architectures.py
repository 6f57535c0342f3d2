"""Models of many architectures: they load and every hook is what a plain forward hook sees, or they are refused."""

from __future__ import annotations

import re

import pytest

from rkcnn_lib.worlds import HOOKS, capture_layers, hook_width, model_facts
from rkcnn_lib.worlds.activations import capture_job
from tests.worlds.architecture_page import PAGE, page
from tests.worlds.architectures import build, judge, listed
from tests.worlds.tiny import small_text

# Where attn_out, mlp_out and mlp_post are; then d_mlp and the longest context, as each configuration spells them.
FEW = {
    "BloomForCausalLM": ("self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h", 128, 2048),
    "CodeGenForCausalLM": ("attn", "mlp", "mlp.fc_out", 128, 64),
    "FalconForCausalLM": ("self_attention", "mlp", "mlp.dense_4h_to_h", 128, 64),
    "GPT2LMHeadModel": ("attn", "mlp", "mlp.c_proj", 48, 64),
    "GPTBigCodeForCausalLM": ("attn", "mlp", "mlp.c_proj", 128, 64),
    "GPTJForCausalLM": ("attn", "mlp", "mlp.fc_out", 128, 64),
    "GPTNeoForCausalLM": ("attn", "mlp", "mlp.c_proj", 128, 64),
    "LlamaForCausalLM": ("self_attn", "mlp", "mlp.down_proj", 48, 64),
    "MptForCausalLM": ("attn", "ffn.down_proj", "ffn.down_proj", 128, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
def test_an_architecture_loads_and_its_hooks_are_what_plain_forward_hooks_see(tmp_path, kind):
    row = judge(kind, tmp_path)
    attn, mlp, projection, d_mlp, n_ctx = FEW[kind]
    assert row.refused is None and (row.facts.d_mlp, row.facts.n_ctx, row.facts.n_experts) == (d_mlp, n_ctx, 0)
    assert {hook: {*found.values()} for hook, found in row.hooks.items()} == {
        "resid_pre": {"input of the block"},
        "resid_post": {"output of the block"},
        "attn_out": {f"output of {attn}"},
        "mlp_out": {f"output of {mlp}"},
        "mlp_post": {f"input of {projection}"},
    }


def test_mlp_post_of_a_mixture_of_experts_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    folder = build("MixtralForCausalLM", tmp_path / "model")
    facts = model_facts(folder)
    monkeypatch.setattr(capture_job, "load_model", None)
    with pytest.raises(ValueError, match=r"mlp_post.*is a mixture of 4 experts"):
        capture_layers(folder, [1], ["mlp_out", "mlp_post"], 3200, "/no/such.txt", tmp_path / "cache", context_size=32)
    assert facts.n_experts == 4 and hook_width(facts, "mlp_out") == 32 and not (tmp_path / "cache").exists()


def test_a_mixture_that_its_configuration_hides_is_refused_before_the_first_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("rkcnn_lib.worlds.models.load.EXPERTS", re.compile("none"))
    folder, text = build("MixtralForCausalLM", tmp_path / "model"), small_text(tmp_path / "text.txt")
    monkeypatch.setattr(capture_job, "pack_text", None)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.hook_post cannot be had from this model \(MixtralForC"):
        capture_layers(folder, [1], ["mlp_post"], 3200, text=text, root=tmp_path, context_size=32, device="cpu")


def test_a_model_that_reads_later_tokens_is_refused(tmp_path):
    row = judge("BertLMHeadModel", tmp_path)
    assert row.refused.endswith("(BertLMHeadModel) reads later tokens: no causal language model")


@pytest.mark.long
def test_the_page_of_architectures_is_what_the_library_does(tmp_path):
    rows = [judge(kind, tmp_path / str(number)) for number, kind in enumerate(listed())]
    assert not any("WRONG" in row.hooks[hook].values() for row in rows if not row.refused for hook in HOOKS)
    table = "| architecture |"
    assert page(rows).partition(table)[2] == PAGE.read_text(encoding="utf-8").partition(table)[2]
