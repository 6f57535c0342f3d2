"""How good a sparse autoencoder is: sparsity, dead latents, explained variance, and what splicing it costs.

Everything streams in float64 over held-out rows, x and x_hat from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import run_edited
from rkcnn_lib.measure.variance import Moments
from rkcnn_lib.protocols import Asked, asked, rows_that_count, to_model
from rkcnn_lib.tensors import as_matrix, bool_mask, fingerprint

DENSE = 0.1  # a latent that fires on a larger share of tokens is dense
ROWS_AT_ONCE = 1024


def quality(
    sae: Any,
    X: Any,
    *,
    lm: Any = None,
    tokens: Tensor | None = None,
    mask: Tensor | None = None,
    hook_name: str | None = None,
    contexts_per_batch: int = 8,
) -> dict[str, Any]:
    """Measure a sparse autoencoder on held-out activations and, given the model, inside it.

    Parameters
    ----------
    sae : SAE
        Or any object with ``encode`` (n, d_in) to (n, d_sae) and ``decode`` back, in raw units.
    X : (n, d_in) tensor or array
        Held-out rows.
    lm : TransformerBridge, optional
        Run on `tokens`, the SAE's reconstruction in the place of what passes `hook_name`. Devices may differ.
    tokens : (n_contexts, context_size) long tensor
        Held-out contexts, at least two tokens each.
    mask : (n_contexts, context_size) bool tensor, optional
        The rows that SAEs are trained on (a store's ``context_mask``): the others are left as they are and are no
        targets. None: all but position 0 and the special tokens of the model's tokenizer.
    hook_name : str
        Full name, such as "blocks.6.hook_mlp_out".

    Returns
    -------
    dict
        n_tokens; l0 (mean active latents a token); live (latents that fire at all, a count); dead (share of latents
        that never fire on these rows: look at 100k or more); density ((d_sae,) float64 tensor, share of tokens on which
        each latent fires); dense (share of latents whose density is above 0.1); explained_variance
        ``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)``; explained_variance_standardised, the mean over dimensions of
        the same quantity for each (dimensions that never vary left out); l2_ratio ``E||x_hat|| / E||x||``;
        relative_reconstruction_bias, the g that minimises ``E||x_hat / g - x||^2`` (Rajamanoharan et al. 2024,
        arXiv:2404.16014): both are 1 without shrinkage.
        With `lm`, in nats: ce_clean, ce_sae, ce_zero, ce_mean (activations replaced by 0, by the mean of X),
        delta_ce = ce_sae - ce_clean, kl = mean KL(clean || spliced); and the scores ce_score_zero,
        ce_score_mean = (ce_ablated - ce_sae) / (ce_ablated - ce_clean), NaN where the ablation does no harm;
        ce_by_context, the (n_contexts,) float64 tensor of each context's own mean ce_sae, NaN where none counts.
        explained_variance_in_model is measured on what passes the hook: far from explained_variance when X
        comes from another place than `hook_name`.

    ValueError for no rows, NaN, rows of another width than the SAE's, `lm` without tokens, an unknown hook.
    """
    if len({lm is None, tokens is None, hook_name is None}) > 1:
        raise ValueError('give lm, tokens and hook_name together, such as hook_name="blocks.6.hook_mlp_out"')
    moments, fired = Moments(), torch.zeros((), dtype=torch.int64)
    for x in as_matrix(X).split(ROWS_AT_ONCE):
        x = _where_it_is(sae, x)
        x_hat, latents, d_sae = _reconstruct(sae, x.float())
        moments.add(x, x_hat)
        fired = fired + torch.bincount(latents, minlength=d_sae)
    density = (fired.double() / moments.n).cpu()
    result = {
        "n_tokens": moments.n,
        "l0": float(fired.sum() / moments.n),
        "live": int((fired > 0).sum()),
        "dead": float((fired == 0).double().mean()),
        "density": density,
        "dense": float((density > DENSE).double().mean()),
        "explained_variance": moments.explained_variance(),
        "explained_variance_standardised": moments.explained_variance_standardised(),
        "l2_ratio": moments.l2_ratio(),
        "relative_reconstruction_bias": moments.relative_reconstruction_bias(),
    }
    if tokens is not None and hook_name is not None:
        result |= splice_losses(sae, lm, tokens, hook_name, moments.mean(), mask, contexts_per_batch)
    return result


def _where_it_is(sae: Any, x: Tensor) -> Tensor:
    return x.to(sae.W_dec.device) if hasattr(sae, "W_dec") else x


@torch.no_grad()
def _reconstruct(sae: Any, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Reconstruction of x (n, d_in), the latents of all active entries, and the number of latents."""
    if hasattr(sae, "reconstruct"):
        x_hat, _, latents = sae.reconstruct(x)
        return x_hat, latents, sae.W_dec.shape[0]
    z = sae.encode(x)
    return sae.decode(z), (z > 0).nonzero(as_tuple=True)[1], z.shape[1]


