"""A linear model whose read-out is known: some directions are read, decoys vary with the label and are not."""

from types import SimpleNamespace

import torch

from rkcnn_lib.measure.causal import PromptPairs

HOOK = "blocks.0.hook_resid_post"
D, LABELS, PER_LABEL = 24, 4, 8


class PlantedReader(torch.nn.Module):
    """Token i is an entity of label i % 4; label tokens follow the entities in the vocabulary.

    In a random basis, dimensions 0-1 hold the label and are read, 2-3 hold the label too and are not (the decoy),
    the rest is noise. Positions do not interact.
    """

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.Q = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
        n = LABELS * PER_LABEL
        angle = torch.arange(LABELS) * 2 * torch.pi / LABELS
        circle = 3 * torch.stack([angle.cos(), angle.sin()], 1)
        self.labels = torch.arange(n) % LABELS
        hidden = torch.randn(n, D, generator=generator)
        hidden[:, :2] = circle[self.labels] + 0.1 * hidden[:, :2]
        hidden[:, 2:4] = circle[self.labels] + 0.1 * hidden[:, 2:4]
        self.embed = torch.nn.Parameter(torch.cat([hidden @ self.Q.T, torch.zeros(LABELS, D)]))
        read = torch.full((D, n + LABELS), 0.0)
        read[:2, n:] = circle.T
        self.readout = self.Q @ read
        self.bias = torch.cat([torch.full((n,), -30.0), torch.zeros(LABELS)])
        self.n = n

    def basis(self, *dimensions):
        return self.Q[:, list(dimensions)].double()

    def pairs(self, seed=0, n_pairs=64):
        generator = torch.Generator().manual_seed(seed)
        base = torch.arange(self.n).repeat(-(-n_pairs // self.n))[:n_pairs]
        shift = torch.randint(1, LABELS, (n_pairs,), generator=generator)
        block = LABELS * torch.randint(PER_LABEL, (n_pairs,), generator=generator)
        donor = (self.labels[base] + shift) % LABELS + block
        answer, foil = self.n + self.labels[base], self.n + self.labels[donor]
        return PromptPairs(base[:, None], donor[:, None], answer, foil)

    def forward(self, tokens, return_type="logits"):
        return self.run_with_hooks(tokens)

    def run_with_hooks(self, tokens, return_type="logits", fwd_hooks=()):
        activation = torch.nn.functional.embedding(tokens, self.embed)
        for name, function in fwd_hooks:
            assert name == HOOK
            changed = function(activation, SimpleNamespace(name=name))
            activation = activation if changed is None else changed
        return activation @ self.readout + self.bias

    def run_with_cache(self, tokens, names_filter):
        return self(tokens), {HOOK: torch.nn.functional.embedding(tokens, self.embed)}
