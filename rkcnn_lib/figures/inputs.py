"""Tables and arrays checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd


def checked(table: pd.DataFrame, columns: Sequence[str], numeric: Sequence[str], what: str) -> pd.DataFrame:
    """Rows of ``table`` whose numeric columns are all finite; ValueError: no table, a missing column, no such row."""
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{what}: expected a pandas DataFrame, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{what}: the table lacks {missing}; it has {list(table.columns)} and needs {list(columns)}")
    if table.empty:
        raise ValueError(f"{what}: the table has no rows, so there is nothing to draw")
    table = table.copy()
    for column in numeric:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("float64")
    finite = table[np.isfinite(table[list(numeric)].to_numpy()).all(axis=1)]
    if finite.empty:
        raise ValueError(f"{what}: no row has finite values in {list(numeric)}")
    return finite


def checked_arrays(
    arrays: Mapping[str, Any], what: str, ndim: int, columns: int | None = None
) -> dict[str, np.ndarray]:
    """Values of a mapping as float arrays (torch tensors too), each non-empty, finite and of ``ndim`` axes."""
    if not arrays:
        raise ValueError(f"{what}: nothing was given, so there is nothing to draw")
    return {str(name): as_array(values, f"{what}, {name!r}", ndim, columns) for name, values in arrays.items()}


def as_array(values: Any, what: str, ndim: int, columns: int | None = None, may_be_empty: bool = False) -> np.ndarray:
    """One array, checked as in :func:`checked_arrays`."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or (columns is not None and array.shape[-1] != columns):
        wanted = f"{ndim} axes" + (f" and {columns} columns" if columns is not None else "")
        raise ValueError(f"{what}: expected an array of {wanted}, got shape {array.shape}")
    if array.size == 0 and not may_be_empty:
        raise ValueError(f"{what}: the array is empty (shape {array.shape}), so there is nothing to draw")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: the array holds NaN or infinite values")
    return array


def in_order(names: Iterable[Any]) -> list[Any]:
    """Distinct names in the order in which they first appear."""
    return list(dict.fromkeys(names))


def parts_of(table: pd.DataFrame, column: str = "metric") -> list[tuple[str | None, pd.DataFrame]]:
    """The rows of each value of ``column``, in order of appearance; all, named None, where there is no such column."""
    if column not in table.columns:
        return [(None, table)]
    return [(str(name), table[table[column] == name]) for name in in_order(table[column])]
