"""Sparse codes: choose the active latents, and touch no others in the decoder and in the backward pass.

A dense TopK step multiplies five full matrices (encoder, decoder and three gradients); with k of d_sae latents
active, only the first needs all of them. The other four are sums of a few gathered rows, which is what
`torch.nn.functional.embedding_bag` computes. `tests/sae/test_sparse.py` holds the dense twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Codes(NamedTuple):
    """The selected entries of a batch of latent activations, ordered by token."""

    values: Tensor  # (nnz,) float32, non-negative; an entry that ReLU cut to zero is selected but not active
    tokens: Tensor  # (nnz,) int64, ascending
    latents: Tensor  # (nnz,) int64
    by_latent: Tensor  # (nnz,) int64, the order that sorts the entries by latent, and by token within one
    n_tokens: int
    n_latents: int

    @classmethod
    def from_dense(cls, z: Tensor) -> Codes:
        """The active entries of z (n_tokens, n_latents)."""
        if z.device.type == "cpu":  # numpy finds them several times as fast
            flat = torch.from_numpy(np.flatnonzero(z.detach().numpy()))
        else:
            flat = z.flatten().nonzero().squeeze(1)
        return cls(z.flatten()[flat], *_located(flat, z.shape[1]), *z.shape)

    def dense(self) -> Tensor:
        """The same codes as an (n_tokens, n_latents) matrix."""
        z = self.values.new_zeros(self.n_tokens, self.n_latents)
        return z.index_put((self.tokens, self.latents), self.values)

    def active_latents(self) -> Tensor:
        """(n_latents,) bool: which latents fired at least once."""
        fired = torch.zeros(self.n_latents, dtype=torch.uint8, device=self.values.device)
        return fired.scatter_reduce(0, self.latents, (self.values > 0).byte(), "amax").bool()


def select_topk(pre: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the k largest entries of each row of `pre` (n, d_sae)."""
    if pre.device.type == "cpu" and pre.dtype == torch.float32:
        # numpy's vectorised quickselect is two to three times as fast as torch.topk on the processor
        rows = pre.detach().numpy()
        cut = rows.shape[1] - k
        kth = np.partition(rows, cut, axis=1)[:, cut : cut + 1]
        flat = np.flatnonzero(rows >= kth)
        if len(flat) == len(rows) * k:  # not so when values tie at the cut, or are NaN
            return torch.from_numpy(flat)
    columns = torch.topk(pre, k, dim=1, sorted=False).indices.sort(dim=1).values
    return (columns + pre.shape[1] * torch.arange(len(pre), device=pre.device)[:, None]).flatten()


def select_batchtopk(pre: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the n * k largest entries of the whole batch `pre` (n, d_sae)."""
    return select_topk(pre.reshape(1, -1), len(pre) * k)


def encode_sparse(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, select: Callable[[Tensor, int], Tensor], k: int
) -> Codes:
    """Codes of x (n, d_in): ReLU of the entries of (x - b_dec) @ W_enc + b_enc that `select` picks; x is data."""
    values, tokens, latents, by_latent = _Encode.apply(x, W_enc, b_enc, b_dec, select, k)
    return Codes(values, tokens, latents, by_latent, len(x), W_enc.shape[1])


def decode_sparse(codes: Codes, W_dec: Tensor) -> Tensor:
    """(n_tokens, d_in): the codes times W_dec (d_sae, d_in), from the active rows alone."""
    return _Decode.apply(codes.values, W_dec, codes)


def _bag(table: Tensor, rows: Tensor, bags: Tensor, n_bags: int, weights: Tensor) -> Tensor:
    """(n_bags, d): row b is the sum of weights[i] * table[rows[i]] over bags[i] == b; `bags` ascends."""
    offsets = torch.zeros(n_bags, dtype=torch.int64, device=bags.device)
    torch.cumsum(torch.bincount(bags, minlength=n_bags)[:-1], 0, out=offsets[1:])
    return F.embedding_bag(rows, table, offsets, per_sample_weights=weights, mode="sum")


def _bag_by_latent(table: Tensor, codes: Codes, weights: Tensor) -> Tensor:
    """(d_sae, d): for each latent the weighted sum of the rows of `table` (n_tokens, d) in which it fires."""
    order = codes.by_latent
    return _bag(table, codes.tokens[order], codes.latents[order], codes.n_latents, weights[order])


def _located(flat: Tensor, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, latents and the stable order by latent of flat indices into (n_tokens, n_latents)."""
    tokens = torch.div(flat, n_latents, rounding_mode="floor")
    latents = flat - tokens * n_latents
    if flat.device.type == "cpu" and n_latents <= 2**16:  # numpy sorts 16-bit integers by radix, much faster
        return tokens, latents, torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))
    return tokens, latents, torch.argsort(latents, stable=True)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W_enc, b_enc, b_dec, select, k):
        centred = x - b_dec
        pre = torch.addmm(b_enc, centred, W_enc)
        flat = select(pre, k)
        values = pre.flatten()[flat].float().relu()
        tokens, latents, by_latent = _located(flat, pre.shape[1])
        ctx.save_for_backward(centred, W_enc, values, tokens, latents, by_latent)
        ctx.mark_non_differentiable(tokens, latents, by_latent)
        return values, tokens, latents, by_latent

    @staticmethod
    def backward(ctx, *grad_outputs):
        centred, W_enc, values, tokens, latents, by_latent = ctx.saved_tensors
        grad = grad_outputs[0] * (values > 0)
        codes = Codes(values, tokens, latents, by_latent, len(centred), W_enc.shape[1])
        grad_W_enc = _bag_by_latent(centred, codes, grad).t()
        # bags, not index_add_: that adds by atomics on a GPU, in an order that differs from run to run
        grad_b_enc = _bag_by_latent(grad.new_ones(len(centred), 1), codes, grad).squeeze(1)
        return None, grad_W_enc, grad_b_enc, -(W_enc @ grad_b_enc), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, codes):
        ctx.codes = codes._replace(values=values.detach())
        # The inner graph gives the gradient of the values by embedding_bag's own kernel.
        with torch.enable_grad():
            ctx.inner_values = values.detach().requires_grad_()
            ctx.inner_out = _bag(W_dec.detach(), codes.latents, codes.tokens, codes.n_tokens, ctx.inner_values)
        return ctx.inner_out.detach()

    @staticmethod
    def backward(ctx, *grad_outputs):
        grad_out = grad_outputs[0].contiguous()
        (grad_values,) = torch.autograd.grad(ctx.inner_out, ctx.inner_values, grad_out)
        grad_W_dec = _bag_by_latent(grad_out, ctx.codes, ctx.codes.values)
        del ctx.inner_out, ctx.inner_values
        return grad_values, grad_W_dec, None
