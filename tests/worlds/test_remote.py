"""A cache in remote storage is fetched whole or not at all, and nothing else is taken for it."""

from __future__ import annotations

import json
import pickle
import sys

import fsspec
import pytest
import torch

from rkcnn_lib.report import cli
from rkcnn_lib.worlds import CacheError, open_or_capture
from rkcnn_lib.worlds.remote import pull, push

URL = "memory://caches"
ASKED = {"model": "atlas", "layer": 0, "hook": "mlp_out", "n_tokens": 2560}


@pytest.fixture
def pushed(tmp_path, monkeypatch):
    """Folder name and first rows of a cache that lies in the remote place and nowhere else."""
    monkeypatch.setenv("RKCNN_CACHE_URL", URL)
    store = open_or_capture(**ASKED, root=tmp_path / "first")
    push(store.folder)
    yield store.folder.name, store[0:50].clone()
    fsspec.filesystem("memory").store.clear()


def no_capture(monkeypatch):
    capture_module = sys.modules["rkcnn_lib.worlds.capture"]
    monkeypatch.setattr(capture_module, "load_model", lambda *a, **k: pytest.fail("ran the model"))


def test_what_lies_elsewhere_is_fetched_and_not_captured_again(pushed, tmp_path, monkeypatch):
    no_capture(monkeypatch)
    store = open_or_capture(**ASKED, root=tmp_path / "second")
    store.verify()
    assert store.folder == tmp_path / "second" / pushed[0] and torch.equal(store[0:50], pushed[1])
    assert [path.name for path in (tmp_path / "second").iterdir() if path.is_dir()] == [pushed[0]]


def test_what_lies_nowhere_is_captured(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_CACHE_URL", URL)
    assert len(open_or_capture(**ASKED, root=tmp_path)) == 2560


def test_a_worker_on_another_machine_fetches_what_it_was_sent(pushed, tmp_path, monkeypatch):
    store = open_or_capture(**ASKED, root=tmp_path / "driver")
    sent = pickle.dumps(store)
    store.folder.rename(tmp_path / "gone")
    assert torch.equal(pickle.loads(sent)[0:50], pushed[1])


def test_a_push_that_is_cut_off_leaves_no_manifest_over_files_of_both(pushed, tmp_path, monkeypatch):
    store = open_or_capture(**ASKED, root=tmp_path / "again")
    manifest = json.loads((store.folder / "manifest.json").read_text())
    (store.folder / "manifest.json").write_text(json.dumps(manifest | {"created": "later"}))
    files = fsspec.filesystem("memory")

    def cut_off(*_):
        raise ConnectionError("gone")

    monkeypatch.setattr(type(files), "put_file", cut_off)
    with pytest.raises(CacheError, match="cannot be written: ConnectionError"):
        push(store.folder)
    assert not files.exists(f"/caches/{pushed[0]}/manifest.json")
    assert pull(tmp_path / "third" / pushed[0]) is False


def test_a_place_out_of_reach_is_not_taken_for_an_empty_one(pushed, tmp_path, monkeypatch):
    no_capture(monkeypatch)

    def out_of_reach(*_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", out_of_reach)
    with pytest.raises(CacheError, match=r"cannot be read: ConnectionError: gone\. Unset RKCNN_CACHE_URL"):
        open_or_capture(**ASKED, root=tmp_path / "second")


def test_files_are_fetched_by_our_own_names_only(pushed, tmp_path):
    files, path = fsspec.filesystem("memory"), f"/caches/{pushed[0]}/manifest.json"
    whole = files.cat_file(path)
    (tmp_path / "second").mkdir()
    for name in ("../../outside", "/tmp/outside", "acts-1.safetensors"):
        files.pipe_file(path, whole.replace(b"acts-00000.safetensors", name.encode()))
        with pytest.raises(CacheError, match="names a file"):
            pull(tmp_path / "second" / pushed[0])
    files.pipe_file(path, whole.replace(pushed[0].encode(), b"another-key"))
    with pytest.raises(CacheError, match="its manifest is that of another-key"):
        pull(tmp_path / "second" / pushed[0])
    assert not any((tmp_path / "second").iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_remote_cache_is_refused_and_leaves_nothing(pushed, tmp_path, monkeypatch, damage):
    no_capture(monkeypatch)
    files, path = fsspec.filesystem("memory"), f"/caches/{pushed[0]}/acts-00000.safetensors"
    content = bytearray(files.cat_file(path))
    content[-1] ^= 1
    if damage == "lose":
        files.rm(path)
    else:
        files.pipe_file(path, bytes(content[:-4] if damage == "cut" else content))
    with pytest.raises(CacheError, match="acts-00000"):
        open_or_capture(**ASKED, root=tmp_path / "second")
    assert not any(entry.is_dir() for entry in (tmp_path / "second").iterdir())


def test_the_cache_of_another_capture_is_not_taken_for_this_one(pushed, tmp_path):
    files = fsspec.filesystem("memory")
    path = f"/caches/{pushed[0]}/manifest.json"
    files.pipe_file(path, files.cat_file(path).replace(b'"n_tokens": 2560', b'"n_tokens": 2561'))
    with pytest.raises(CacheError, match="belongs to another capture"):
        open_or_capture(**ASKED, root=tmp_path / "second")


def test_a_place_that_cannot_be_used_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RKCNN_CACHE_URL", raising=False)
    assert pull(tmp_path / "key") is False
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    open_or_capture(**ASKED)
    assert cli.main(["cache", "push"]) == 1 and "RKCNN_CACHE_URL is not set" in capsys.readouterr().err
    monkeypatch.setenv("RKCNN_CACHE_URL", "nonsense://x")
    with pytest.raises(CacheError, match="nonsense"):
        pull(tmp_path / "key")
    monkeypatch.setenv("RKCNN_CACHE_URL", f"file://{tmp_path}/elsewhere")
    assert cli.main(["cache", "push"]) == 0
    assert len(list((tmp_path / "elsewhere").glob("*/manifest.json"))) == 1
