"""Modular addition: the committed model is the known circuit, and it is read like any language model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.embedded.modadd import Settings, at_equals, check, main, train
from rkcnn_lib.measure import quality
from rkcnn_lib.sae import SAEConfig, init_from_directions
from rkcnn_lib.worlds import HOOKS, ModelUnavailable, capture, hook_width, load_model, model_facts, open_or_capture
from rkcnn_lib.worlds.models import modadd


def pairs_of(settings):
    return modadd.training_pairs(settings.p, settings.train_share, settings.seed)


SMALL = Settings(p=13, d_model=16, n_heads=2, d_mlp=32, steps=40, checkpoint_every=15)
N = 13 * 13


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return train(tmp_path_factory.mktemp("modadd"), SMALL, progress=False)


@pytest.fixture(scope="module")
def store(small, tmp_path_factory):
    return open_or_capture(str(small), 0, "mlp_out", 3 * N, context_size=3, root=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def grokked():
    return check(modadd.FOLDER)


def value(figures, name):
    return float(figures[name].split()[0])


def test_the_committed_model_answers_pairs_it_never_saw_long_after_it_fitted_the_others(grokked):
    assert value(grokked, "accuracy") >= 0.999
    fitted, understood = (int(grokked[f"first step with {k} accuracy > 99.9 %"]) for k in ("train", "held out"))
    assert understood > 5 * fitted


def test_the_committed_model_is_the_known_fourier_circuit(grokked):
    keys = grokked["key frequencies"].split(", ")
    assert 4 <= len(keys) <= 7 and value(grokked, "key power") >= 0.9
    assert value(grokked, "logit share") > 0.8 and value(grokked, "neurons at keys") > 0.9
    assert value(grokked, "restricted") <= value(grokked, "full") + 0.01
    assert value(grokked, "excluded") > value(grokked, "uniform") + 1


def test_the_name_modadd_opens_the_committed_model_like_any_other(tmp_path):
    store = open_or_capture("modadd", 0, "mlp_post", 300, context_size=3, root=tmp_path, device="cpu")
    assert store.d_in == 512 and store.mask.sum() == 100 and store.manifest["loss"]["nats"] < 0.01
    rows = store.rows("heldout")
    again = capture(load_model("modadd", device="cpu"), store.contexts("heldout"), layer=0, hook="mlp_post")
    assert torch.allclose(again[2::3], store.take(rows), rtol=2e-3, atol=2e-3)
    assert model_facts("modadd").source == "embedded"


def test_the_committed_settings_are_the_published_ones():
    settings = Settings(**modadd.read_config(modadd.FOLDER)["training"])
    assert settings == Settings()  # what the command makes
    sizes = (settings.p, settings.d_model, settings.n_heads, settings.d_mlp, settings.train_share)
    assert sizes == (113, 128, 4, 512, 0.3) and (settings.lr, settings.weight_decay) == (1e-3, 1.0)
    assert len(pairs_of(settings)) == int(0.3 * 113**2)


def test_the_fast_forward_pass_of_training_equals_the_bridge_s(small):
    lm, weights = load_model(str(small), device="cpu"), modadd.read_weights(small)
    pairs = modadd.all_pairs(13)
    ids = modadd.inputs(pairs, 13)
    neurons, logits = at_equals(weights, *pairs.T, SMALL.n_heads)
    with torch.no_grad():
        slow = lm(ids, return_type="logits")
    assert torch.allclose(slow[:, -1], logits, atol=1e-5)
    read = capture(lm, ids, layer=0, hook="mlp_post").view(N, 3, -1)
    assert torch.allclose(read[:, -1], neurons, atol=1e-5)


def test_every_hook_has_the_width_that_the_configuration_says(small):
    lm, facts = load_model(str(small), device="cpu"), model_facts(str(small))
    ids = modadd.inputs(modadd.all_pairs(13)[:5], 13)
    for hook in HOOKS:
        assert capture(lm, ids, layer=-1, hook=hook).shape == (15, hook_width(facts, hook))
    assert (facts.n_layers, facts.n_ctx, facts.vocab_size, facts.task) == (1, 3, 14, "modular addition")
    assert lm.tokenizer.decode([3, 12, 13]) == "3 12 ="


def test_a_store_holds_every_pair_once_and_counts_the_equals_sign_alone(store):
    tokens = store.tokens.reshape(-1, 3)
    assert len({tuple(row) for row in tokens.tolist()}) == N and (tokens[:, 2] == 13).all()
    assert (np.flatnonzero(store.mask) % 3 == 2).all() and store.mask.sum() == N
    counts = [len(store.rows(split)) for split in ("train", "mine", "heldout")]
    assert sum(counts) == N and min(counts) > 0
    assert store.manifest["loss"]["n_tokens"] == min(32, counts[2])  # one answer a pair


def test_held_out_pairs_are_new_to_the_model_and_their_mirrors_are_held_out_too(store, small):
    lm = load_model(str(small), device="cpu")
    held_out = store.tokens[store.rows("heldout")[:, None] - [2, 1]].astype(int)
    assert lm.untrained[held_out[:, 0] * 13 + held_out[:, 1]].all()
    both_ways = {tuple(pair) for pair in held_out.tolist()}
    assert both_ways == {(b, a) for a, b in both_ways}
    assert torch.equal(
        modadd.held_out_pairs(13).nonzero()[:, 0], torch.tensor(sorted(a * 13 + b for a, b in both_ways))
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_no_seed_trains_on_what_stores_hold_out(seed):
    held_out = modadd.held_out_pairs(113)
    pairs = pairs_of(Settings(seed=seed))
    assert not held_out[pairs[:, 0] * 113 + pairs[:, 1]].any() and len(pairs.unique(dim=0)) == len(pairs)
    assert 0.08 < held_out.double().mean() < 0.12


def test_an_sae_in_the_model_costs_what_it_changes_of_the_answer(store, small):
    lm, X = load_model(str(small), device="cpu"), store.matrix("train")
    contexts, hook = store.contexts("heldout"), store.manifest["hook_name"]

    class Perfect:
        W_dec = torch.eye(16)

        def encode(self, x):
            return x

        decode = encode

    perfect = quality(Perfect(), store.matrix("heldout"), lm=lm, tokens=contexts, hook_name=hook)
    with torch.no_grad():
        logits = lm(contexts, return_type="logits")[:, -1]
    by_hand = torch.nn.functional.cross_entropy(logits, modadd.asked(contexts)[1][:, 0]).item()
    assert perfect["ce_clean"] == pytest.approx(by_hand, abs=1e-5)
    assert perfect["delta_ce"] == pytest.approx(0, abs=1e-6) and perfect["kl"] == pytest.approx(0, abs=1e-6)
    rough = quality(
        init_from_directions(SAEConfig(16, 16, k=1), None, X=X, random_state=0),
        store.matrix("heldout"), lm=lm, tokens=contexts, hook_name=hook,
    )  # fmt: skip
    assert rough["kl"] > 1e-4


def test_an_interrupted_training_goes_on_to_the_same_weights(small, tmp_path):
    train(tmp_path, SMALL, stop_at=22, progress=False)
    assert not (tmp_path / "model.safetensors").exists()
    train(tmp_path, SMALL, progress=False)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (small, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((small / "history.json").read_text(encoding="utf-8")) == json.loads(
        (tmp_path / "history.json").read_text(encoding="utf-8")
    )
    assert {path.name for path in small.glob("checkpoint-*")} == {
        "checkpoint-000015", "checkpoint-000030", "checkpoint-000040",
    }  # fmt: skip


def test_another_seed_gives_other_weights_and_other_pairs(small, tmp_path):
    other = Settings(**(vars(SMALL) | {"seed": 1, "steps": 1}))
    train(tmp_path, other, progress=False)
    assert not torch.equal(modadd.read_weights(tmp_path)["W_E"], modadd.read_weights(small)["W_E"])
    assert not torch.equal(pairs_of(other), pairs_of(SMALL))
    with pytest.raises(ValueError, match="other settings"):
        train(tmp_path, SMALL, progress=False)


def test_what_cannot_work_is_refused_before_anything_is_computed(small, tmp_path):
    model = str(small)
    with pytest.raises(ValueError, match=r"context_size = 2: .* allows 3 to 3"):
        open_or_capture(model, 0, "mlp_out", 3 * N, context_size=2, root=tmp_path)
    with pytest.raises(ValueError, match="nothing but its pairs"):
        open_or_capture(model, 0, "mlp_out", 3 * N, context_size=3, text="atlas", root=tmp_path)
    with pytest.raises(ValueError, match="every = looks alike"):
        open_or_capture(model, 0, "resid_pre", 3 * N, context_size=3, root=tmp_path)
    with pytest.raises(ValueError, match="p >= 5"):
        train(tmp_path, Settings(p=3), progress=False)
    with pytest.raises(ValueError, match="no trained model"):
        modadd.read_weights(tmp_path)
    with pytest.raises((ValueError, ModelUnavailable)):
        load_model("modadd", revision="main")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["check", "--model", str(tmp_path)]) == 2
    assert "holds no trained model" in capsys.readouterr().err
