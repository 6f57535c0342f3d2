"""A training killed outright at random moments ends with the same bits as one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.sae import SAEConfig, TrainConfig, train_many
from tests.kills import killed_and_whole
from tests.sae.planted import planted

ARMS = {"narrow": (SAEConfig(32, 64, k=3), None), "wide": (SAEConfig(32, 96, "batchtopk", k=3, aux_k=8), None)}
TRAIN = TrainConfig(steps=120, batch_size=128, lr=3e-3, dead_tokens=1500, checkpoint_every=10)


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    X, _ = planted(4000)
    saes = train_many(X, ARMS, TRAIN, seeds=(0, 1), checkpoint=folder / "checkpoints", progress=False)
    weights = {f"{arm} {seed} {name}": t.contiguous() for (arm, seed), sae in saes.items()
               for name, t in sae.state_dict().items()}  # fmt: skip
    save_file(weights, folder / "partial")
    (folder / "partial").rename(folder / "weights.safetensors")


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    killed, whole = killed_and_whole(train, tmp_path)
    expected, found = (load_file(folder / "weights.safetensors") for folder in (whole, killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected) and expected.keys() == found.keys()
