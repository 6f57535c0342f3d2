"""Start dictionary_learning's TopK training from our weights: run by an interpreter that has dictionary-learning.

    python with_dictionary_learning.py FOLDER

FOLDER holds ``X.safetensors`` and ``sae_weights.safetensors`` (TopK, k = 4); the loss of each step is written to
``losses.safetensors``. Imports nothing of this project.
"""

import sys
from pathlib import Path

import torch
from dictionary_learning.trainers.top_k import TopKTrainer
from safetensors.torch import load_file, save_file


def main(folder, steps=20):
    """Train a few steps. Their step 0 would put their own median in the place of our bias: steps are counted from 1."""
    X, ours = load_file(folder / "X.safetensors")["X"], load_file(folder / "sae_weights.safetensors")
    d_in, d_sae = ours["W_enc"].shape
    trainer = TopKTrainer(
        steps + 1, d_in, d_sae, k=4, layer=0, lm_name="none", lr=1e-2, warmup_steps=0, seed=0, device="cpu"
    )
    weights = {
        "encoder.weight": ours["W_enc"].T, "encoder.bias": ours["b_enc"], "decoder.weight": ours["W_dec"].T,
        "b_dec": ours["b_dec"],
    }  # fmt: skip
    trainer.ae.load_state_dict(trainer.ae.state_dict() | weights)
    losses = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            losses.append((trainer.ae(X) - X).square().sum(1).mean())
        trainer.update(step, X)
    save_file({"losses": torch.stack(losses)}, folder / "losses.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
