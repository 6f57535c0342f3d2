"""What more than one room of the library needs to know about tensors, checks of what a user gives among it."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Collection, Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from rkcnn_lib.protocols import Store

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_SEED = 2**32 - 1  # of numpy's RandomState
BLOCK_ROWS = 16384  # converted or checked at a time
MAX_ELEMENTS = 2**25  # numbers held in one temporary array: 128 MiB of float32


def as_matrix(given: Any, name: str = "X", least: int = 1) -> torch.Tensor:
    """Return rows as `as_numbers` does, (n, d); ValueError for other shapes and fewer than ``least`` rows too."""
    X = as_numbers(given, name)
    if X.ndim != 2 or len(X) < least or X.shape[1] == 0:
        rows = f"at least {least} row{'s' * (least > 1)} and " if least else ""
        raise ValueError(f"{name} has shape {tuple(X.shape)}; shape (n, d) is needed, with {rows}at least one column")
    return X


def rows_or_store(given: Any) -> torch.Tensor | Store:
    """Return a tensor or array as `as_matrix` does, and anything else, an activation store, as it is."""
    return as_matrix(given) if hasattr(given, "shape") else given


def as_numbers(given: Any, name: str) -> torch.Tensor:
    """Return tensors, arrays, DataFrames and nested lists as a dense, finite tensor of floats, without its history.

    Floats stay as they are (a tensor stays on its device), whole numbers and booleans become float64. ValueError,
    naming the argument, for what are no numbers, for sparse, masked or complex ones, NaN and infinities.
    """
    X = given.detach() if isinstance(given, torch.Tensor) else _from_array(given, name)
    if X.layout != torch.strided:
        raise ValueError(f"{name} is sparse; give dense values, {name}.to_dense()")
    if X.is_complex():
        raise ValueError(f"{name} is complex; real numbers are needed")
    X = X if X.dtype in FLOATS else X.double()
    if not all(bool(torch.isfinite(rows).all()) for rows in (X.split(BLOCK_ROWS) if X.ndim else [X])):
        raise ValueError(f"{name} holds NaN or infinite values; finite numbers are needed")
    return X


def check_widths(a: torch.Tensor, b: torch.Tensor, names: tuple[str, str]) -> None:
    """Raise ValueError unless both have the same number of columns."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} has {a.shape[1]} columns and {names[1]} {b.shape[1]}: they share no dimension")


def unit_rows(given: Any, name: str, least: int = 0) -> torch.Tensor:
    """Return rows of length 1, in float64 on the processor, of what `as_matrix` takes; ValueError for a zero row."""
    rows = as_matrix(given, name, least).cpu().double()
    rows = rows / rows.abs().amax(1, keepdim=True)  # squares of 1e300 or 1e-300 are no numbers
    zero = rows.isnan().any(1)
    if bool(zero.any()):
        raise ValueError(f"{name} has a zero row, number {int(zero.int().argmax())}: drop it first")
    return rows / rows.norm(dim=1, keepdim=True)


def _from_array(given: Any, name: str) -> torch.Tensor:
    if sparse.issparse(given):
        raise ValueError(f"{name} is sparse; give dense values, {name}.toarray()")
    if np.ma.is_masked(given):
        raise ValueError(f"{name} has masked values; fill or drop them first")
    try:
        array = np.asarray(given)
        if array.dtype.kind not in "fiubcO":
            raise ValueError(f"numbers are needed, not {array.dtype}")
        if array.dtype.kind != "c" and array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            array = array.astype(np.float64)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be read as an array of numbers: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only arrays, which nobody here writes to
        return torch.as_tensor(array)


def scaled(X: torch.Tensor) -> torch.Tensor:
    """X in float64 over the power of two that brings its largest value to about 1, so that squares fit. Exact."""
    X = X.double()
    return X * 2.0 ** -exponent(X)


