"""What a miner is given: checked, at most so many rows of it, and brought to one scale."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets

from rkcnn_lib.probe.moments import chunks
from rkcnn_lib.probe.scores import check_labels


def as_matrix(X: Any) -> torch.Tensor:
    """Rows given as a tensor, an array (of any strides) or a DataFrame, as a checked tensor; ValueError otherwise."""
    if not isinstance(X, torch.Tensor):
        X = np.ascontiguousarray(X)
        if X.dtype.kind not in "fiubc":
            raise ValueError(f"X holds {X.dtype}; numbers are needed")
        X = torch.as_tensor(X)
    return check_tensor(X)


def check_tensor(X: torch.Tensor) -> torch.Tensor:
    """X itself if it is a finite real matrix of two rows or more; ValueError otherwise."""
    if X.ndim != 2 or min(X.shape) == 0:
        raise ValueError(f"X has shape {tuple(X.shape)}; a tensor of shape (n, d), neither empty, is needed")
    if X.is_complex():
        raise ValueError("X is complex; real activations are needed")
    if not all(bool(torch.isfinite(X[rows]).all()) for rows in chunks(len(X), X.shape[1])):
        raise ValueError("X holds NaN or infinite values; drop those rows first")
    if len(X) < 2:
        raise ValueError("X has 1 sample (n_samples=1); at least 2 are needed")
    return X.detach()


def check_side(y: Any, groups: Any, n: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Labels and groups as arrays (n,) or None; ValueError for another length or labels of one class."""
    y, groups = (a.cpu().numpy() if isinstance(a, torch.Tensor) else a for a in (y, groups))
    if y is not None:
        y = check_labels(y, n)
        check_classification_targets(y)
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (n,):
            raise ValueError(f"groups has shape {groups.shape} but X has {n} rows; give one a row")
    return y, groups


def some_rows(
    X: torch.Tensor, y: np.ndarray | None, groups: np.ndarray | None, most: int, seed: int
) -> tuple[torch.Tensor, np.ndarray | None, np.ndarray | None]:
    """At most ``most`` rows drawn at random, in their order, with their labels and groups."""
    if len(X) <= most:
        return X, y, groups
    rows = np.sort(np.random.RandomState(seed).permutation(len(X))[:most])
    X = X[torch.as_tensor(rows, device=X.device)]
    return X, None if y is None else y[rows], None if groups is None else groups[rows]


def varying_columns(X: torch.Tensor) -> torch.Tensor:
    """Numbers of the columns that vary, with a warning when some do not."""
    varying = torch.stack([(X[rows] != X[0]).any(0) for rows in chunks(len(X), X.shape[1])]).any(0)
    if not bool(varying.all()):
        left_out = int((~varying).sum())
        warnings.warn(f"{left_out} constant columns are left out (their entries are 0)", stacklevel=4)
    return varying.nonzero()[:, 0]


def centred(X: torch.Tensor, columns: torch.Tensor, normalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Some columns of X, centred and at unit mean square, float32 (n, c); and the mean of all columns, float64 (d,).

    Differences are formed in float64, a block of rows at a time: an offset far larger than the spread costs no
    precision, and no second copy of the rows is held. With ``normalise`` rows are then scaled to norm 1 and centred
    once more.
    """
    blocks = list(chunks(len(X), X.shape[1]))
    mean = sum(X[rows].double().sum(0) for rows in blocks) / len(X)
    largest = max(float((X[rows].double() - mean).abs().max()) for rows in blocks) or 1.0
    work = X.new_empty(len(X), len(columns), dtype=torch.float32)
    for rows in blocks:
        work[rows] = ((X[rows][:, columns].double() - mean[columns]) / largest).float()
    square = sum(float(work[rows].double().square().sum()) for rows in blocks) / max(1, work.numel())
    work /= square**0.5 or 1.0
    if normalise:
        work /= work.norm(dim=1, keepdim=True).clamp_min(1e-9)
        work -= work.mean(0)
    return work, mean
