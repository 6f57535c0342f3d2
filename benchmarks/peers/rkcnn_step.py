"""Training steps of this project's TopK SAE, by its own trainer; run by benchmarks/sae.py like the peers' scripts."""

import json
import sys

import torch
from common import run

from rkcnn_lib.sae import SAEConfig, TrainConfig, init_from_directions
from rkcnn_lib.sae.trainer import Trainer


def make(sizes, device):
    """Return one SAE's step as a function of the batch."""
    start = init_from_directions(
        SAEConfig(sizes["d_in"], sizes["d_sae"], k=sizes["k"]), X=torch.randn(2048, sizes["d_in"])
    )
    config = TrainConfig(steps=100_000, batch_size=sizes["batch_size"], lr=4e-4, clip=1.0, autocast=sizes["bf16"])
    return Trainer(start.to(device), config, scale=1.0).train_step


if __name__ == "__main__":
    run(make, json.loads(sys.argv[1]))
