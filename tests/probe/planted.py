"""A planted world that several test files mine, and how much of it they found."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize


def sparse_world(n_features: int, d: int, p: float, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One-sided features of random unit directions in superposition."""
    g = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(n_features, d, generator=g), dim=1)
    codes = torch.rand(n, n_features, generator=g) * (torch.rand(n, n_features, generator=g) < p)
    return codes @ directions, directions


def recovery(found: Any, truth: torch.Tensor, cosine: float = 0.9) -> float:
    """Share of true directions matched one-to-one at a signed cosine of at least `cosine`."""
    C = (torch.as_tensor(found).float() @ truth.T).numpy()
    rows, columns = linear_sum_assignment(-C)
    return float((C[rows, columns] >= cosine).sum() / len(truth))
