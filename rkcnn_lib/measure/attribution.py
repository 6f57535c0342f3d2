"""Which latents of an SAE an answer hangs on, to first order: activation x gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import PromptPairs, edited_logits
from rkcnn_lib.measure.effects import token_set_logits


def latent_attribution(lm: Any, pairs: PromptPairs, hook_name: str, sae: Any) -> Tensor:
    """Return the mean |activation x gradient| (d_sae,) of each latent over base prompts, in logits.

    The gradient is that of the logit difference (answer minus foil) along the latent's decoder row; times its
    activation it estimates what the difference loses when the latent is zeroed (Syed, Rager & Conmy 2023,
    arXiv:2310.10348). Absolute values are averaged, for a latent may speak for one answer and against another;
    contributions at a prompt's several positions are added first.
    """
    seen: list[Tensor] = []

    def watch(clean: Tensor, here: slice) -> Tensor:
        seen.append(clean.detach().requires_grad_())
        return seen[-1]

    logits = edited_logits(lm, pairs, hook_name, watch)
    difference = token_set_logits(logits, pairs.answer) - token_set_logits(logits, pairs.foil)
    slopes = torch.cat(torch.autograd.grad(difference.sum(), seen))  # (n, k, d)
    x = torch.cat(seen).detach()
    with torch.no_grad():
        codes = sae.encode(x.flatten(0, 1).to(sae.W_dec)).unflatten(0, x.shape[:2])
        return (codes * (slopes.to(codes) @ sae.W_dec.T)).sum(1).abs().mean(0).cpu()
