"""Do SAEs trained from different seeds find the same latents? And statistics of pairs: five seeds make ten pairs, but
only five independent runs.

Print each number beside its chance level, ``chance(lambda a, b: pw_mcc([a, b]), n, n, d)``: random unit
dictionaries of 1024 latents in 128 dimensions score 0.27 (`pw_mcc`) and 0.30 (`pw_max_cosine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.recovery import match
from rkcnn_lib.measure.subspaces import orthonormal_basis
from rkcnn_lib.tensors import as_matrix, bool_mask, check_widths, number, unit_rows, whole

Matrix = Tensor | np.ndarray
VARIES = 1e-6  # of the largest variance: a direction with less counts as one that does not vary


def pw_mcc(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """Pairwise mean correlation of dictionaries: mean matched signed cosine, averaged over pairs of seeds, in [-1, 1].

    Live latents of two seeds are assigned one to one so that the sum of signed cosines is greatest (`match`), and the
    cosines averaged over the min(live_a, live_b) matches. An arm gains here by killing latents: see `pw_mcc_total`.

    `decoders` are W_dec (d_sae, d) of each seed, two or more; `live` boolean masks (d_sae,) of the latents to count,
    all by default. 0 for a pair in which one seed has no live latent. ValueError for shapes or masks that do not fit,
    or NaN.
    """
    return _agreement(_live_rows(decoders, live), len(decoders[0]))[0]


def pw_mcc_total(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """As `pw_mcc`, but the sum of matched cosines divided by d_sae: a dead latent counts as agreement 0."""
    return _agreement(_live_rows(decoders, live), len(decoders[0]))[1]


def pw_max_cosine(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """The older PWMCC: mean over latents of the largest *absolute* cosine in the other seed, both ways round.

    Several latents may choose the same partner, so it is at least as large as `pw_mcc`. In [0, 1].
    """

    pairs = combinations(_live_rows(decoders, live), 2)
    cosines = ((a @ b.t()).abs_() if len(a) and len(b) else torch.zeros(1, 1) for a, b in pairs)
    return float(np.mean([float(c.amax(0).mean() + c.amax(1).mean()) / 2 for c in cosines]))


def whitening_of(covariance: Matrix, d: int) -> Tensor:
    """What whitens rows of activations with the covariance (d, d), from the right: (d, rank) float64.

    Where data fill few dimensions any two dictionaries made of them agree: once their rows are whitened that is gone,
    and chance is that of random directions. Dimensions with less than 1e-6 of the largest variance are left out, since
    their noise would be all that counts. ValueError for a covariance that is not (d, d), symmetric and positive.
    """
    C = as_matrix(covariance, "covariance").cpu().double()
    if C.shape != (d, d) or not torch.allclose(C, C.T, atol=1e-6 * float(C.abs().max())):
        raise ValueError(f"covariance is {tuple(C.shape)}; a symmetric matrix of {d} rows is needed")
    values, vectors = torch.linalg.eigh(C)
    kept = values > VARIES * values[-1].clamp_min(0)
    if not kept.any():
        raise ValueError("covariance has no positive variance: nothing to whiten by")
    return vectors[:, kept] / values[kept].sqrt()


def _agreement(rows: list[Tensor], d_sae: int) -> tuple[float, float]:
    """`pw_mcc` and `pw_mcc_total` of unit rows, each pair of seeds matched once."""
    cosines = [match(a, b).cosines if len(a) and len(b) else np.zeros(1) for a, b in combinations(rows, 2)]
    return float(np.mean([c.mean() for c in cosines])), float(np.mean([c.sum() / d_sae for c in cosines]))


def shared_latents(saes: Sequence[Any], threshold: float = 0.7, live: Sequence[Matrix] | None = None) -> float:
    """Share of latents found again in another seed: encoder and decoder name the same partner, at `threshold`.

    Decoders are matched one to one, encoders separately; a latent is shared when both matches give it the same partner
    and both cosines reach `threshold` (Paulo & Belrose 2025, arXiv:2501.16615). Averaged over pairs of seeds, as a
    share of d_sae (so dead latents count as not shared). `saes` are any two or more objects with ``W_dec`` (d_sae, d)
    and ``W_enc`` (d, d_sae). Chance is ``chance("recovery_rate", ..., threshold=threshold)``: as if encoders were tied,
    the generous case, in which both always name the same partner.
    """
    number("threshold", threshold, "(0, 1]")
    decoders = _live_rows([sae.W_dec for sae in saes], live)
    encoders = _live_rows([sae.W_enc.T for sae in saes], live, "encoders")
    shares = []
    for i, j in combinations(range(len(saes)), 2):
        named = [_partners(rows[i], rows[j], threshold) for rows in (decoders, encoders)]
        shares.append(((named[0] == named[1]) & (named[0] >= 0)).sum() / saes[0].W_dec.shape[0])
    return float(np.mean(shares))


def subspace_overlap(a: Matrix, b: Matrix) -> float:
    """Mean squared cosine of the principal angles between the spans of two sets of directions (r, d).

    1 when the smaller span lies within the larger, whatever the directions in it: two dictionaries may share a space
    and no latent. Random spans of ranks r_a and r_b overlap by max(r_a, r_b) / d on average.
    """
    units = unit_rows(a, "a", least=1), unit_rows(b, "b", least=1)
    check_widths(*units, ("a", "b"))
    bases = [orthonormal_basis(unit) for unit in units]
    return float((bases[0].t() @ bases[1]).square().sum()) / min(basis.shape[1] for basis in bases)


def _live_rows(dictionaries: Sequence[Matrix], live: Sequence[Matrix] | None, name: str = "decoders") -> list[Tensor]:
    """Unit rows (n_live, d) of each dictionary, on the processor."""
    if len(dictionaries) < 2:
        raise ValueError(f"{name} holds {len(dictionaries)}; agreement needs at least two seeds")
    rows = [unit_rows(dictionary, f"{name}[{i}]", least=1).float() for i, dictionary in enumerate(dictionaries)]
    if len({tuple(r.shape) for r in rows}) > 1:
        raise ValueError(f"{name} differ in shape: {sorted({tuple(r.shape) for r in rows})}")
    if live is None:
        return rows
    if len(live) != len(rows):
        raise ValueError(f"live holds {len(live)} masks for {len(rows)} dictionaries; give each its own")
    masks = [bool_mask(f"live[{i}]", mask, (len(rows[0]),)) for i, mask in enumerate(live)]
    return [r[mask.cpu()] for r, mask in zip(rows, masks, strict=True)]


def _partners(a: Tensor, b: Tensor, threshold: float) -> np.ndarray:
    """(n_a,) the row of b matched to each row of a, -1 where there is none or the cosine is below `threshold`."""
    partner = np.full(len(a), -1)
    if len(a) and len(b):
        matching = match(a, b)
        near = matching.cosines >= threshold
        partner[matching.rows[near]] = matching.columns[near]
    return partner


def jackknife_pairs(matrix: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Turn a statistic of pairs of seeds into one value a seed, so that shared seeds are not taken as new data.

    The mean U over all pairs (PW-MCC, say) is a U-statistic of degree two. Its jackknife pseudo-values ``n U - (n - 1)
    U_without_seed`` have mean U, and their spread gives its standard error (Arvesen 1969, "Jackknifing U-statistics",
    Annals of Mathematical Statistics 40:2076-2100); paired by seed they go into
    `rkcnn_lib.measure.statistics.verdict_table`.

    `matrix` (n, n): entry (i, j) is the statistic of seeds i and j; the diagonal is not read. ValueError for fewer than
    three seeds, or a matrix that is not square, symmetric and finite.
    """
    h = _pairs(matrix)
    n, total = len(h), h.sum() / 2
    overall = total / (n * (n - 1) / 2)
    without = (total - h.sum(1)) / ((n - 1) * (n - 2) / 2)
    return n * overall - (n - 1) * without


