"""A tiny model and its text; a stand-in hub with GPT-2 and a text set, and this process turned to it."""

import pytest

from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.activations import capture_job
from rkcnn_lib.worlds.models import hooks
from tests.worlds.stand_in_hub import TEXT, Repository, StandInHub, gpt2, openwebtext
from tests.worlds.tiny import CONTEXT, small_text, tiny_model


@pytest.fixture(scope="session")
def hub_files(tmp_path_factory):
    """The files of GPT-2 and of the text set."""
    return gpt2(tmp_path_factory.mktemp("gpt2")), openwebtext()


@pytest.fixture
def hub(hub_files, tmp_path, monkeypatch):
    """A hub with an empty cache before it; ``hub.home`` is the cache's folder."""
    model, text = hub_files
    repositories = {
        "models/openai-community/gpt2": Repository({"main": model}),
        "models/owner/gated": Repository({"main": model}, gated=True),
        "models/owner/bytes": Repository({"main": {k: model[k] for k in ("config.json", "model.safetensors")}}),
        f"datasets/{TEXT}": Repository({"main": {"README.md": b"# Text"}, "refs/convert/parquet": text}),
    }
    hub = StandInHub(repositories, aliases={"models/gpt2": "openai-community/gpt2"})
    hub.home = tmp_path / "hf"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub.url)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(hub.home / "hub"))
    monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(hub.home / "token"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", str(hub.home)), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("rkcnn_lib.worlds.models.hub.WAITS", (0.05, 0.05))
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder, model, text and a store of the tiny model."""
    root = tmp_path_factory.mktemp("capture")
    folder = tiny_model(root / "tiny")
    return root, folder, load_model(folder, device="cpu"), small_text(root / "text.txt")


@pytest.fixture
def options(home, tmp_path, monkeypatch):
    monkeypatch.setattr(capture_job, "SHARD_TOKENS", 640)  # five shards
    monkeypatch.setattr(hooks, "BATCH_TOKENS", {"cpu": 256})
    return {"text": home[3], "root": tmp_path, "context_size": CONTEXT, "lm": home[2]}
