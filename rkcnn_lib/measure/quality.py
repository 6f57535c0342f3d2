"""How good a sparse autoencoder is: sparsity, dead latents, explained variance, and what splicing it costs.

Everything streams in float64 over held-out rows, x and x_hat from the same rows. And how much variance a frozen
dictionary explains, before any training.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rkcnn_lib.measure.causal import run_edited
from rkcnn_lib.tensors import as_matrix, bool_mask, check_widths, exponent, fingerprint, unit_rows
from rkcnn_lib.tokens import Asked, asked, rows_that_count, to_model

DENSE = 0.1  # a latent that fires on a larger share of tokens is dense
ROWS_AT_ONCE = 1024
PURSUED_AT_ONCE = 512  # rows, each with a basis of its own


def explained_variance(X: Any, X_hat: Any) -> float:
    """``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)`` for rows X and reconstructions X_hat, both (n, d).

    At most 1; 0 for the mean as reconstruction, below for worse. ValueError where X does not vary.
    """
    X, X_hat = as_matrix(X), as_matrix(X_hat, "X_hat")
    if X.shape != X_hat.shape:
        raise ValueError(f"X is {tuple(X.shape)}, X_hat {tuple(X_hat.shape)}: not the same rows in the same order")
    moments, unit = Moments(), 2.0 ** exponent(X, X_hat)  # squares of 1e300 are no numbers
    moments.add(X.double() / unit, X_hat.double() / unit)
    return moments.explained_variance()


class Moments:
    """Sums over rows x and their reconstructions x_hat seen so far, in float64."""

    def __init__(self) -> None:
        self.n = 0
        nothing = torch.zeros((), dtype=torch.float64)
        self.total = self.square = self.error = nothing  # (d,) sums of x, x^2 and (x - x_hat)^2
        self.lengths = nothing  # (4,) sums of ||x||, ||x_hat||, ||x_hat||^2 and x . x_hat

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows (n, d) and what they were reconstructed as; ValueError for NaN and infinities."""
        x, x_hat = x.double(), x_hat.double()
        error = (x - x_hat).square().sum(0)
        if not (torch.isfinite(x).all() and torch.isfinite(error).all()):
            raise ValueError("NaN or infinite values in the held-out rows or in their reconstruction")
        norms_hat = x_hat.norm(dim=1)
        lengths = [x.norm(dim=1).sum(), norms_hat.sum(), norms_hat.square().sum(), (x * x_hat).sum()]
        self.n += len(x)
        self.total = self.total + x.sum(0)
        self.square = self.square + x.square().sum(0)
        self.error = self.error + error
        self.lengths = self.lengths + torch.stack(lengths)

    def mean(self) -> Tensor:
        return self.total / self.n

    def explained_variance(self) -> float:
        """``1 - E||x - x_hat||^2 / (E||x||^2 - ||E x||^2)``; ValueError where x does not vary."""
        variance = (self.square / self.n - self.mean().square()).sum()
        if not variance > 1e-12 * self.square.sum() / self.n:
            raise ValueError("the held-out rows do not vary; there is no variance to explain")
        return float(1 - (self.error / self.n).sum() / variance)

    def explained_variance_standardised(self) -> float:
        """Mean over the dimensions that vary of each one's own explained variance."""
        variance = self.square / self.n - self.mean().square()
        varies = variance > 1e-12 * self.square / self.n
        return float(1 - (self.error[varies] / self.n / variance[varies]).mean())

    def l2_ratio(self) -> float:
        """``E||x_hat|| / E||x||``: below 1 where a reconstruction shrinks."""
        return float(self.lengths[1] / self.lengths[0])

    def relative_reconstruction_bias(self) -> float:
        """``argmin_g E||x_hat / g - x||^2 = E||x_hat||^2 / E[x_hat . x]``, NaN for reconstructions orthogonal to x.

        1 without shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014).
        """
        return float(self.lengths[2] / self.lengths[3]) if self.lengths[3] != 0 else math.nan


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
    """Measure a sparse autoencoder on held-out rows ``X`` (n, d_in) and, given the model, inside it.

    ``sae`` is an SAE, or any object with ``encode`` (n, d_in) to (n, d_sae) and ``decode`` back, in raw units. Returns
    n_tokens; l0 (mean active latents a token); live (latents that fire at all, a count); dead (share of latents that
    never fire on these rows: look at 100k or more); density ((d_sae,) float64 tensor, share of tokens on which each
    latent fires); dense (share of latents whose density is above 0.1); explained_variance,
    explained_variance_standardised, l2_ratio and relative_reconstruction_bias as `Moments` defines them.

    ``lm``, a TransformerBridge, is run on held-out contexts ``tokens`` (n_contexts, context_size), two tokens or more
    each, with the SAE's reconstruction in the place of what passes ``hook_name``, such as "blocks.6.hook_mlp_out";
    devices may differ. ``mask`` (n_contexts, context_size) bool are the rows that SAEs are trained on (a store's
    ``context_mask``): the others are left as they are and are no targets. None: all but position 0 and the special
    tokens of the model's tokenizer. Then also, in nats: ce_clean, ce_sae, ce_zero, ce_mean (activations replaced by 0,
    by the mean of X), delta_ce = ce_sae - ce_clean, kl = mean KL(clean || spliced); the scores ce_score_zero,
    ce_score_mean = (ce_ablated - ce_sae) / (ce_ablated - ce_clean), NaN where the ablation does no harm; ce_by_context,
    the (n_contexts,) float64 tensor of each context's own mean ce_sae, NaN where none counts; and
    explained_variance_in_model, measured on what passes the hook: far from explained_variance when X comes from
    another place than ``hook_name``.

    ValueError for no rows, NaN, rows of another width than the SAE's, ``lm`` without tokens, an unknown hook.
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

    A model with a task of its own says where it is asked what (see `rkcnn_lib.tokens.asked`). See `quality` for the
    arguments and the keys of the answer.
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


# ---------------------------------------------------------------- before training


@torch.no_grad()
def frozen_dictionary_ev(X: Any, D: Any, ks: Sequence[int] = (8, 16, 32)) -> dict[int, float]:
    """Explained variance {k: share} of X (n, d) coded with k directions a row of D (r, d), signed, made unit length.

    Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993), one-sided: each step picks, for each row less
    the mean, the direction with the largest *positive* inner product with the residual and refits all coefficients by
    least squares; a row stops when no inner product is positive. ValueError for mismatched widths, NaN, a zero
    direction or X without variance.
    """
    X, D = as_matrix(X), unit_rows(D, "D", least=1).float()
    check_widths(X, D, ("X", "D"))
    D, unit = D.to(X.device), 2.0 ** exponent(X)
    X = (X.double() / unit).float()
    centre = X.double().mean(0)
    total = float((X.double() - centre).square().sum())
    if total == 0:
        raise ValueError("X does not vary; there is no variance to explain")
    steps = {k: min(k, len(D)) for k in ks}  # then all are picked
    left = dict.fromkeys(steps.values(), 0.0)
    for x in X.split(PURSUED_AT_ONCE):
        for k, residual in _pursue(x - centre.float(), D, max(left)):
            if k in left:
                left[k] += float(residual.double().square().sum())
    return {k: 1 - left[steps[k]] / total for k in ks}


def _pursue(residual: Tensor, D: Tensor, k_max: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (k, residual (n, d)) after each of k_max steps of matching pursuit with orthonormal bases.

    A new direction is orthogonalised against those picked, which equals the refit.
    """
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
