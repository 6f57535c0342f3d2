"""The sparse kernels beside slow and obvious dense twins."""

from __future__ import annotations

import pytest
import torch

from rkcnn_lib.sae import SAE, SAEConfig
from rkcnn_lib.sae.sparse import decode_sparse, select_batchtopk, select_topk


def dense_codes(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """TopK and BatchTopK by plain autograd over the whole matrix."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if sae.config.architecture == "topk":
        chosen = pre.topk(sae.config.k, dim=1).indices
        mask = torch.zeros_like(pre, dtype=torch.bool).scatter(1, chosen, True)
    else:
        chosen = pre.flatten().topk(sae.config.k * len(x)).indices
        mask = torch.zeros(pre.numel(), dtype=torch.bool).scatter(0, chosen, True).view_as(pre)
    return torch.where(mask, pre, 0).relu()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize(("n", "d", "d_sae", "k"), [(64, 16, 48, 5), (1, 7, 9, 9), (33, 5, 130, 1), (17, 24, 3, 2)])
def test_sparse_step_equals_the_dense_twin(architecture, n, d, d_sae, k):
    generator = torch.Generator().manual_seed(n)
    x, target = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)
    gradients = []
    for sparse in (True, False):
        sae = SAE(SAEConfig(d, d_sae, architecture, k=k))
        with torch.no_grad():
            sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=torch.Generator().manual_seed(1)))
            sae.b_dec.copy_(torch.randn(d, generator=torch.Generator().manual_seed(2)))
        if sparse:
            codes = sae.encode_batch(x)
            z, x_hat = codes.dense(), decode_sparse(codes, sae.W_dec) + sae.b_dec
            assert torch.equal(codes.active_latents(), (z > 0).any(0))
        else:
            z = dense_codes(sae, x)
            x_hat = sae.decode(z)
        loss = (x_hat - target).square().sum(1).mean() + 0.3 * z.sum()
        loss.backward()
        gradients.append([z.detach(), x_hat.detach()] + [p.grad for p in sae.parameters()])
    for ours, twin in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-4)


def test_selection_equals_sorting_also_with_ties_and_nan():
    pre = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    tied = pre.clone()
    tied[:, 5:25] = 0.25  # twenty equal values: exactly k must still be chosen
    for values in (pre, tied):
        flat = select_topk(values, 4)
        assert torch.equal(flat, flat.sort().values) and len(flat.unique()) == 80
        rows = values.flatten()[flat].view(20, 4).sort(dim=1, descending=True).values
        assert torch.equal(rows, values.sort(dim=1, descending=True).values[:, :4])
        flat = select_batchtopk(values, 4)
        assert torch.equal(flat, flat.sort().values) and len(flat.unique()) == 80
        chosen = values.flatten()[flat].sort(descending=True).values
        assert torch.equal(chosen, values.flatten().sort(descending=True).values[:80])
    pre[3, 4] = torch.nan  # must not vanish silently
    assert pre.flatten()[select_topk(pre, 4)].isnan().any()
    assert pre.flatten()[select_batchtopk(pre, 4)].isnan().any()


def test_batch_without_active_latents_decodes_to_zero():
    sae = SAE(SAEConfig(4, 6, "batchtopk", k=2))
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    codes = sae.encode_batch(torch.randn(5, 4))
    assert torch.equal(decode_sparse(codes, sae.W_dec), torch.zeros(5, 4))
    assert not codes.active_latents().any()


def test_gradients_have_the_memory_layout_of_their_parameters():
    # the fused optimiser walks both in memory order
    sae = SAE(SAEConfig(8, 24, k=3))
    codes = sae.encode_batch(torch.randn(16, 8))
    (decode_sparse(codes, sae.W_dec) + sae.b_dec).square().sum().backward()
    for parameter in sae.parameters():
        assert parameter.grad.stride() == parameter.stride()
