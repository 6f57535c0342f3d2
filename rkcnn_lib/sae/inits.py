"""Directions to initial weights: every arm of a comparison starts through `init_from_directions`.

Arms then differ in their directions alone: all encoders are made in the same way, the latents without a direction get
the same draws from the activations' covariance, the decoder bias is the geometric median, and one scalar puts the first
reconstruction at its best scale (without it arms cannot be compared: they would start orders of magnitude apart).
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
from rkcnn_lib.tensors import (
    add_at,
    as_matrix,
    as_numbers,
    default_steps,
    geometric_median,
    one_of,
    one_sided_codes,
    rows_or_store,
    with_covariance,
)

ENCODERS = ("tied", "fitted", "random")
ROWS = 8192  # most rows of X that are looked at
FIT_ROWS = 65_536  # most rows from which an encoder is fitted
RIDGE = 1e-3  # of the mean variance of a dimension
MOST_SCALED = 20.0  # a column that predicts less of its codes than a twentieth is not scaled up any further
MAX_ELEMENTS = 2**24  # numbers held in one temporary array


def init_from_directions(
    config: SAEConfig,
    directions: Tensor | np.ndarray | None = None,
    *,
    X: Any,
    encoder: str = "tied",
    random_state: int = 0,
) -> SAE:
    """An SAE, in raw units, whose latents write `directions`; those without one write draws from the covariance of X.

    One scalar multiplies the encoder and its bias so that the reconstruction of X is nearest (`best_scale`). Activation
    functions are positively homogeneous, so the selection does not change.

    Parameters
    ----------
    directions : (r, d_in), best first, or None for random unit vectors
        Made unit length; the first d_sae are used.
    X : (n, d_in) tensor or array, or an activation store
        Activations in raw units, for the bias, the fill, the scale and a fitted encoder: at most 8,192 rows (an encoder
        is fitted on up to 65,536), of a store those to train on.
    encoder : {"tied", "fitted", "random"}
        "tied": ``W_enc = W_dec^T``, no bias. "fitted": with a bias, the ridge regression on the rows of their sparse
        codes with the decoder's own directions (`k` a row by one-sided matching pursuit; of a relu as many as
        `default_steps`), each latent at the slope of its own codes. "random": random columns, at the scale of tied
        ones: a start by the decoder only, where a latent fires on something else than what it writes.
    random_state : int
        Seed of the fill, of random vectors and of the rows drawn from X (and of a store's mine/train split): give the
        run's seed. The fill of latent i is the same for all directions.

    ValueError for directions of the wrong width, with NaN or of length zero; X empty, of the wrong width or with NaN.
    """
    one_of("encoder", encoder, ENCODERS)
    X = rows_or_store(X)
    x = sample_rows(X, ROWS, random_state, d_in=config.d_in)
    sae = SAE(config, random_state)
    with torch.no_grad():
        sae.to(x.device)
        sae.b_dec.copy_(geometric_median(x))
        if directions is not None:
            rows = _unit_directions(directions, config.d_in)[: config.d_sae]
            sae.W_dec[: len(rows)] = rows.to(x.device)
            sae.W_dec[len(rows) :] = _covariance_draws(x, config.d_sae, random_state)[len(rows) :]
        random_columns = sae.W_enc.clone()
        sae.W_enc.copy_(sae.W_dec.t())
        if encoder == "fitted":
            _fit_encoder(sae, sample_rows(X, FIT_ROWS, random_state, d_in=config.d_in))
        scale = best_scale(sae, x)
        if encoder == "random":
            sae.W_enc.copy_(random_columns)
        sae.W_enc.mul_(scale)
        sae.b_enc.mul_(scale)
        if config.architecture == "batchtopk":
            sae.threshold.fill_(batch_threshold(sae, x))
    return sae


def _covariance_draws(X: Tensor, n: int, random_state: int) -> Tensor:
    """(n, d) unit rows drawn as Gaussians with the covariance of X (n_rows, d): they lie as the activations do."""
    generator = torch.Generator().manual_seed(index(random_state))
    centred = X.double() - X.double().mean(0)
    noise = torch.randn(n, X.shape[1], generator=generator, dtype=torch.float64).to(X.device)
    return F.normalize(with_covariance(noise, centred.T @ centred), dim=1).to(X.dtype)


def _fit_encoder(sae: SAE, X: Tensor) -> None:
    """Give `sae` the affine encoder that best predicts sparse codes of the rows X (n, d_in) with its decoder.

    Least squares shrinks what it cannot predict, and a latent that reads a rare direction would never win a place among
    the k: each is scaled back, by 1 / R^2, to the slope that its codes have on what it reads. A latent that no row is
    coded with keeps the encoder it has.
    """
    D, d = sae.W_dec, sae.W_dec.shape[1]
    n_steps = sae.config.n_active or default_steps(d)
    gram = D @ D.T
    second = torch.zeros(d + 1, d + 1, dtype=torch.float64, device=D.device)
    product = torch.zeros(len(D), d + 1, dtype=torch.float64, device=D.device)
    energy = torch.zeros(len(D), dtype=torch.float64, device=D.device)
    for x in X.split(max(1, MAX_ELEMENTS // max(len(D), d * n_steps))):
        x = x - sae.b_dec
        codes = one_sided_codes(x, D, gram, n_steps)
        x = F.pad(x, (0, 1), value=1.0).double()
        second += x.T @ x
        written = codes.values.double()[:, :, None] * x[:, None]  # (rows, steps, d + 1)
        add_at(product, codes.picked.flatten(), written.flatten(0, 1))
        add_at(energy, codes.picked.flatten(), codes.values.double().square().flatten())
    ridge = RIDGE * second.diagonal()[:d].mean()
    second.diagonal()[:d].add_(ridge)
    solved = torch.linalg.solve(second, product.T)
    predicted = (product.T * solved).sum(0)  # of the codes' energy: their ratio is R^2
    solved = (solved * (energy / predicted.clamp_min(1e-12)).clamp_max(MOST_SCALED)).to(D.dtype)
    coded = product.any(1)  # the others would be blind for ever: they stay tied
    sae.W_enc[:, coded] = solved[:d, coded]
    sae.b_enc[coded] = solved[d, coded]


def sample_rows(X: Any, n_rows: int, random_state: int, split: str = "train", *, d_in: int) -> Tensor:
    """At most `n_rows` rows of what `rows_or_store` returned, of a store's split, as a float32 (n, d_in) tensor."""
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
    """The scalar that, times encoder and bias, brings the reconstruction of X (n, d_in) nearest in least squares.

    ``<x - b_dec, r> / <r, r>`` over the rows, r the reconstruction less its bias; thresholds must be zero. ValueError
    where no latent fires.
    """
    along, square = 0.0, 0.0
    for x in X.split(batch_size):
        sparse = sae.config.uses_topk
        written = decode_sparse(sae.encode_batch(x), sae.W_dec) if sparse else sae.encode(x) @ sae.W_dec
        along += float(((x - sae.b_dec).double() * written.double()).sum())
        square += float(written.double().square().sum())
    if along <= 0:
        raise ValueError("no latent fires on X at the start; give directions that lie along the activations")
    return along / square


@torch.no_grad()
def batch_threshold(sae: SAE, X: Tensor, batch_size: int = 1024) -> float:
    """The threshold over which k latents a token fire on X (n, d_in), on average; 0 where fewer are positive."""
    n_wanted = len(X) * sae.config.n_active + 1  # one more: a pre-activation must exceed the threshold
    largest, floor = X.new_zeros(0), 0.0
    for x in X.split(batch_size):
        pre = sae.pre_activations(x)
        largest = torch.cat([largest, pre[pre > floor]])
        if len(largest) >= n_wanted:
            largest = largest.topk(n_wanted, sorted=False).values
            floor = float(largest.min())
    return floor


def _unit_directions(directions: Any, d_in: int) -> Tensor:
    rows = as_numbers(directions, "directions").float()
    if rows.ndim != 2 or rows.shape[1] != d_in:
        raise ValueError(f"directions have shape {tuple(rows.shape)}; they must be (r, d_in={d_in})")
    length = rows.norm(dim=1)
    if not torch.isfinite(length).all() or (length < 1e-12).any():  # these do not become unit length
        raise ValueError("directions hold rows of infinite or zero length; drop those first")
    return F.normalize(rows, dim=1)
