"""Atlas's documents as contexts with the ground truth of every token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rkcnn_lib.worlds.atlas.documents import LABELS, label_names, packed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LabelledContexts:
    """Whole documents packed one after the other, with the labels of each token.

    Attributes
    ----------
    token_ids : (n, context_size) long tensor; each context starts with ``<bos>``, its last document may be cut.
    labels : {label: (n, context_size) integer array}, see :attr:`Document.labels`.
    names : {label: list of class names}
    document_ids : (n, context_size) integer array, the number of the document in the order of generation.
    """

    token_ids: torch.Tensor
    labels: dict[str, np.ndarray]
    names: dict[str, list[str]]
    document_ids: np.ndarray


def labelled_contexts(
    n_contexts: int, context_size: int = 128, seed: int = 0, held_out: bool = False
) -> LabelledContexts:
    """Documents packed into contexts of equal length, with ground truth for every token.

    Parameters
    ----------
    n_contexts : number of contexts, at least 1.
    context_size : tokens a context, 2 to 128 (what the model can read).
    seed, held_out : the stream of documents, as in :func:`generate_documents`.

    Raises
    ------
    ValueError : a size out of range.
    """
    import torch

    if n_contexts < 1:
        raise ValueError(f"n_contexts is {n_contexts}: ask for at least 1")
    if not 2 <= context_size <= 128:
        raise ValueError(f"context_size is {context_size}: Atlas reads 2 to 128 tokens")
    columns: dict[str, list[list[int]]] = {name: [] for name in ("ids", "document", *LABELS)}
    for context in islice(packed(seed, context_size, held_out), n_contexts):
        rows: dict[str, list[int]] = {name: [] for name in columns}
        for number, document in context:
            rows["ids"].extend(document.ids)
            rows["document"].extend([number] * len(document.ids))
            for name, values in document.labels.items():
                rows[name].extend(values)
        for name, row in rows.items():
            columns[name].append(row[:context_size])
    arrays = {name: np.array(rows) for name, rows in columns.items()}
    token_ids = torch.from_numpy(arrays.pop("ids"))
    document_ids = arrays.pop("document")
    return LabelledContexts(token_ids, arrays, label_names(), document_ids)
