from __future__ import annotations

import json
import shutil
import sys
import threading
import warnings
from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.embedded.scorer import entropy
from rkcnn_lib.worlds import (
    HOOKS,
    CacheError,
    TextUnavailable,
    atlas,
    capture,
    capture_layers,
    hook_name,
    hook_width,
    load_model,
    model_facts,
    open_or_capture,
)
from rkcnn_lib.worlds.activations import capture_job
from rkcnn_lib.worlds.text import Document, TextSource
from tests.worlds.tiny import CONTEXT, N, hugging_face, small_text, source_that_must_not_open

capture_module = sys.modules["rkcnn_lib.worlds.activations.capture"]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_activations_equal_plain_forward_hooks_at_every_hook(home, layer):
    _, folder, lm, _ = home
    ids = torch.randint(0, 102, (5, 40), generator=torch.Generator().manual_seed(layer))
    expected, facts = hugging_face(folder, ids, layer), model_facts(folder)
    for hook in HOOKS:
        acts = capture(lm, ids, layer=layer - 3, hook=hook)
        assert acts.shape == (200, hook_width(facts, hook)) and acts.dtype == torch.float32
        assert torch.allclose(acts, expected[hook].flatten(0, 1), atol=1e-5), hook  # row order = token order
    assert not any(point.fwd_hooks for point in lm.hook_dict.values())  # and nothing stays behind


def test_the_model_stops_at_the_last_block_needed(home):
    *_, lm, _ = home
    ran = []
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
        for name, module in (("last", lm.original_model.transformer.h[2]), ("unembed", lm.original_model.lm_head))
    ]
    capture(lm, torch.tensor([[1, 2]]), layer=1)
    assert ran == []
    capture(lm, torch.tensor([[1, 2]]), layer=2)
    assert "unembed" not in ran
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 99}, "layer = 99: .*allowed are -3 to 2"),
        ({"hook": "nonsense"}, "hook='nonsense' is unknown; choose one of .*resid_pre"),
        ({"token_ids": torch.ones(1, 65, dtype=torch.long)}, "65 positions, the model reads at most 64"),
        ({"token_ids": torch.tensor([[300]])}, "allowed are 0 to 299"),
        ({"token_ids": torch.tensor([1, 2])}, "expected \\(batch, position\\)"),
    ],
)
def test_capture_refuses_what_the_model_has_not(home, wrong, message):
    with pytest.raises(ValueError, match=message):
        capture(home[2], **({"token_ids": torch.ones(1, 4, dtype=torch.long), "layer": 0} | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 99}, "layer = 99: .*allowed are -3 to 2"),
        ({"hook": "nonsense"}, "hook='nonsense' is unknown"),
        ({"context_size": 65}, "context_size = 65: .*2 to 64"),
        ({"n_tokens": 100}, "n_tokens = 100: at least 640"),
        ({"dtype": "float8"}, "float8"),
        ({"text": "/no/file.txt"}, "no such file"),
    ],
)
def test_bad_parameters_are_refused_before_any_compute(home, options, monkeypatch, wrong, message):
    monkeypatch.setattr(capture_job, "load_model", lambda *a, **k: pytest.fail("loaded a model"))
    given = {"model": home[1], "layer": 1, "hook": "mlp_out", "n_tokens": N, **options, "lm": None} | wrong
    with pytest.raises(ValueError, match=message):
        open_or_capture(**given)
    assert not any(options["root"].iterdir())


def test_a_store_holds_the_model_s_activations_in_token_order(home, options):
    stores = capture_layers(home[1], [0, -1], ["mlp_out", "mlp_post"], N, **options)
    assert set(stores) == {(layer, hook) for layer in (0, 2) for hook in ("mlp_out", "mlp_post")}
    for (layer, hook), store in stores.items():
        store.verify()
        ids = torch.from_numpy(store.tokens.reshape(-1, CONTEXT))
        expected = hugging_face(home[1], ids, layer)[hook].flatten(0, 1)
        assert len(store) == N and store.d_in == expected.shape[1]
        assert torch.allclose(store[0:N], expected, rtol=1e-3, atol=1e-6)  # float16
        assert store.manifest["hook_name"] == hook_name(hook, layer)
    assert (store.tokens[::CONTEXT] == 1).all() and (store.positions == np.tile(np.arange(CONTEXT), 100)).all()
    usable = np.concatenate([store.rows(split) for split in ("train", "mine", "heldout")])
    assert sorted(usable) == [i for i in range(N) if i % CONTEXT and store.tokens[i] > 1]  # 0 is <unk>, 1 <bos>


def test_the_manifest_tells_what_was_measured(home, options):
    store = open_or_capture(home[1], 1, "resid_post", N, **options)
    told = store.manifest
    assert told["text"]["name"] == "file: text.txt" and told["text"]["failed_before"] == []
    assert told["identity"] == model_facts(home[1]).identity and told["bos_token_id"] == 1 and told["notes"] == []
    assert told["loss"]["nats"] == pytest.approx(np.log(300), abs=0.3) and told["loss"]["n_tokens"] > 100
    held_out = set(store.document_ids[store.rows("heldout")])
    assert told["n_documents_held_out"] == len(held_out) and told["n_documents"] == len(set(store.document_ids))
    assert len(store.contexts("heldout")) == told["n_contexts_held_out"]
    assert (told["dtype"], told["n_tokens"], told["context_size"]) == ("float16", N, CONTEXT)


