"""A training killed outright at random moments ends with the same bits as one that was left alone."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.sae import SAEConfig, TrainConfig, train_many
from tests.sae.planted import planted

N_KILLS = 10
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


def start(folder: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")  # starts in milliseconds, from a process without threads
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train, args=(folder,))
    process.start()
    return process


def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed, tmp_path / "nowhere"):
        folder.mkdir()
    start(tmp_path / "nowhere").join()  # warms up the fork server
    began = time.monotonic()
    start(whole).join()
    seconds = time.monotonic() - began
    rng, n_killed = np.random.default_rng(0), 0
    for wait in rng.uniform(0, seconds / 3, N_KILLS):
        process = start(killed)
        time.sleep(wait)
        process.kill()
        process.join()
        n_killed += process.exitcode != 0
    start(killed).join()
    expected, found = (load_file(folder / "weights.safetensors") for folder in (whole, killed))
    assert n_killed >= N_KILLS / 2  # else nothing was tested
    assert all(torch.equal(expected[name], found[name]) for name in expected) and expected.keys() == found.keys()
