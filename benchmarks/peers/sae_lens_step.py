"""Training steps of SAELens's TopK SAE, as its own trainer takes them.

Run by benchmarks/sae.py; imports no code of this project.

python sae_lens_step.py '{"d_in": 768, "d_sae": 6144, "k": 32, "batch_size": 1024, "steps": 10, ...}'
"""

import json
import sys

import torch
from common import run
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput


def make(sizes, device):
    """Return one SAE's step as a function of the batch: forward, firing counts, backward, clip, Adam."""
    config = TopKTrainingSAEConfig(
        d_in=sizes["d_in"], d_sae=sizes["d_sae"], k=sizes["k"], device=device, decoder_init_norm=1.0,
        use_sparse_activations=sizes["sparse"], rescale_acts_by_decoder_norm=False,
    )  # fmt: skip
    sae = TopKTrainingSAE(config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=4e-4)
    since_fired = torch.zeros(sizes["d_sae"], device=device)

    def step(batch):
        with torch.autocast(device, torch.bfloat16, enabled=sizes["bf16"]):
            out = sae.training_forward_pass(TrainStepInput(batch, {}, None, 0, False))
        with torch.no_grad():
            fired = out.feature_acts.bool().float().sum(-2).bool()
            since_fired.add_(1)
            since_fired[fired.to_dense() if fired.is_sparse else fired] = 0
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


if __name__ == "__main__":
    run(make, json.loads(sys.argv[1]))
