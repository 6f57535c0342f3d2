"""What SAELens makes of our files, and files that SAELens made: run by an interpreter that has sae-lens.

    python with_saelens.py FOLDER

FOLDER holds ``X.safetensors`` and ``ours/NAME`` (SAEs that this project wrote). Beside each is written
``found.safetensors`` (SAELens's encode and decode of X); under ``theirs/ARCHITECTURE`` an SAE of SAELens's own, saved
by its own code, with the same.
``losses.safetensors`` holds the losses of a training that starts from ``ours/topk``. Imports nothing of this project.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def answers(sae, X):
    """Return SAELens's codes and reconstruction."""
    with torch.no_grad():
        codes = sae.encode(X)
        return {"codes": codes.to_dense() if codes.is_sparse else codes, "decoded": sae.decode(codes)}


def train_from(path, X, steps=20):
    """Start SAELens's own TopK training from our weights, as the README does; return the loss at each step."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    weights = load_file(path / "sae_weights.safetensors")
    d_in, d_sae = weights["W_enc"].shape
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=4, rescale_acts_by_decoder_norm=False))
    sae.load_state_dict(weights)
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=1e-2), []
    for step in range(steps):
        out = sae.training_forward_pass(TrainStepInput(X, {}, None, step, False))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.losses["mse_loss"].detach())
    return {"losses": torch.stack(losses)}


def main(folder):
    """Answer for every SAE of ours and write one of SAELens's own an architecture."""
    from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    X = load_file(folder / "X.safetensors")["X"]
    for path in sorted((folder / "ours").iterdir()):
        sae = SAE.load_from_disk(path, device="cpu")
        save_file(answers(sae, X), path / "found.safetensors")
    save_file(train_from(folder / "ours" / "topk", X), folder / "losses.safetensors")
    d = X.shape[1]
    own = {
        "standard": StandardSAE(StandardSAEConfig(d_in=d, d_sae=3 * d)),
        "topk": TopKSAE(TopKSAEConfig(d_in=d, d_sae=3 * d, k=4, rescale_acts_by_decoder_norm=False)),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=3 * d)),
    }
    torch.manual_seed(0)
    for name, sae in own.items():
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
            if name == "jumprelu":
                sae.threshold.abs_()
        path = folder / "theirs" / name
        sae.save_model(path)
        save_file(answers(sae, X), path / "found.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