def test_the_loss_is_hugging_face_s_on_held_out_contexts(home, options):
    from transformers import AutoModelForCausalLM

    store = open_or_capture(home[1], 0, "mlp_out", N, **options)
    ids = store.contexts("heldout")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(home[1])(ids).logits
    losses = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert store.manifest["loss"]["nats"] == pytest.approx(losses[ids[:, 1:] > 1].mean().item(), rel=1e-5)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def test_a_killed_capture_goes_on_at_the_last_whole_shard_to_the_same_bytes(home, options, tmp_path, monkeypatch):
    whole = open_or_capture(home[1], 1, "mlp_out", N, **options | {"root": tmp_path / "a"})
    real, calls = capture_job.activations, []

    def dying(lm, ids, names, limit=[7]):  # noqa: B006
        calls.append(1)
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        return real(lm, ids, names)

    monkeypatch.setattr(capture_job, "activations", dying)
    again = options | {"root": tmp_path / "b"}
    with pytest.raises(KeyboardInterrupt):
        open_or_capture(home[1], 1, "mlp_out", N, **again)
    (partial,) = (tmp_path / "b").glob("*.partial")
    assert len(list(partial.glob("acts-*.safetensors"))) == 2 and not list((tmp_path / "b").glob("*/manifest.json"))
    monkeypatch.setattr(capture_module, "text_sources", lambda *a: [source_that_must_not_open(home[3])])
    store = open_or_capture(home[1], 1, "mlp_out", N, **again)
    assert len(calls) == 7 + 9  # 15 batches, of which 6 were whole shards' and one was lost
    assert contents(store.folder) == contents(whole.folder) and not partial.exists()
    store.verify()


def test_a_finished_cache_is_opened_without_the_model(home, options, monkeypatch):
    first = open_or_capture(home[1], 1, "mlp_out", N, **options)
    monkeypatch.setattr(capture_job, "load_model", lambda *a, **k: pytest.fail("loaded a model"))
    second = open_or_capture(home[1], -2, "mlp_out", N, **options | {"lm": None})
    assert second.folder == first.folder and second.key == first.key


def test_every_input_is_in_the_key(home, options):
    variants = [{}, {"layer": 0}, {"hook": "attn_out"}, {"n_tokens": 800}, {"context_size": 16}]
    variants += [
        {"dtype": "bfloat16"},
        {"text": small_text(options["root"] / "t.txt", seed=1)},
    ]
    given = {"model": home[1], "layer": 1, "hook": "mlp_out", "n_tokens": 960, **options}
    keys = {open_or_capture(**given | variant).key for variant in variants}
    assert len(keys) == len(variants)


def test_a_manifest_of_another_capture_is_refused(home, options):
    one, two = (open_or_capture(home[1], layer, "mlp_out", N, **options).folder for layer in (0, 1))
    shutil.copy(one / "manifest.json", two / "manifest.json")
    with pytest.raises(CacheError):
        open_or_capture(home[1], 1, "mlp_out", N, **options).verify()
    manifest = json.loads((one / "manifest.json").read_text(encoding="utf-8")) | {"inputs": {}}
    (one / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CacheError, match="belongs to another capture"):
        open_or_capture(home[1], 0, "mlp_out", N, **options)


def test_two_captures_at_once_give_one_whole_cache(home, options):
    found, errors = [], []

    def work():
        try:
            found.append(open_or_capture(home[1], 1, "attn_out", N, **options))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and found[0].folder == found[1].folder
    found[0].verify()


def test_sources_that_fail_are_named_in_the_manifest_or_in_the_error(home, options, monkeypatch):
    def fail(name):
        def open_():
            raise TextUnavailable(f"{name}: no network")

        return TextSource(name, lambda: name, open_)

    good = TextSource("good", lambda: "good", lambda: (Document(f"w{i % 90} w{i % 7} " * 20) for i in range(400)))
    monkeypatch.setattr(capture_module, "text_sources", lambda *a: [fail("one"), fail("two"), good])
    store = open_or_capture(home[1], 1, "mlp_out", N, **options | {"text": None})
    assert store.manifest["text"]["name"] == "good"
    assert store.manifest["text"]["failed_before"] == ["one: no network", "two: no network"]
    monkeypatch.setattr(capture_module, "text_sources", lambda *a: [fail("one"), fail("two")])
    with pytest.raises(TextUnavailable) as error:
        open_or_capture(home[1], 1, "mlp_out", N, **options | {"text": None})
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines[1:3]] == ["one: no network", "two: no network"]
    assert "text: /path/file.txt" in lines[-1] and "text: atlas" in lines[-1]


def test_a_text_that_ends_early_gives_fewer_tokens_and_says_so(home, options):
    with pytest.warns(UserWarning, match="the text ended after"):
        store = open_or_capture(home[1], 1, "mlp_out", 10**5, **options)
    assert len(store) < 10**4 and "ended after" in store.manifest["notes"][0]
    tiny = options | {"text": small_text(options["root"] / "few.txt", n_documents=3)}
    with warnings.catch_warnings(), pytest.raises(ValueError, match="more and shorter documents"):
        open_or_capture(home[1], 1, "mlp_out", N, **tiny)


def test_atlas_reads_whole_documents_of_its_own_and_loses_little_more_than_their_entropy(tmp_path):
    store = open_or_capture("atlas", 2, "mlp_out", 64 * 128, root=tmp_path, device="cpu")
    told = store.manifest
    assert told["text"]["name"] == "atlas generator, seed 0" and told["notes"] == [] and len(store) == 64 * 128
    begins = np.unique(store.document_ids, return_index=True)[1]
    assert (store.tokens[begins] == told["bos_token_id"]).all()  # so no context goes on with a cut document
    assert set(range(0, len(store), 128)) <= set(begins)
    least = entropy(list(islice(atlas.document_stream(1), 500)))
    assert least - 0.1 < told["loss"]["nats"] < least + 0.25
    assert capture(load_model("atlas", device="cpu"), store.contexts()[:1], 2).shape == (128, store.d_in)
