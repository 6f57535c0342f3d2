"""Directions to initial weights: every arm of a comparison starts through `init_from_directions`.

Arms then differ in their directions alone: the encoder is tied, the latents without a direction get the same
random fill, the decoder bias is the geometric median, and one scalar puts the first reconstruction at its best
scale (without it arms cannot be compared: they would start orders of magnitude apart).
"""

from __future__ import annotations

import warnings
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rkcnn_lib.sae.architectures import SAE, SAEConfig
from rkcnn_lib.sae.sparse import decode_sparse
from rkcnn_lib.tensors import as_matrix, as_numbers, geometric_median, number, rows_or_store


def init_from_directions(
    config: SAEConfig,
    directions: Tensor | np.ndarray | None = None,
    filters: Tensor | np.ndarray | None = None,
    *,
    X: Any,
    tied: bool = True,
    fraction: float = 1.0,
    random_state: int = 0,
    split: str = "train",
    n_rows: int = 8192,
) -> SAE:
    """An SAE, in raw units, whose first latents write `directions`, the rest random unit vectors.

    One scalar s multiplies the encoder: the least-squares answer ``s = <x - b_dec, r> / <r, r>`` over the rows, r the
    reconstruction at s = 1 less its bias. Encoder biases are zero, so activation functions are positively homogeneous
    and the selection does not change.

    Parameters
    ----------
    directions : (r, d_in), best first, or None for a random start
        Made unit length. The first ``min(r, round(fraction * d_sae))`` are used.
    filters : (r, d_in), optional
        What reads each direction out. Without them the encoder is tied, ``W_enc = W_dec^T``. With them column i
        is filter i, scaled to answer 1 to its own direction, as a tied column does.
    X : (n, d_in) tensor or array, or an activation store
        Activations in raw units, for the bias and the scale: `n_rows` rows, of a store those of `split`.
    tied : bool
        False leaves the encoder columns of the directions at the random fill: a start by the decoder only, where
        a latent fires on something else than what it writes. The rest stays tied.
    fraction : float in [0, 1]
        Share of the latents that directions may take.
    random_state : int
        Seed of the random fill and of the rows drawn from X (and of a store's mine/train split): give the run's
        seed. The fill of latent i is the same in every arm.

    Raises
    ------
    ValueError
        On directions of the wrong width, with NaN or of length zero; filters that do not match, or with
        ``tied=False``; fraction outside [0, 1]; X empty, of the wrong width or with NaN.
    """
    number("fraction", fraction, "[0, 1]")
    if filters is not None and not tied:
        raise ValueError("filters were given with tied=False; the encoder is either read from them or left random")
    x = sample_rows(X, n_rows, random_state, split, d_in=config.d_in)
    sae = SAE(config, random_state)
    rows, readers = _directions_and_filters(directions, filters, config.d_in)
    n_mined = min(len(rows), round(fraction * config.d_sae))
    with torch.no_grad():
        sae.W_dec[:n_mined] = rows[:n_mined]
        if tied:  # else every column stays at the random fill, as the SAE was made
            sae.W_enc[:, :n_mined] = readers[:n_mined].t()
        sae.to(x.device)
        sae.b_dec.copy_(geometric_median(x))
        scale = best_scale(sae, x)
        sae.W_enc.mul_(scale)
        if config.architecture == "batchtopk":
            sae.threshold.fill_(batch_threshold(sae, x))
    return sae


def sample_rows(X: Any, n_rows: int, random_state: int, split: str = "train", *, d_in: int) -> Tensor:
    """At most `n_rows` rows of a tensor, an array or a store's split, as a checked float32 (n, d_in) tensor."""
    X = rows_or_store(X)
    if isinstance(X, Tensor):
        if len(X) > n_rows:
            generator = torch.Generator().manual_seed(index(random_state))
            X = X[torch.randperm(len(X), generator=generator)[:n_rows].to(X.device)]
    elif hasattr(X, "matrix"):
        with warnings.catch_warnings():  # a store warns when it has fewer rows; here all of them will do
            warnings.simplefilter("ignore", UserWarning)
            X = as_matrix(X.matrix(split, seed=random_state, n_rows=n_rows))
    else:
        raise ValueError(f"X is a {type(X).__name__}; give a tensor (n, d_in) or a store with batches() and matrix()")
    if X.shape[1] != d_in:
        raise ValueError(f"X has shape {tuple(X.shape)}; it must be (n, d_in={d_in})")
    return as_numbers(X.float(), "X")  # float64 may hold what float32 cannot


@torch.no_grad()
def best_scale(sae: SAE, X: Tensor, batch_size: int = 1024) -> float:
    """The scalar that, times the encoder, brings the reconstruction of X (n, d_in) nearest in least squares.

    Holds where the encoder bias and the thresholds are zero. Raises ValueError when no latent fires, or when
    the reconstruction points away from the data (filters with the wrong sign).
    """
    along, square = 0.0, 0.0
    for x in X.split(batch_size):
        sparse = sae.config.uses_topk
        written = decode_sparse(sae.encode_batch(x), sae.W_dec) if sparse else sae.encode(x) @ sae.W_dec
        along += float(((x - sae.b_dec).double() * written.double()).sum())
        square += float(written.double().square().sum())
    if square == 0:
        raise ValueError("no latent fires on X at the start; give directions that lie along the activations")
    if along <= 0:
        raise ValueError("the first reconstruction points away from X; check the sign of filters and directions")
    return along / square


@torch.no_grad()
def batch_threshold(sae: SAE, X: Tensor, batch_size: int = 1024) -> float:
    """The threshold over which k latents a token fire on X (n, d_in), on average; 0 where fewer are positive."""
    n_wanted = len(X) * sae.config.k + 1  # one more: a pre-activation must exceed the threshold
    largest, floor = X.new_zeros(0), 0.0
    for x in X.split(batch_size):
        pre = sae.pre_activations(x)
        largest = torch.cat([largest, pre[pre > floor]])
        if len(largest) >= n_wanted:
            largest = largest.topk(n_wanted, sorted=False).values
            floor = float(largest.min())
    return floor


def _directions_and_filters(directions: Any, filters: Any, d_in: int) -> tuple[Tensor, Tensor]:
    """Checked unit directions (r, d_in) and what reads each of them, in the same order."""
    if directions is None:
        if filters is not None:
            raise ValueError("filters were given without directions; give both")
        return torch.zeros(0, d_in), torch.zeros(0, d_in)
    rows = _checked_rows("directions", directions, d_in)
    rows = F.normalize(rows, dim=1)
    readers = rows
    if filters is not None:
        readers = _checked_rows("filters", filters, d_in)
        if len(readers) != len(rows):
            raise ValueError(f"{len(readers)} filters for {len(rows)} directions; give one for each")
        answers = (readers * rows).sum(dim=1, keepdim=True)
        if (answers <= 0).any():
            raise ValueError(f"{int((answers <= 0).sum())} filters do not answer positively to their own direction")
        readers = readers / answers
    return rows, readers


def _checked_rows(name: str, rows: Any, d_in: int) -> Tensor:
    rows = as_numbers(rows, name).cpu().float()
    if rows.ndim != 2 or rows.shape[1] != d_in:
        raise ValueError(f"{name} have shape {tuple(rows.shape)}; they must be (r, d_in={d_in})")
    length = rows.norm(dim=1)
    if not torch.isfinite(length).all() or (length < 1e-12).any():  # these do not become unit length
        raise ValueError(f"{name} hold rows of infinite or zero length; drop those first")
    return rows
