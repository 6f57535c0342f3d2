"""How good a sparse autoencoder is: sparsity, dead latents, explained variance, and what splicing it costs.

Everything streams in float64 over held-out rows, x and x_hat from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.splice import splice_losses
from rkcnn_lib.tensors import as_matrix, as_numbers, check_widths, exponent, unit_rows, whole

N_CURVE_POINTS = 50


def quality(
    sae: Any,
    X: Any,
    *,
    lm: Any = None,
    tokens: Tensor | None = None,
    mask: Tensor | None = None,
    hook_name: str | None = None,
    batch_size: int = 1024,
    contexts_per_batch: int = 8,
    split: str = "heldout",
) -> dict[str, Any]:
    """Measure a sparse autoencoder on held-out activations and, given the model, inside it.

    Parameters
    ----------
    sae : SAE
        Or any object with ``encode`` (n, d_in) to (n, d_sae) and ``decode`` back, in raw units.
    X : (n, d_in) tensor or array, an activation store, or an iterable of such batches
        Held-out rows; of a store, all rows of `split`.
    lm : TransformerBridge, optional
        Run on `tokens`, the SAE's reconstruction in the place of what passes `hook_name`. Devices may differ.
    tokens : (n_contexts, context_size) long tensor
        Held-out contexts, at least two tokens each.
    mask : (n_contexts, context_size) bool tensor, optional
        The rows that SAEs are trained on (a store's ``context_mask``): the others are left as they are and are no
        targets. None: all but position 0 and the special tokens of the model's tokenizer.
    hook_name : str
        Full name, such as "blocks.6.hook_mlp_out".
    batch_size, contexts_per_batch : int
        Rows, and contexts, measured at once.
    split : str
        Part of a store to read.

    Returns
    -------
    dict
        n_tokens; l0 (mean active latents a token); live (latents that fire at all, a count); dead (share of latents
        that never fire on these rows: look at 100k or more); dead_curve ({"tokens": [...], "dead": [...]}, that share
        after so many tokens); density ((d_sae,) float64 tensor, share of tokens on which each latent fires);
        explained_variance ``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)``; explained_variance_standardised, the mean
        over dimensions of the same quantity for each (dimensions that never vary left out).
        With `lm`, in nats: ce_clean, ce_sae, ce_zero, ce_mean (activations replaced by 0, by the mean of X),
        delta_ce = ce_sae - ce_clean, kl = mean KL(clean || spliced); and the scores ce_score_zero,
        ce_score_mean = (ce_ablated - ce_sae) / (ce_ablated - ce_clean), NaN where the ablation does no harm.
        explained_variance_in_model is measured on what passes the hook: far from explained_variance when X
        comes from another place than `hook_name`.

    Raises
    ------
    ValueError
        On no rows, NaN, rows of another width than the SAE's, `lm` without tokens or hook_name, an unknown hook.
    """
    batch_size = whole("batch_size", batch_size)
    contexts_per_batch = whole("contexts_per_batch", contexts_per_batch)
    if lm is not None and (tokens is None or hook_name is None):
        raise ValueError('lm needs tokens and hook_name as well, such as hook_name="blocks.6.hook_mlp_out"')
    if lm is None and not (tokens is None and mask is None and hook_name is None):
        raise ValueError("tokens, mask or hook_name were given without lm")
    stream = _Moments()
    for x in _batches(X, batch_size, split):
        stream.add(sae, x)
    result = stream.compute()
    if lm is not None:
        result |= splice_losses(sae, lm, tokens, hook_name, stream.mean(), mask, contexts_per_batch)
    return result


def explained_variance(X: Tensor | np.ndarray, X_hat: Tensor | np.ndarray) -> float:
    """``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)`` for rows X and reconstructions X_hat, both (n, d).

    At most 1; 0 for the mean as reconstruction, below for worse. ValueError where X does not vary.
    """
    X, X_hat = as_matrix(X), as_matrix(X_hat, "X_hat")
    if X.shape != X_hat.shape:
        raise ValueError(
            f"X is {tuple(X.shape)}, X_hat {tuple(X_hat.shape)}; they must be the same rows in the same order"
        )
    moments = _Moments()
    unit = 2.0 ** exponent(X, X_hat)  # squares of 1e300 are no numbers
    moments.add_rows(X.double() / unit, X_hat.double() / unit)
    return moments.explained_variance()


class _Moments:
    """Sums over rows seen so far, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.total: Tensor | None = None  # (d,) sum of x
        self.square: Tensor | None = None  # (d,) sum of x^2
        self.error: Tensor | None = None  # (d,) sum of (x - x_hat)^2
        self.fired: Tensor | None = None  # (d_sae,) tokens on which a latent fired
        self.first: Tensor | None = None  # (d_sae,) number of the first such token, counted from 1; inf: none

    @torch.no_grad()
    def add(self, sae: Any, x: Tensor) -> None:
        d_in = sae.W_dec.shape[1] if hasattr(sae, "W_dec") else None
        if x.ndim != 2 or (d_in is not None and x.shape[1] != d_in):
            raise ValueError(f"held-out rows have shape {tuple(x.shape)}; the SAE reads (n, {d_in or 'd_in'})")
        if hasattr(sae, "W_dec"):
            x = x.to(sae.W_dec.device)
        x_hat, tokens, latents, d_sae = _reconstruct(sae, x.float())
        if self.fired is None:
            self.fired = torch.zeros(d_sae, dtype=torch.int64, device=x_hat.device)
            self.first = torch.full((d_sae,), math.inf, dtype=torch.float64, device=x_hat.device)
        self.fired += torch.bincount(latents, minlength=d_sae)
        self.first.scatter_reduce_(0, latents, (self.n + 1 + tokens).double(), "amin")
        self.add_rows(x, x_hat)

    def add_rows(self, x: Tensor, x_hat: Tensor) -> None:
        if x_hat.shape != x.shape:
            raise ValueError(f"rows {tuple(x.shape)} were reconstructed as {tuple(x_hat.shape)}")
        x = x.double()
        error = (x - x_hat.double()).square().sum(0)
        if not (torch.isfinite(x).all() and torch.isfinite(error).all()):
            raise ValueError("NaN or infinite values in the held-out rows or in their reconstruction")
        if self.total is None:
            self.total, self.square, self.error = (torch.zeros_like(error) for _ in range(3))
        self.n += len(x)
        self.total += x.sum(0)
        self.square += x.square().sum(0)
        self.error += error

    def mean(self) -> Tensor:
        """(d,) float64: E x."""
        self._check_seen()
        return self.total / self.n

    def explained_variance(self) -> float:
        variance = (self.square / self.n - self.mean().square()).sum()
        if not variance > 1e-12 * self.square.sum() / self.n:
            raise ValueError("the held-out rows do not vary; there is no variance to explain")
        return float(1 - (self.error / self.n).sum() / variance)

    def explained_variance_standardised(self) -> float:
        variance = self.square / self.n - self.mean().square()
        varies = variance > 1e-12 * self.square / self.n
        return float(1 - (self.error[varies] / self.n / variance[varies]).mean())

    def compute(self) -> dict[str, Any]:
        self._check_seen()
        counts = np.unique(np.geomspace(1, self.n, N_CURVE_POINTS).round().astype(int))
        return {
            "n_tokens": self.n,
            "l0": float(self.fired.sum() / self.n),
            "live": int((self.fired > 0).sum()),
            "dead": float((self.fired == 0).double().mean()),
            "dead_curve": {
                "tokens": counts.tolist(),
                "dead": [float((self.first > count).double().mean()) for count in counts],
            },
            "density": (self.fired.double() / self.n).cpu(),
            "explained_variance": self.explained_variance(),
            "explained_variance_standardised": self.explained_variance_standardised(),
        }

    def _check_seen(self) -> None:
        if self.n == 0:
            raise ValueError("there are no held-out rows to measure on")


