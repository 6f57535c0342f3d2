"""What it costs a language model when an SAE's reconstruction takes the place of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import run_edited
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
) -> dict[str, float]:
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
    watch, sums, n_predictions = _Watch(sae), dict.fromkeys(("clean", "sae", "kl"), 0.0), 0
    for batch, counts in zip(tokens.split(contexts_per_batch), mask.split(contexts_per_batch), strict=True):
        right = asked(lm, batch, counts)
        n_predictions += int(right.counted.sum())
        clean = _log_probs(lm, batch, right, hook_name, counts, watch)
        if not watch.passed:
            raise ValueError(f"no activation passed hook_name={hook_name!r}; this model has no such hook")
        spliced = _log_probs(lm, batch, right, hook_name, counts, lambda x: _reconstructed(sae, x))
        sums["clean"] += _cross_entropy(clean, right)
        sums["sae"] += _cross_entropy(spliced, right)
        sums["kl"] += float((clean.exp() * (clean - spliced)).sum(-1).double().sum())
    if not n_predictions or not watch.seen:
        raise ValueError("mask leaves no row and no target of these tokens: there is nothing to measure on")
    sums |= _ablated(lm, tokens, mask, hook_name, mean, contexts_per_batch, sums["clean"])
    return _scores({name: total / n_predictions for name, total in sums.items()}) | {
        "explained_variance_in_model": watch.explained_variance()
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
                sums[name] += _cross_entropy(_log_probs(lm, batch, right, hook_name, counts, function), right)
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


def _cross_entropy(log_probs: Tensor, right: Asked) -> float:
    """Sum over the answers that count of minus the log-probability of the token that is right."""
    tokens = right.right[right.counted].to(log_probs.device)
    return -float(log_probs.gather(-1, tokens[:, None]).double().sum())


def _reconstructed(sae: Any, x: Tensor) -> Tensor:
    """The SAE's reconstruction of rows x (n, d_in), computed where the SAE is, given back where x is."""
    rows = x.to(sae.W_dec.device) if hasattr(sae, "W_dec") else x
    return sae.decode(sae.encode(rows)).to(x.device)


class _Watch:
    """An edit that changes nothing and measures how well the SAE explains the rows that count of what passes."""

    def __init__(self, sae: Any) -> None:
        self.sae = sae
        self.passed = False
        self.seen = 0
        self.total: Tensor | float = 0.0
        self.square = 0.0
        self.error = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        self.passed = True
        d_in = self.sae.W_dec.shape[1] if hasattr(self.sae, "W_dec") else x.shape[-1]
        if x.ndim != 2 or x.shape[-1] != d_in:
            raise ValueError(
                f"activations at the hook are {tuple(x.shape[1:])} wide; the SAE reads (contexts, positions, {d_in})"
            )
        self.error += float((x - _reconstructed(self.sae, x)).double().square().sum())
        self.total = self.total + x.double().sum(0)
        self.square += float(x.double().square().sum())
        self.seen += len(x)
        return x

    def explained_variance(self) -> float:
        variance = self.square / self.seen - float((self.total / self.seen).square().sum())
        return 1 - self.error / self.seen / variance if variance > 0 else math.nan
