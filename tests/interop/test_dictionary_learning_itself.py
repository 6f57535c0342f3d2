"""dictionary_learning trains on from our start: run by ``make test-interop``, which builds its environment."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from rkcnn_lib.sae import SAEConfig, init_from_directions, save_saelens

PYTHON = os.environ.get("DICTIONARY_LEARNING_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="DICTIONARY_LEARNING_PYTHON is not set: run make test-interop")


def test_a_training_in_dictionary_learning_begins_at_our_start_and_learns(tmp_path):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(256, 16, generator=generator) + 0.5
    directions = normalize(torch.randn(48, 16, generator=generator), dim=1)
    ours = init_from_directions(SAEConfig(16, 48, k=4), directions, X=X, encoder="fitted")
    save_saelens(ours, tmp_path, {"model_name": "gpt2", "hook_name": "blocks.6.hook_mlp_out"})
    save_file({"X": X}, tmp_path / "X.safetensors")
    script = Path(__file__).with_name("with_dictionary_learning.py")
    done = subprocess.run([PYTHON, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = load_file(tmp_path / "losses.safetensors")["losses"]
    with torch.no_grad():
        torch.testing.assert_close(losses[0], (ours(X) - X).square().sum(1).mean(), rtol=1e-4, atol=0)
    assert losses[-1] < 0.9 * losses[0]
