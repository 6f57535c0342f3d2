"""What an intervention did, one value a pair, the verdict on a subspace, and which latents an answer hangs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rkcnn_lib.measure.causal import PromptPairs, edited_logits, token_set_logits
from rkcnn_lib.measure.statistics import MeanInterval

PROPORTIONS = ("top1", "interchanged")  # effects of which a mean over pairs is a share of them
CAUSAL, PREDICTIVE_ONLY, INCONCLUSIVE = "causal", "predictive only", "inconclusive"


def effects(clean: Tensor, patched: Tensor, pairs: PromptPairs) -> dict[str, Tensor]:
    """Return what an intervention did, one value (n,) a pair.

    ``logit_difference``: answer minus foil, in logits. ``loss``: minus the log-probability of the answer, in nats.
    ``kl``: KL(clean || patched) of the next-token distributions, in nats, >= 0. ``top1``: 1 where the answer is
    the most likely token. ``interchanged``: 1 where the donor's answer is (interchange accuracy, Geiger et al.
    2021, is its mean).
    """
    answer, foil = pairs.answer.to(patched.device), pairs.foil.to(patched.device)
    log_p, log_q = clean.double().log_softmax(-1), patched.double().log_softmax(-1)
    best = patched.argmax(-1, keepdim=True)
    return {
        "logit_difference": token_set_logits(patched, answer) - token_set_logits(patched, foil),
        "loss": -token_set_logits(log_q, answer).float(),
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0).float(),
        "top1": (best == answer).any(1).float(),
        "interchanged": (best == foil).any(1).float(),
    }


def recovered_share(value: float, empty: float, whole: float) -> float:
    """Say where ``value`` lies between the empty subspace (0) and the whole one (1); ValueError if these coincide."""
    if whole == empty:
        raise ValueError("keeping everything and keeping nothing give the same value: nothing to share out")
    return (value - empty) / (whole - empty)


def fractional_decrease(clean: Tensor, patched: Tensor) -> float:
    """Return the fractional logit-difference decrease, ``1 - mean(patched) / mean(clean)`` of differences (n,).

    0: no effect; 1: answer and foil level; 2: turned round (Makelov, Lange & Nanda 2023).
    """
    return 1 - float(patched.mean()) / float(clean.mean())


def interchange_shares(clean: Tensor, patched: Tensor, full: Tensor) -> Tensor:
    """Return for each pair its drop in logit difference as a share of the mean drop that ``full`` makes, all (n,).

    ``full`` is the interchange of the whole activation: the mean over pairs is 1 where A does what that does.
    """
    drop = float((clean - full).mean())
    if drop <= 0:
        raise ValueError("exchanging the whole activation does not lower the logit difference: nothing to share out")
    return (clean - patched) / drop


def scrubbed_loss_recovered(random: Tensor, scrubbed: Tensor, model: Tensor) -> dict[str, float]:
    """Return the loss recovered by a scrubbed model, and its per-example version; losses (n,) in nats.

    ``mean``: ``(L_rand - L_scrub) / (L_rand - L_model)`` of mean losses (Chan et al. 2022, "Causal scrubbing"): 1 if
    the hypothesis keeps all of the loss, 0 if as little as resampling everything. ``per_example``: 1 minus the mean
    absolute deviation of the scrubbed losses from the model's, over that of the resampled ones: lower where what
    became worse and what became better cancel in the mean.
    """
    mean = recovered_share(*(float(losses.mean()) for losses in (scrubbed, random, model)))
    deviation, of_random = (float((losses - model).abs().mean()) for losses in (scrubbed, random))
    return {"mean": mean, "per_example": 1 - deviation / of_random}


def entity_interval(values: Any, base: Sequence[str], donor: Sequence[str], level: float = 0.95) -> MeanInterval:
    """Return the mean of one value a pair (n,) with an interval over *entities*.

    Pairs that share a base or donor entity are not independent: the standard error is the delete-one-entity jackknife's
    (each entity left out with all its pairs, as base and as donor), t-distributed with entities - 1 degrees of freedom.
    Fewer than three entities give an infinite interval.
    """
    mean, error, n = _jackknife(values, base, donor)
    if n < 3:
        return MeanInterval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return MeanInterval(mean, mean - half, mean + half)


def entity_proportion(values: Any, base: Sequence[str], donor: Sequence[str], level: float = 0.95) -> MeanInterval:
    """As `entity_interval`, for values in [0, 1] whose mean is a proportion: the interval stays in [0, 1].

    Clopper and Pearson's, for as many independent trials as the jackknife's standard error says the pairs are worth
    (Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts",
    *Survey Methodology* 24). Where all pairs agree that error is 0 and says nothing: they are then worth as many
    trials as there are entities, so that 100 % of few entities is not certainty; and no interval is surer of either
    end than that one, or a single wrong pair would make it so. Fewer than three entities: [0, 1].
    """
    mean, error, n = _jackknife(values, base, donor)
    if n < 3:
        return MeanInterval(mean, 0.0, 1.0)
    tail = (1 - level) / 2
    allowance = (stats.norm.isf(tail) / stats.t.isf(tail, n - 1)) ** 2
    entities = allowance * min(n, len(values))
    known = error > 1e-9  # a balanced design may leave a rest of rounding
    trials = allowance * min(len(values), mean * (1 - mean) / error**2) if known else entities
    surest = float(stats.beta.ppf(tail, entities, 1))  # the lower end where every pair is right
    right, wrong = mean * trials, (1 - mean) * trials
    low = min(surest, float(stats.beta.ppf(tail, right, wrong + 1))) if mean > 0 else 0.0
    high = max(1 - surest, float(stats.beta.isf(tail, right + 1, wrong))) if mean < 1 else 1.0
    return MeanInterval(mean, low, high)


def _jackknife(values: Any, base: Sequence[str], donor: Sequence[str]) -> tuple[float, float, int]:
    """Return the mean, its delete-one-entity standard error (0 below two entities), and the number of entities."""
    values = torch.as_tensor(values).cpu().double().numpy()
    both = np.array([base, donor])
    kept = [(both != name).all(0) for name in np.unique(both)]
    without = np.array([values[others].mean() for others in kept if others.any()])
    n = len(without)
    error = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum()) if n > 1 else 0.0
    return float(values.mean()), error, n


class SubspaceVerdict(NamedTuple):
    """One subspace judged."""

    effect: MeanInterval
    advantage: MeanInterval  # above its strongest control
    predictive: MeanInterval  # its accuracy as a predictor
    verdict: str


def subspace_verdict(
    share: Tensor,
    controls: Sequence[Tensor],
    predicted: Tensor | np.ndarray,
    base: Sequence[str],
    donor: Sequence[str],
    delta_share: float,
    delta_predict: float,
    n_judged: int = 1,
) -> SubspaceVerdict:
    """Judge whether the model uses a subspace, or whether it only predicts.

    *Causal*: the interval of its interchange share minus that of the strongest control lies wholly above
    ``delta_share``. *Predictive only*: the interval of its share itself lies wholly below that margin although A
    tells answers apart, its accuracy lying wholly above 0.5 + ``delta_predict``. *Inconclusive*: anything else, so also
    an effect no larger than a random subspace's of its variance. Intervals are over entities at Bonferroni's level of
    95 % for ``n_judged`` subspaces, ranks and kinds counted.

    `share` (n,) are A's `interchange_shares`, `controls` the same of random subspaces of equal rank, and of equal rank
    and variance: the strongest, by mean, counts. `predicted` (n,) is what `tells_apart` says of A's coordinates (chance
    is 0.5); `base`, `donor` name the entities of each pair.
    """
    level = 1 - (1 - 0.95) / n_judged
    strongest = max(controls, key=lambda values: float(values.mean()))
    effect, advantage = (entity_interval(values, base, donor, level) for values in (share, share - strongest))
    predictive = entity_proportion(predicted, base, donor, level)
    if advantage.low > delta_share:
        verdict = CAUSAL
    elif effect.high < delta_share and predictive.low > 0.5 + delta_predict:
        verdict = PREDICTIVE_ONLY
    else:
        verdict = INCONCLUSIVE
    return SubspaceVerdict(effect, advantage, predictive, verdict)


def tells_apart(
    coordinates: Tensor, answers: Sequence[str], train: Tensor, labels: Sequence[str], foils: Sequence[str]
) -> np.ndarray:
    """Say for each pair whether A's coordinates (n, r) are nearer to the answer's class mean than to the foil's.

    Class means come from the coordinates `train` (m, r) of other prompts with their `labels` (m,). Returns (n,): 1, 0,
    or 0.5 where a class was never seen in training: there A can tell nothing.
    """
    scale, of = train.std(0, correction=0).clamp_min(1e-12), np.asarray(labels)
    means = {label: train[torch.as_tensor(of == label)].mean(0) / scale for label in np.unique(of)}
    nearer = []
    for x, answer, foil in zip(coordinates / scale, answers, foils, strict=True):
        known = answer in means and foil in means
        right, wrong = (float((x - means[name]).square().sum()) if known else 0.0 for name in (answer, foil))
        nearer.append((1 + np.sign(wrong - right)) / 2)
    return np.array(nearer)


def latent_attribution(lm: Any, pairs: PromptPairs, hook_name: str, sae: Any) -> Tensor:
    """Return the mean |activation x gradient| (d_sae,) of each latent over base prompts, in logits.

    The gradient is that of the logit difference (answer minus foil) along the latent's decoder row; times its
    activation it estimates what the difference loses when the latent is zeroed (Syed, Rager & Conmy 2023,
    arXiv:2310.10348). A prompt's positions are added, and absolute values averaged: a latent may speak against an
    answer.
    """
    seen: list[Tensor] = []

    def watch(clean: Tensor, part: slice) -> Tensor:
        seen.append(clean.detach().requires_grad_())
        return seen[-1]

    logits = edited_logits(lm, pairs, hook_name, watch)
    difference = token_set_logits(logits, pairs.answer) - token_set_logits(logits, pairs.foil)
    slopes = torch.cat(torch.autograd.grad(difference.sum(), seen))  # (n, k, d)
    x = torch.cat(seen).detach()
    with torch.no_grad():
        codes = sae.encode(x.flatten(0, 1).to(sae.W_dec)).unflatten(0, x.shape[:2])
        return (codes * (slopes.to(codes) @ sae.W_dec.T)).sum(1).abs().mean(0).cpu()
