"""How good a sparse autoencoder is: sparsity, dead latents, explained variance, and what splicing it costs.

Everything streams in float64 over held-out rows, x and x_hat from the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.splice import splice_losses
from rkcnn_lib.measure.variance import Moments
from rkcnn_lib.tensors import as_matrix, number, whole

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
    if lm is not None:
        result |= splice_losses(sae, lm, tokens, hook_name, stream.mean(), mask, contexts_per_batch)
    return result


class _Stream(Moments):
    """Moments of the rows seen so far and of what an SAE makes of them, and which latents fired."""

    def __init__(self) -> None:
        super().__init__()
        self.fired: Tensor | None = None  # (d_sae,) tokens on which a latent fired
        self.first: Tensor | None = None  # (d_sae,) number of the first such token, counted from 1; inf: none

    @torch.no_grad()
    def read(self, sae: Any, x: Tensor) -> None:
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


class TokensToQuality(NamedTuple):
    """Tokens at which an arm reaches what random starts reach at full budget, as a share of that budget."""

    ratio: float
    """Below 1: the arm is cheaper. Where ``bound`` is not "=" this is the limit to which the budgets tell."""
    bound: str
    """"=" between two budgets; "<=" already reached at the smallest one; ">" not reached at the largest."""


def tokens_to_quality(
    curve_arm: Mapping[int, float],
    curve_random: Mapping[int, float],
    *,
    mining_tokens: float = 0.0,
    lower_is_better: bool = False,
) -> TokensToQuality:
    """Compare how many tokens an arm needs for the quality that the random arm has at full budget.

    ``curve_arm`` and ``curve_random`` are {tokens: value}: separate runs at 1/8, 1/4, 1/2 and 1 of the budget, each
    with a learning rate that decays to its own end; an intermediate value of one long run, whose rate is still high,
    would not do. Between the first budget that reaches the value and the one before, the value is taken as linear in
    the logarithm of tokens; beyond the budgets nothing is extrapolated. ``mining_tokens`` is what mining cost, its
    seconds times the tokens that training sees in a second, and is added to the arm's. ValueError for fewer than two
    budgets, arms of different full budgets, or values that are not finite.
    """
    if len(curve_arm) < 2 or min([*curve_arm, *curve_random], default=0) <= 0:
        raise ValueError(f"at least two budgets above 0 are needed, got {sorted(curve_arm)} and {sorted(curve_random)}")
    full = max(curve_random)
    if max(curve_arm) != full:
        raise ValueError(f"the full budgets differ: {max(curve_arm)} tokens against {full}")
    number("mining_tokens", mining_tokens, "[0, inf)")
    sign, budgets = (-1 if lower_is_better else 1), sorted(curve_arm)
    if not all(map(math.isfinite, [*curve_arm.values(), *curve_random.values()])):
        raise ValueError("all values of both curves must be finite")
    short = [sign * (curve_random[full] - curve_arm[budget]) for budget in budgets]  # of the value; reached at 0
    first = next((i for i, by in enumerate(short) if by <= 0), None)
    if first is None:
        tokens, bound = float(full), ">"
    elif first == 0:
        tokens, bound = float(budgets[0]), "<="
    else:
        before, after = short[first - 1], short[first]
        part = before / (before - after)
        tokens, bound = budgets[first - 1] * (budgets[first] / budgets[first - 1]) ** part, "="
    return TokensToQuality((tokens + mining_tokens) / full, bound)