def exponent(*tensors: torch.Tensor) -> int:
    """Exponent of the largest power of two that the absolute values of some tensors reach."""
    largest = max((abs(float(end)) for X in tensors if X.numel() for end in (X.min(), X.max())), default=0.0)
    return max(-1022, min(1022, math.frexp(largest)[1] - 1))


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` as an int; ValueError unless it is a whole number (no boolean) from ``least`` to ``most``."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if not fits or int(value) < least or (most is not None and int(value) > most):
        bounds = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name}={value!r} given; it must be a whole number {bounds}")
    return int(value)


def number(name: str, value: Any, interval: str) -> float:
    """Return ``value`` as a float; ValueError unless it is a number in the interval, written as in "(0, 1]"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    ends = {"[": low, "]": high}
    if isinstance(value, Real) and not isinstance(value, bool):
        given = float(value)
        if low < given < high or given in (ends.get(interval[0]), ends.get(interval[-1])):
            return given
    raise ValueError(f"{name}={value!r} given; it must be a number in {interval}")


def switch(name: str, value: Any) -> bool:
    """Return ``value`` as a bool; ValueError unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} given; it must be True or False")
    return bool(value)


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return ``value``; ValueError unless it is one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {tuple(allowed)}")
    return value


def bool_mask(name: str, value: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Return ``value`` as a boolean tensor; ValueError unless it is one of that shape.

    Numbers are refused: whether 0 and 1 are a mask or indices cannot be told.
    """
    mask = value if isinstance(value, torch.Tensor) else np.ascontiguousarray(value)
    if mask.dtype not in (torch.bool, np.bool_) or tuple(mask.shape) != shape:
        raise ValueError(
            f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; a boolean mask of shape {shape} is needed "
            "(of indices: mask[indices] = True)"
        )
    return torch.as_tensor(mask)


def chunks(n: int, elements_each: int, max_elements: int | None = None) -> Iterator[slice]:
    """Slices of range(n), each of one element or more that together hold ``max_elements`` (`MAX_ELEMENTS`) at most."""
    step = max(1, (max_elements or MAX_ELEMENTS) // max(1, elements_each))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def chance_level(draws: Any) -> tuple[Any, Any]:
    """Return the mean and the 95 % point over draws (n, ...) of what chance gives."""
    return np.mean(draws, axis=0), np.quantile(draws, 0.95, axis=0)


def geometric_median(X: torch.Tensor, n_iterations: int = 200, tolerance: float = 1e-6) -> torch.Tensor:
    """(d,): the point with the least sum of distances to the rows of X (n, d) (Weiszfeld 1937, Tohoku Math. J. 43).

    Stops when a step is shorter than `tolerance` times the mean distance.
    """
    blocks = X.split(BLOCK_ROWS)  # float64 copies of all rows at once would be twice their memory
    point = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(X)
    for _ in range(n_iterations):
        distances = torch.cat([(block.double() - point).norm(dim=1) for block in blocks])
        spread = float(distances.mean())
        if spread == 0:
            break
        weights = 1 / distances.clamp_min(1e-9 * spread)  # the point may sit on a row
        parts = zip(weights.split(BLOCK_ROWS), blocks, strict=True)
        before, point = point, torch.stack([weight @ block.double() for weight, block in parts]).sum(dim=0)
        point /= weights.sum()
        if float((point - before).norm()) < tolerance * spread:
            break
    return point.to(X.dtype)


def with_covariance(noise: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Return standard Gaussian noise (n, d) as draws from a covariance (d, d); both float64."""
    values, vectors = torch.linalg.eigh(covariance)
    return (noise * values.clamp_min(0).sqrt()) @ vectors.T


def fingerprint(*tensors: torch.Tensor) -> str:
    """sha256 over the values of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def add_at(total: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Add values (n, ...) to the rows of `total` that index (n,) names, several to one row, in an order that is fixed.

    On CUDA `index_add_` adds by atomics, in another order each time; `index_put_` sorts there. On the processor it is
    the other way round.
    """
    if total.is_cuda:
        total.index_put_((index,), values, accumulate=True)
    else:
        total.index_add_(0, index, values)


class Pursued(NamedTuple):
    """Sparse codes of n rows: up to as many directions a row as steps were taken, some perhaps more than once."""

    values: torch.Tensor  # (n, steps), non-negative
    picked: torch.Tensor  # (n, steps) int64, the direction that each value belongs to

    def decode(self, D: torch.Tensor) -> torch.Tensor:
        """What the codes write with the directions D (r, d): (n, d)."""
        return (self.values[:, :, None] * D[self.picked]).sum(1)


def one_sided_codes(X: torch.Tensor, D: torch.Tensor, gram: torch.Tensor, n_steps: int) -> Pursued:
    """Non-negative codes of X (n, d) by matching pursuit (Mallat & Zhang 1993) with unit directions D (r, d).

    Each step adds to each row the direction with the largest positive inner product with what is left; ``gram`` is
    ``D @ D.T``, through which inner products are updated without forming what is left.
    """
    inner = X @ D.T
    values, picked = [], []
    for _ in range(n_steps):
        value, best = inner.max(1)
        values.append(value.clamp_min(0.0))
        picked.append(best)
        inner -= values[-1][:, None] * gram[best]
    return Pursued(torch.stack(values, 1), torch.stack(picked, 1))


def default_steps(d: int) -> int:
    """Return how many directions a row is coded with: far fewer than d, or nothing is left to learn from."""
    return min(8, max(1, d // 16))
