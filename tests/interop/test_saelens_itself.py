"""SAELens reads our files and we read its own: run by ``make test-interop``, which builds its environment.

sae-lens wants another transformer-lens than this project, so it works in a process of its own.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.sae import SAE, SAEConfig, load_saelens, save_saelens

PYTHON = os.environ.get("SAELENS_PYTHON")
OURS = {
    "relu": SAEConfig(16, 48, architecture="relu", l1=0.1),
    "topk": SAEConfig(16, 48, k=4),
    "batchtopk": SAEConfig(16, 48, architecture="batchtopk", k=4),
}
pytestmark = pytest.mark.skipif(PYTHON is None, reason="SAELENS_PYTHON names no interpreter: run make test-interop")


def noisy(config):
    """An SAE with nothing at zero or at unit norm by accident."""
    sae = SAE(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        if config.architecture == "batchtopk":
            sae.threshold.fill_(0.4)
    return sae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saelens")
    X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    save_file({"X": X}, folder / "X.safetensors")
    for name, config in OURS.items():
        about = {"model_name": "gpt2", "hook_name": "blocks.6.hook_mlp_out", "context_size": 128, "prepend_bos": True}
        save_saelens(noisy(config), folder / "ours" / name, about)
    script = Path(__file__).with_name("with_saelens.py")
    done = subprocess.run([PYTHON, str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def same_answers(path, X):
    sae, theirs = load_saelens(path), load_file(path / "found.safetensors")
    with torch.no_grad():
        codes = sae.encode(X)
        torch.testing.assert_close(codes, theirs["codes"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae.decode(codes), theirs["decoded"], atol=1e-5, rtol=1e-5)
    assert (codes > 0).any() and (codes == 0).any()


@pytest.mark.parametrize("name", OURS)
def test_saelens_encodes_and_decodes_our_files_as_we_do(folder, name):
    same_answers(folder / "ours" / name, load_file(folder / "X.safetensors")["X"])


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu"])
def test_we_encode_and_decode_saelens_files_as_it_does(folder, name):
    same_answers(folder / "theirs" / name, load_file(folder / "X.safetensors")["X"])


def test_a_training_in_saelens_begins_at_our_start_and_learns(folder):
    losses = load_file(folder / "losses.safetensors")["losses"]
    X, ours = load_file(folder / "X.safetensors")["X"], load_saelens(folder / "ours" / "topk")
    with torch.no_grad():
        torch.testing.assert_close(losses[0], (ours(X) - X).square().sum(1).mean(), rtol=1e-4, atol=0)
    assert losses[-1] < 0.9 * losses[0]