def bootstrap_pairs(
    matrix: Sequence[Sequence[float]] | np.ndarray,
    level: float = 0.95,
    n_draws: int = 2000,
    random_state: int = 0,
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean over pairs, resampling seeds, not pairs; `matrix` as above.

    Every draw takes n seeds with replacement and averages over pairs of *different* seeds among them: a seed drawn
    twice agrees with itself perfectly and would pull the mean up. With few seeds the interval is too short (at five it
    holds the truth in about three of four cases): it shows how much hangs on single seeds; verdicts rest on
    `jackknife_pairs`.
    """
    h = _pairs(matrix)
    number("level", level, "(0, 1)")
    n_draws = whole("n_draws", n_draws)
    rng = np.random.default_rng(whole("random_state", random_state, 0))
    counts = rng.multinomial(len(h), np.full(len(h), 1 / len(h)), size=n_draws).astype(float)
    weights = np.square(counts.sum(1)) - np.square(counts).sum(1)  # ordered pairs of different seeds in a draw
    drawn = np.einsum("bi,ij,bj->b", counts, h, counts)[weights > 0] / weights[weights > 0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _pairs(matrix: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """The matrix, checked, with an empty diagonal."""
    h = np.asarray(matrix, dtype=np.float64).copy()
    if h.ndim != 2 or h.shape[0] != h.shape[1] or len(h) < 3:
        raise ValueError(f"pairs of at least three seeds are needed as an (n, n) matrix, got shape {h.shape}")
    np.fill_diagonal(h, 0.0)
    if not np.isfinite(h).all() or not np.allclose(h, h.T):
        raise ValueError("the matrix of pairs must be finite and symmetric")
    return h
