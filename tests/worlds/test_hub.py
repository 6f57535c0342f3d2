"""Models of a hub: fetched once, found again without it, and every refusal said by its name and what to do."""

import re
import shutil

import pytest

from rkcnn_lib import cli
from rkcnn_lib.runs import machine
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.published import folder_of
from rkcnn_lib.worlds import ModelUnavailable, load_model, model_facts
from rkcnn_lib.worlds.models import hub as hub_module
from tests.worlds.stand_in_hub import Fault, Repository, commit


def go_offline(hub, monkeypatch, how):
    if how == "server off":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def snapshot(hub):
    (folder,) = (hub.home / "hub" / "models--gpt2" / "snapshots").iterdir()
    return folder


@pytest.mark.parametrize("how", ["server off", "HF_HUB_OFFLINE"])
def test_a_model_fetched_once_is_found_without_the_hub(hub, hub_files, monkeypatch, how):
    facts = model_facts("gpt2")
    assert facts.identity == f"commit:{commit(hub_files[0])}"
    assert load_model("gpt2", device="cpu").tokenizer.bos_token_id == 0
    assert (hub.home / "hub/models--gpt2/trees").is_dir()  # by which the cache knows what a snapshot should hold
    assert not {"README.md", "pytorch_model.bin", "onnx"} & {path.name for path in snapshot(hub).iterdir()}
    asked = len(hub.requests)
    assert model_facts("gpt2") == facts and len(hub.requests) == asked  # no question, though the hub is there
    go_offline(hub, monkeypatch, how)
    assert model_facts("gpt2") == facts
    assert load_model("gpt2", device="cpu").cfg.d_vocab == 400 and len(hub.requests) == asked


@pytest.mark.parametrize("lost", ["tokenizer.json vocab.json merges.txt", "tokenizer.json merges.txt"])
@pytest.mark.parametrize("with_trees", [True, False])
def test_a_cache_without_tokenizer_is_completed_and_offline_refused_never_read_as_bytes(
    hub, monkeypatch, lost, with_trees
):
    whole = model_facts("gpt2")
    hub_module.hub_folder("gpt2", None, weights=True)
    for name in lost.split():
        (snapshot(hub) / name).unlink()
    if not with_trees:  # as other programs leave it
        shutil.rmtree(hub.home / "hub/models--gpt2/trees")
        monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    with monkeypatch.context() as without:
        go_offline(hub, without, "server off")
        for act in (model_facts, load_model):
            with pytest.raises(ModelUnavailable, match=r"is on this machine without a tokenizer and cannot be fetched"):
                act("gpt2")
    assert model_facts("gpt2") == whole and (snapshot(hub) / "merges.txt").is_file()


def test_a_hub_model_that_has_no_tokenizer_is_refused(hub):
    with pytest.raises(ValueError, match="owner/bytes has no tokenizer"):
        model_facts("owner/bytes")


@pytest.mark.parametrize(
    ("name", "revision", "token", "said"),
    [
        (
            "owner/gated",
            None,
            None,
            "owner/gated is gated: ask for access on http.*/owner/gated, then log in .*HF_TOKEN",
        ),
        ("owner/gated", None, "hf_poor", "owner/gated is gated: ask for access"),
        ("owner/none", None, None, "shows no model owner/none .*401.*: check the name .*; if it is private, log in"),
        ("owner/none", None, "hf_poor", "shows no model owner/none .*404.*: check the name"),
        ("gpt2", "no-such", None, "gpt2 has no revision no-such: http.*/gpt2/tree/main lists what it has"),
    ],
)
def test_what_the_hub_refuses_is_said_by_name_with_what_to_do(hub, monkeypatch, capsys, name, revision, token, said):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelUnavailable, match=f"cannot be fetched: the hub.*{said}"):
        model_facts(name, revision)
    words = ["-p", "revision", revision] if revision else []
    assert cli.main(["run", "03_gpt2_cache", "-p", "model", name, "-p", "profile", "tiny", *words]) == 1
    error = capsys.readouterr().err
    assert re.search(said, error) and "Traceback" not in error and "model: atlas" in error


def test_a_gated_model_opens_to_a_token_that_is_let_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert model_facts("owner/gated").n_layers == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /api/models/gpt2", status=503, times=2),  # the probe
        Fault("GET /api/models/gpt2/revision", status=503, times=2),
        Fault("GET /api/models/.*/tree", status=503, times=1),
        Fault("GET .*resolve.*safetensors", cut=9000, times=1),
    ],
    ids=lambda fault: f"{fault.match} {fault.status or 'cut'}",
)
def test_a_hub_that_is_busy_or_breaks_off_for_a_moment_is_asked_again(hub, fault):
    hub.faults.append(fault)
    folder = hub_module.hub_folder("gpt2", None, weights=True)
    assert fault.times <= 0
    assert (folder / "model.safetensors").read_bytes() == hub.repositories["models/openai-community/gpt2"].revisions[
        "main"
    ]["model.safetensors"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("GET /api/models/gpt2", status=503), "api/models/gpt2 answers 503"),
        (Fault("GET .*/revision", status=503), "HfHubHTTPError: .*503"),
        (Fault("GET .*/revision", hang=3), "Timeout"),
    ],
    ids=["busy", "busy after the probe", "silent after the probe"],
)
def test_a_hub_that_stays_busy_or_silent_is_given_up_with_the_reason(hub, monkeypatch, fault, said):
    monkeypatch.setattr(hub_module, "SILENT_SECONDS", 0.5)
    hub.faults.append(fault)
    with pytest.raises(ModelUnavailable, match=f"gpt2 is not on this machine and cannot be fetched: .*{said}"):
        model_facts("gpt2")


def test_the_doctor_promises_a_download_only_where_the_hub_lets_gpt2_be_read(hub):
    assert machine._hub().startswith("reachable, `model: gpt2`")
    hub.faults.append(Fault("GET /api/models/gpt2", status=401))
    with pytest.raises(machine.Note, match=r"^answers, but the hub shows no model gpt2 \(it answers 401\)"):
        machine._hub()


def test_a_published_sae_is_fetched_once_and_found_without_the_hub(hub, monkeypatch):
    files = {f"blocks.1/{name}": b"{}" for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")}
    hub.repositories["models/owner/saes"] = Repository({"main": files})
    found = folder_of("owner/saes:blocks.1#centred")
    assert sorted(path.name for path in found.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    with pytest.raises(ParameterError, match=r"the repository has no blocks\.2/sae_weights"):
        folder_of("owner/saes:blocks.2")
    hub.repositories["models/owner/others"] = Repository({"main": files}, gated=True)
    with pytest.raises(ParameterError, match=r"owner/others is gated"):
        folder_of("owner/others:blocks.1")
    go_offline(hub, monkeypatch, "server off")
    assert folder_of("owner/saes:blocks.1") == found
