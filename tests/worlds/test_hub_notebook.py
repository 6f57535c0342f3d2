"""The user's line: notebook 04 on the hub's GPT-2 and text, from another folder, with the hub and then without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
{profile: tiny, n_tokens: 10000, context_size: 32, n_seeds: 2, arms: [random, rkcnn, rkcnn_unscored],
 variants: [], expansion: 1.0, k: 8, steps: 20, batch_size: 128, n_neighbours: 8, mining_rows: 1000,
 n_jobs: 1, heldout_rows: 1000, splice_contexts: 2, front_k: [], other_architecture: null, frozen_k: [8],
 frozen_rows: 100, n_cards: 8}
"""


def papermill(folder, environment, out):
    notebook = ROOT / "notebooks" / "04_sae_compare.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), out, "-p", "layer", "1", "-y", SMALL]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_notebook_04_passes_on_the_hubs_gpt2_and_again_from_the_cache_when_the_hub_is_off(hub, tmp_path):
    environment = os.environ | {"RKCNN_OUTPUTS": str(tmp_path / "outputs"), "PYTHONPATH": str(ROOT)}
    done = papermill(tmp_path, environment, "first.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "outputs" / "runs" / "04_sae_compare").glob("*/run.json")
    first = json.loads(path.read_text(encoding="utf-8"))
    assert first["model"]["name"] == "gpt2" and first["gate"]["verdict"] == "PASS", first["gate"]
    assert "openwebtext" in first["data"]["text"]["name"] and " commit:" in first["data"]["text"]["identity"]
    path.unlink()
    hub.stop()
    done = papermill(tmp_path, environment, "second.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    second = json.loads(path.read_text(encoding="utf-8"))
    assert second["gate"]["verdict"] == "PASS" and second["data"] == first["data"]
    assert second["model"] == first["model"]