@torch.no_grad()
def splice_losses(
    sae: Any,
    lm: Any,
    tokens: Tensor,
    hook_name: str,
    mean: Tensor,
    mask: Tensor | None = None,
    contexts_per_batch: int = 8,
) -> dict[str, Any]:
    """Cross entropy and KL in nats with activations at a hook clean, reconstructed, zeroed and at their mean (d_in,).

    What SAEs are not trained on, position 0 and special tokens, is never replaced and is no target: `mask` says which
    rows count. A model with a task of its own says where it is asked what (see `rkcnn_lib.protocols.asked`). See
    `quality` for the arguments and the keys of the answer.
    """
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; give (n_contexts, at least 2)")
    tokens = to_model(lm, tokens)
    if mask is None:
        mask = rows_that_count(lm, tokens)
    else:
        mask = bool_mask("mask", mask, tuple(tokens.shape)).to(tokens.device)
    passing, sums = Moments(), dict.fromkeys(("clean", "sae", "kl"), 0.0)
    n_predictions, by_context = 0, []

    def reconstructed(x: Tensor) -> Tensor:
        return sae.decode(sae.encode(_where_it_is(sae, x))).to(x.device)

    def watched(x: Tensor) -> Tensor:
        passing.add(x, reconstructed(x))
        return x

    for batch, counts in zip(tokens.split(contexts_per_batch), mask.split(contexts_per_batch), strict=True):
        right = asked(lm, batch, counts)
        n_predictions += int(right.counted.sum())
        clean = _log_probs(lm, batch, right, hook_name, counts, watched)
        spliced = _log_probs(lm, batch, right, hook_name, counts, reconstructed)
        sums["clean"] += float(_cross_entropies(clean, right).nansum())
        by_context.append(_cross_entropies(spliced, right))
        sums["sae"] += float(by_context[-1].nansum())
        sums["kl"] += float((clean.exp() * (clean - spliced)).sum(-1).double().sum())
    if not n_predictions or not passing.n:
        raise ValueError(f"no row at hook_name={hook_name!r}, or no target of these tokens, is left to measure on")
    sums |= _ablated(lm, tokens, mask, hook_name, mean, contexts_per_batch, sums["clean"])
    means = {name: total / n_predictions for name, total in sums.items()}
    result = {f"ce_{name}": means[name] for name in ("clean", "sae", "zero", "mean")}
    result |= {"delta_ce": means["sae"] - means["clean"], "kl": means["kl"]}
    for ablation in ("zero", "mean"):
        harm = means[ablation] - means["clean"]
        result[f"ce_score_{ablation}"] = (means[ablation] - means["sae"]) / harm if harm > 0 else math.nan
    return result | {
        "explained_variance_in_model": passing.explained_variance(),
        "ce_by_context": torch.cat([losses.nanmean(1) for losses in by_context]).cpu(),
    }


# For each model: what was asked of it -> the clean cross entropy, and those zeroed and at the mean; sums.
_ABLATED: WeakKeyDictionary[Any, dict[tuple[Any, ...], tuple[float, dict[str, float]]]] = WeakKeyDictionary()


def _ablated(
    lm: Any, tokens: Tensor, mask: Tensor, hook_name: str, mean: Tensor, contexts_per_batch: int, clean: float
) -> dict[str, float]:
    """Summed cross entropies with the activations zeroed and at their mean, which are the same for every SAE.

    They are remembered, two of four passes for all SAEs of a hook but the first, for as long as the model says the
    same of the clean text: other weights in the same object would not.
    """
    known = _ABLATED.setdefault(lm, {})
    key = (hook_name, contexts_per_batch, tuple(tokens.shape), fingerprint(tokens, mask, mean))
    if key not in known or known[key][0] != clean:
        sums = {"zero": 0.0, "mean": 0.0}
        ways = {"zero": torch.zeros_like, "mean": lambda x: mean.to(x).expand_as(x)}
        for batch, counts in zip(tokens.split(contexts_per_batch), mask.split(contexts_per_batch), strict=True):
            right = asked(lm, batch, counts)
            for name, function in ways.items():
                ablated = _log_probs(lm, batch, right, hook_name, counts, function)
                sums[name] += float(_cross_entropies(ablated, right).nansum())
        known[key] = (clean, sums)
    return known[key][1]


def _log_probs(
    lm: Any, tokens: Tensor, right: Asked, hook_name: str, counts: Tensor, edit: Callable[[Tensor], Tensor]
) -> Tensor:
    """(n, vocabulary) log-probabilities where an answer counts, the rows that count at the hook edited."""
    logits = run_edited(lm, tokens, hook_name, counts, lambda x: edit(x.float()))
    return logits[:, right.where][right.counted.to(logits.device)].float().log_softmax(-1)


def _cross_entropies(log_probs: Tensor, right: Asked) -> Tensor:
    """(contexts, n) float64: minus the log-probability of the token that is right, NaN where none counts."""
    counted = right.counted.to(log_probs.device)
    tokens = right.right.to(log_probs.device)[counted]
    losses = torch.full(counted.shape, math.nan, dtype=torch.float64, device=log_probs.device)
    losses[counted] = -log_probs.gather(-1, tokens[:, None])[:, 0].double()
    return losses
