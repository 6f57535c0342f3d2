"""A planted world that several test files mine."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def sparse_world(n_features: int, d: int, p: float, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One-sided features of random unit directions in superposition."""
    g = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(n_features, d, generator=g), dim=1)
    codes = torch.rand(n, n_features, generator=g) * (torch.rand(n, n_features, generator=g) < p)
    return codes @ directions, directions
