"""Activations whose true directions are known, shared by the tests of this room."""

from __future__ import annotations

import torch
from torch import Tensor

from rkcnn_lib.sae.architectures import random_directions


def planted(n: int, n_features: int = 48, d: int = 32, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, d) activations, sums of k features with strengths in [0.5, 1.5], and the (n_features, d) unit directions.

    `seed` draws the activations; the directions are always the same.
    """
    truth = random_directions(n_features, d, 1000)
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(n, n_features, generator=generator).topk(k, dim=1).indices
    codes = torch.zeros(n, n_features).scatter(1, which, 0.5 + torch.rand(n, k, generator=generator))
    return codes @ truth, truth
