"""How good a sparse autoencoder is: sparsity, dead latents, explained variance, and what splicing it costs.

Everything streams in float64 over held-out rows, x and x_hat from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.causal import run_edited
from rkcnn_lib.measure.variance import Moments
from rkcnn_lib.protocols import Asked, asked, rows_that_count, to_model
from rkcnn_lib.tensors import as_matrix, bool_mask, fingerprint, whole

N_CURVE_POINTS = 50
DENSE = 0.1  # a latent that fires on a larger share of tokens is dense


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
        after so many tokens); density ((d_sae,) float64 tensor, share of tokens on which each latent fires); dense
        (share of latents whose density is above 0.1); explained_variance
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
    stream = _Stream()
    for x in _batches(X, batch_size, split):
        stream.read(sae, x)
    result = stream.compute()
    if tokens is not None and hook_name is not None:
        result |= splice_losses(sae, lm, tokens, hook_name, stream.mean(), mask, contexts_per_batch)
    return result


class _Stream(Moments):
    """Moments of the rows seen so far and of what an SAE makes of them, and which latents fired."""

    def __init__(self) -> None:
        super().__init__()
        self.fired = torch.zeros(0)  # (d_sae,) tokens on which a latent fired
        self.first = torch.zeros(0)  # (d_sae,) number of the first such token, counted from 1; inf: none

    @torch.no_grad()
    def read(self, sae: Any, x: Tensor) -> None:
        d_in = sae.W_dec.shape[1] if hasattr(sae, "W_dec") else None
        if x.ndim != 2 or (d_in is not None and x.shape[1] != d_in):
            raise ValueError(f"held-out rows have shape {tuple(x.shape)}; the SAE reads (n, {d_in or 'd_in'})")
        if hasattr(sae, "W_dec"):
            x = x.to(sae.W_dec.device)
        x_hat, tokens, latents, d_sae = _reconstruct(sae, x.float())
        if not len(self.fired):
            self.fired = torch.zeros(d_sae, dtype=torch.int64, device=x_hat.device)
            self.first = torch.full((d_sae,), math.inf, dtype=torch.float64, device=x_hat.device)
        self.fired += torch.bincount(latents, minlength=d_sae)
        self.first.scatter_reduce_(0, latents, (self.n + 1 + tokens).double(), "amin")
        self.add(x, x_hat)

    def compute(self) -> dict[str, Any]:
        self.check_seen()
        counts = np.unique(np.geomspace(1, self.n, N_CURVE_POINTS).round().astype(int))
        density = (self.fired.double() / self.n).cpu()
        return {
            "n_tokens": self.n,
            "l0": float(self.fired.sum() / self.n),
            "live": int((self.fired > 0).sum()),
            "dead": float((self.fired == 0).double().mean()),
            "dead_curve": {
                "tokens": counts.tolist(),
                "dead": [float((self.first > count).double().mean()) for count in counts],
            },
            "density": density,
            "dense": float((density > DENSE).double().mean()),
            "explained_variance": self.explained_variance(),
            "explained_variance_standardised": self.explained_variance_standardised(),
            "l2_ratio": self.l2_ratio(),
            "relative_reconstruction_bias": self.relative_reconstruction_bias(),
        }


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
    elif isinstance(X, Iterable):
        yield from (as_matrix(batch, "a batch of X") for batch in X)
    else:
        raise ValueError(f"X is a {type(X).__name__}; give a tensor (n, d_in), batches, or an activation store")


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
    rows count. A model with a task of its own says where it is asked what (see `rkcnn_lib.protocols.asked`). See
    `quality` for the arguments and the keys of the answer; `mean` is (d_in,).
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
