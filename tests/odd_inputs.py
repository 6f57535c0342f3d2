"""The same numbers in every form in which people have them, and what is no matrix of numbers at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse


def forms(X: np.ndarray) -> dict[str, Any]:
    """X (n, d), of whole numbers below 128, in other forms: each holds exactly the same numbers."""
    frozen = X.copy()
    frozen.setflags(write=False)
    tensor = torch.tensor(X)
    return {
        "rows upside down in memory": X[::-1].copy()[::-1],
        "columns from right to left in memory": X[:, ::-1].copy()[:, ::-1],
        "every second row": np.repeat(X, 2, axis=0)[::2],
        "Fortran order": np.asfortranarray(X),
        "other byte order": X.astype(X.dtype.newbyteorder()),
        "read-only": frozen,
        "masked array without a mask": np.ma.asarray(X),
        "float16": X.astype(np.float16),
        "float32": X.astype(np.float32),
        "long double": X.astype(np.longdouble),
        "int8": X.astype(np.int8),
        "int64": X.astype(np.int64),
        "objects": X.astype(object),
        "lists": X.tolist(),
        "DataFrame": pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])]),
        "DataFrame of whole numbers": pd.DataFrame(X.astype(int)),
        "tensor": tensor,
        "transposed tensor": tensor.T.contiguous().T,
        "bfloat16": tensor.bfloat16(),
        "float16 tensor": tensor.half(),
        "int tensor": tensor.int(),
        "requires_grad": tensor.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(tensor.float()),
        "result of a computation": tensor.clone().requires_grad_() * 1,
    }


def no_matrices(X: np.ndarray) -> dict[str, Any]:
    """What stands in the place of X (n, d) and is none."""
    holed = X.astype(float)
    holed[1, 0] = np.nan
    tensor = torch.tensor(X)
    return {
        "sparse": sparse.csr_array(X),
        "old sparse": sparse.csc_matrix(X),
        "sparse tensor": tensor.to_sparse(),
        "sparse rows tensor": tensor.to_sparse_csr(),
        "complex": X.astype(complex),
        "complex tensor": tensor.to(torch.complex64),
        "masked": np.ma.masked_equal(X, X[0, 0]),
        "words": np.full(X.shape, "a"),
        "words in objects": np.full(X.shape, "a", dtype=object),
        "dates": np.full(X.shape, "2020-01-01", dtype="datetime64[D]"),
        "words in a DataFrame": pd.DataFrame(X).astype(object).replace(X[0, 0], "a"),
        "a dict": {"a": 1},
        "nothing": None,
        "a number": 3.0,
        "one axis": X[0],
        "one axis, tensor": tensor[0],
        "three axes": X[None],
        "lists of two lengths": [[1.0, 2.0], [3.0]],
        "no columns": X[:, :0],
        "no columns, tensor": tensor[:, :0],
        "NaN": holed,
        "NaN, tensor": torch.tensor(holed),
        "infinite": np.where(np.isnan(holed), np.inf, holed),
        "infinite float16": np.where(np.isnan(holed), -np.inf, holed).astype(np.float16),
        "missing in a DataFrame": pd.DataFrame(holed).convert_dtypes(),
    }


def assert_refused(call: Callable[[], Any], argument: str, what: str) -> None:
    """Assert that a call is a ValueError or TypeError whose message names the argument."""
    with pytest.raises((ValueError, TypeError)) as refusal:
        call()
    assert re.search(rf"\b{argument}\b", str(refusal.value)), (what, str(refusal.value))
    assert len(str(refusal.value)) < 1000, what