def _reconstruct(sae: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Reconstruction of x (n, d_in), rows and latents of all active entries, and the number of latents."""
    if hasattr(sae, "reconstruct"):
        return *sae.reconstruct(x), sae.W_dec.shape[0]
    z = sae.encode(x)
    return sae.decode(z), *(z > 0).nonzero(as_tuple=True), z.shape[1]


def _batches(X: Any, batch_size: int, split: str) -> Iterator[Tensor]:
    """Batches of a tensor, of an array, of a store's split (each row once), or of an iterable as they come."""
    if hasattr(X, "shape"):
        yield from as_matrix(X, least=0).split(batch_size)
    elif hasattr(X, "batches") and hasattr(X, "rows"):
        yield from X.batches(min(batch_size, len(X.rows(split))), split=split, epochs=1)
    elif hasattr(X, "matrix"):
        yield from _batches(X.matrix(split), batch_size, split)
    elif isinstance(X, Iterable):
        yield from (as_matrix(batch, "a batch of X") for batch in X)
    else:
        raise ValueError(f"X is a {type(X).__name__}; give a tensor (n, d_in), batches, or an activation store")


@torch.no_grad()
def frozen_dictionary_ev(
    X: Tensor | np.ndarray,
    D: Tensor | np.ndarray,
    ks: tuple[int, ...] = (8, 16, 32),
    bias: Tensor | np.ndarray | None = None,
    batch_size: int = 512,
) -> dict[int, float]:
    """Explained variance {k: share} of X (n, d) coded with fixed directions D (r, d) by one-sided matching pursuit.

    Each step picks, for each token, the direction with the largest *positive* inner product with the residual and
    refits all picked coefficients by least squares; a token stops when no inner product is positive. It asks how good
    the directions themselves are, before any training. (Orthogonal matching pursuit: Pati, Rezaiifar & Krishnaprasad
    1993; a new direction is orthogonalised against those picked, twice, which equals the refit.)

    `X` are held-out activations, `D` signed, made unit length, and `ks` the numbers of directions a token at which to
    report, at least 1. `bias` (d,) is taken from each row first; None is the mean of X. `batch_size` tokens are coded
    at once, each with a (max(ks), d) basis. ValueError on mismatched widths, NaN, a zero direction or X without
    variance.
    """
    ks = [whole("ks", k) for k in ks]
    if not ks:
        raise ValueError("ks is empty; give numbers of directions a token, at least 1")
    X, D = as_matrix(X), unit_rows(D, "D", least=1).float()
    check_widths(X, D, ("X", "D"))
    D, unit = D.to(X.device), 2.0 ** exponent(X)
    X = (X.double() / unit).float()
    centre = X.double().mean(0)
    bias = centre.float() if bias is None else (as_numbers(bias, "bias").double() / unit).to(X)
    if bias.shape != centre.shape:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; {tuple(centre.shape)} is needed")
    total = float((X.double() - centre).square().sum())
    if total == 0:
        raise ValueError("X does not vary; there is no variance to explain")
    steps = {k: min(k, len(D)) for k in ks}  # then all are picked
    left = dict.fromkeys(steps.values(), 0.0)
    for x in X.split(whole("batch_size", batch_size)):
        for k, residual in _pursue(x - bias, D, max(left)):
            if k in left:
                left[k] += float(residual.double().square().sum())
    return {k: 1 - left[steps[k]] / total for k in ks}


def _pursue(residual: Tensor, D: Tensor, k_max: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (k, residual (n, d)) after each of k_max steps of matching pursuit with orthonormal bases."""
    n, d = residual.shape
    basis = residual.new_zeros(n, k_max, d)
    picked = torch.zeros(n, len(D), dtype=torch.bool, device=residual.device)
    floor = 1e-6 * residual.norm(dim=1)
    for k in range(1, k_max + 1):
        products = (residual @ D.t()).masked_fill_(picked, -math.inf)
        best, which = products.max(dim=1)
        picked[torch.arange(n, device=residual.device), which] = True
        new = D[which]
        for _ in range(2):  # the second pass removes what rounding left of the first
            new = new - torch.einsum("nkd,nk->nd", basis, torch.einsum("nkd,nd->nk", basis, new))
        length = new.norm(dim=1)
        usable = (best > floor) & (length > 1e-4)  # else the token is done, or the direction adds nothing new
        new = torch.where(usable[:, None], new / length.clamp_min(1e-12)[:, None], 0.0)
        residual = residual - new * (new * residual).sum(1, keepdim=True)
        basis[:, k - 1] = new
        yield k, residual
