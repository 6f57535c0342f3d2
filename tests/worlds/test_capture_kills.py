"""A capture killed outright at random moments ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rkcnn_lib.worlds import load_model, open_or_capture
from rkcnn_lib.worlds.activations import capture_job
from rkcnn_lib.worlds.models import hooks
from tests.kills import killed_and_whole
from tests.worlds.tiny import small_text, tiny_model

MODEL, TEXT = "tiny", "text.txt"  # beside the folders that the processes write to


def capture(folder: Path) -> None:
    torch.set_num_threads(1)
    capture_job.SHARD_TOKENS, hooks.BATCH_TOKENS = 640, {"cpu": 256}
    model = str(folder.parent / MODEL)
    lm = load_model(model, device="cpu")
    open_or_capture(model, 1, "mlp_out", 16_000, text=str(folder.parent / TEXT), root=folder, context_size=32, lm=lm)


def test_ten_kills_at_random_moments_change_no_byte_of_a_cache(tmp_path):
    tiny_model(tmp_path / MODEL)
    small_text(tmp_path / TEXT, n_documents=700)
    killed, whole = killed_and_whole(capture, tmp_path)
    caches = [[path for path in folder.iterdir() if (path / "manifest.json").is_file()] for folder in (killed, whole)]
    (found,), (expected,) = caches
    names = {path.name for path in expected.iterdir()}
    assert names == {path.name for path in found.iterdir()} and sum("acts" in name for name in names) > 20
    assert all((found / name).read_bytes() == (expected / name).read_bytes() for name in names - {"manifest.json"})
    manifests = [json.loads((cache / "manifest.json").read_text(encoding="utf-8")) for cache in (found, expected)]
    assert manifests[0]["shards"] == manifests[1]["shards"]
    assert not list(killed.glob("*.partial"))
