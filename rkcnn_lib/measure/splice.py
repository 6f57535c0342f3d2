"""What it costs a language model when an SAE's reconstruction takes the place of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rkcnn_lib.tensors import asked, fingerprint, first_position


@torch.no_grad()
def splice_losses(
    sae: Any, lm: Any, tokens: Tensor, hook_name: str, mean: Tensor, contexts_per_batch: int = 8
) -> dict[str, float]:
    """Cross entropy and KL in nats with activations at a hook clean, reconstructed, zeroed and at their mean.

    Position 0 is never replaced: its activation is an outlier in most models, and SAEs are not trained on it.
    All ``context_size - 1`` predictions of a context count, that of position 0 included. A model with a task of its
    own says where it is asked what, and from which position activations count (see `rkcnn_lib.tensors`). See
    `rkcnn_lib.measure.quality` for the arguments and the keys of the answer; `mean` is (d_in,).
    """
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; give (n_contexts, at least 2)")
    first = first_position(lm)
    watch, clean_sum, sae_sum, kl, n_predictions = _Watch(sae, first), 0.0, 0.0, 0.0, 0
    reconstruct = _replace(lambda x: sae.decode(sae.encode(x)), first)
    for batch in tokens.split(contexts_per_batch):
        where, right = asked(lm, batch)
        n_predictions += right.numel()
        clean = _log_probs(lm, batch, where, hook_name, watch)
        if not watch.seen:
            raise ValueError(f"no activation passed hook_name={hook_name!r}; this model has no such hook")
        spliced = _log_probs(lm, batch, where, hook_name, reconstruct)
        clean_sum += _cross_entropy(clean, right)
        sae_sum += _cross_entropy(spliced, right)
        kl += float((clean.exp() * (clean - spliced)).sum(-1).double().sum())
    zero_sum, mean_sum = _ablated(lm, tokens, hook_name, mean, contexts_per_batch, clean_sum)
    sums = {"clean": clean_sum, "sae": sae_sum, "zero": zero_sum, "mean": mean_sum, "kl": kl}
    return _scores({name: total / n_predictions for name, total in sums.items()}) | {
        "explained_variance_in_model": watch.explained_variance()
    }


# For each model: what was asked of it -> cross entropies (clean, zeroed, at the mean), summed over predictions.
_ABLATED: WeakKeyDictionary[Any, dict[tuple[Any, ...], tuple[float, float, float]]] = WeakKeyDictionary()


def _ablated(
    lm: Any, tokens: Tensor, hook_name: str, mean: Tensor, contexts_per_batch: int, clean: float
) -> tuple[float, float]:
    """Summed cross entropies with the activations zeroed and at their mean, which are the same for every SAE.

    They are remembered, two of four passes for all SAEs of a hook but the first, for as long as the model says the
    same of the clean text: other weights in the same object would not.
    """
    known = _ABLATED.setdefault(lm, {})
    key = (hook_name, contexts_per_batch, tuple(tokens.shape), fingerprint(tokens, mean))
    if key not in known or known[key][0] != clean:
        first, sums = first_position(lm), [0.0, 0.0]
        for batch in tokens.split(contexts_per_batch):
            where, right = asked(lm, batch)
            for i, function in enumerate((torch.zeros_like, lambda x: mean.to(x).expand_as(x))):
                log_probs = _log_probs(lm, batch, where, hook_name, _replace(function, first))
                sums[i] += _cross_entropy(log_probs, right)
        known[key] = (clean, *sums)
    return known[key][1:]


def _scores(means: dict[str, float]) -> dict[str, float]:
    result = {f"ce_{name}": means[name] for name in ("clean", "sae", "zero", "mean")}
    result["delta_ce"] = means["sae"] - means["clean"]
    result["kl"] = means["kl"]
    for ablation in ("zero", "mean"):
        harm = means[ablation] - means["clean"]
        score = (means[ablation] - means["sae"]) / harm if harm > 0 else math.nan
        result[f"ce_score_{ablation}"] = score
    return result


def _log_probs(lm: Any, tokens: Tensor, where: slice, hook_name: str, hook: Callable[..., Tensor | None]) -> Tensor:
    """(contexts, n, vocabulary) log-probabilities at the n positions of `where`, hook in place."""
    logits = lm.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(hook_name, hook)])
    return logits[:, where].float().log_softmax(-1)


def _cross_entropy(log_probs: Tensor, right: Tensor) -> float:
    """Sum over predictions of minus the log-probability of the token that is right."""
    return -float(log_probs.gather(-1, right[..., None].to(log_probs.device)).double().sum())


def _replace(function: Callable[[Tensor], Tensor], first: int) -> Callable[..., Tensor]:
    """A hook that puts `function` of the rows (n, d_in) in their place, from position `first` on."""

    def hook(activations: Tensor, hook: Any = None) -> Tensor:
        rows = activations[:, first:].flatten(0, 1).float()
        replaced = activations.clone()
        replaced[:, first:] = function(rows).view_as(activations[:, first:]).to(activations.dtype)
        return replaced

    return hook


class _Watch:
    """A hook that changes nothing and measures how well the SAE explains what passes, from position `first` on."""

    def __init__(self, sae: Any, first: int) -> None:
        self.sae = sae
        self.first = first
        self.seen = 0
        self.total: Tensor | float = 0.0
        self.square = 0.0
        self.error = 0.0

    def __call__(self, activations: Tensor, hook: Any = None) -> None:
        d_in = self.sae.W_dec.shape[1] if hasattr(self.sae, "W_dec") else activations.shape[-1]
        if activations.ndim != 3 or activations.shape[-1] != d_in:
            raise ValueError(
                f"activations at the hook are {tuple(activations.shape)}; the SAE reads (contexts, positions, {d_in})"
            )
        x = activations[:, self.first :].flatten(0, 1).float()
        self.error += float((x - self.sae.decode(self.sae.encode(x))).double().square().sum())
        self.total = self.total + x.double().sum(0)
        self.square += float(x.double().square().sum())
        self.seen += len(x)

    def explained_variance(self) -> float:
        variance = self.square / self.seen - float((self.total / self.seen).square().sum())
        return 1 - self.error / self.seen / variance if variance > 0 else math.nan
