"""Training steps of dictionary_learning's TopK SAE, by its own trainer.

Run by benchmarks/sae.py; imports no code of this project.

python dictionary_learning_step.py '{"d_in": 768, "d_sae": 6144, "k": 32, "batch_size": 1024, "steps": 10, ...}'
"""

import itertools
import json
import sys

import torch
from common import run
from dictionary_learning.trainers.top_k import TopKTrainer


def make(sizes, device):
    """Return one SAE's step as a function of the batch: the trainer's own update."""
    trainer = TopKTrainer(
        steps=100_000, activation_dim=sizes["d_in"], dict_size=sizes["d_sae"], k=sizes["k"], layer=0, lm_name="none",
        lr=4e-4, device=device, seed=0,
    )  # fmt: skip
    counter = itertools.count(1)  # step 0 would also take a geometric median

    def step(batch):
        with torch.autocast(device, torch.bfloat16, enabled=sizes["bf16"]):
            trainer.update(next(counter), batch)

    return step


if __name__ == "__main__":
    run(make, json.loads(sys.argv[1]))
