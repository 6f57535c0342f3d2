"""What it costs a language model when an SAE's reconstruction takes the place of the activations."""

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
from rkcnn_lib.tensors import bool_mask, fingerprint


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
    """Cross entropy and KL in nats with activations at a hook clean, reconstructed, zeroed and at their mean.

    What SAEs are not trained on, position 0 and special tokens, is never replaced and is no target: `mask` says which
    rows count. A model with a task of its own says where it is asked what (see `rkcnn_lib.tensors`). See
    `rkcnn_lib.measure.quality` for the arguments and the keys of the answer; `mean` is (d_in,).
    """
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; give (n_contexts, at least 2)")
    if mask is not None:
        mask = bool_mask("mask", mask, tuple(tokens.shape))
    tokens = to_model(lm, tokens)
    mask = rows_that_count(lm, tokens) if mask is None else mask.to(tokens.device)
    watch, sums = _Watch(sae), dict.fromkeys(("clean", "sae", "kl"), 0.0)
    n_predictions, by_context = 0, []
    for batch, counts in zip(tokens.split(contexts_per_batch), mask.split(contexts_per_batch), strict=True):
        right = asked(lm, batch, counts)
        n_predictions += int(right.counted.sum())
        clean = _log_probs(lm, batch, right, hook_name, counts, watch)
        if not watch.passed:
            raise ValueError(f"no activation passed hook_name={hook_name!r}; this model has no such hook")
        spliced = _log_probs(lm, batch, right, hook_name, counts, lambda x: _reconstructed(sae, x))
        sums["clean"] += float(_cross_entropies(clean, right).nansum())
        by_context.append(_cross_entropies(spliced, right))
        sums["sae"] += float(by_context[-1].nansum())
        sums["kl"] += float((clean.exp() * (clean - spliced)).sum(-1).double().sum())
    if not n_predictions or not watch.moments.n:
        raise ValueError("mask leaves no row and no target of these tokens: there is nothing to measure on")
    sums |= _ablated(lm, tokens, mask, hook_name, mean, contexts_per_batch, sums["clean"])
    return _scores({name: total / n_predictions for name, total in sums.items()}) | {
        "explained_variance_in_model": watch.explained_variance(),
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


def _scores(means: dict[str, float]) -> dict[str, float]:
    result = {f"ce_{name}": means[name] for name in ("clean", "sae", "zero", "mean")}
    result |= {"delta_ce": means["sae"] - means["clean"], "kl": means["kl"]}
    for ablation in ("zero", "mean"):
        harm = means[ablation] - means["clean"]
        result[f"ce_score_{ablation}"] = (means[ablation] - means["sae"]) / harm if harm > 0 else math.nan
    return result


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


def _reconstructed(sae: Any, x: Tensor) -> Tensor:
    """The SAE's reconstruction of rows x (n, d_in), computed where the SAE is, given back where x is."""
    rows = x.to(sae.W_dec.device) if hasattr(sae, "W_dec") else x
    return sae.decode(sae.encode(rows)).to(x.device)


class _Watch:
    """An edit that changes nothing and measures how well the SAE explains the rows that count of what passes."""

    def __init__(self, sae: Any) -> None:
        self.sae = sae
        self.passed = False
        self.moments = Moments()

    def __call__(self, x: Tensor) -> Tensor:
        self.passed = True
        d_in = self.sae.W_dec.shape[1] if hasattr(self.sae, "W_dec") else x.shape[-1]
        if x.ndim != 2 or x.shape[-1] != d_in:
            raise ValueError(
                f"activations at the hook are {tuple(x.shape[1:])} wide; the SAE reads (contexts, positions, {d_in})"
            )
        self.moments.add(x, _reconstructed(self.sae, x))
        return x

    def explained_variance(self) -> float:
        try:
            return self.moments.explained_variance()
        except ValueError:  # one row, say, does not vary
            return math.nan
