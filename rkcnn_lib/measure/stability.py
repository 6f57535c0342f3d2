"""Do SAEs trained from different seeds find the same latents? And statistics of pairs: five seeds make ten pairs, but
only five independent runs.

Print each number beside `chance`: random unit dictionaries of 1024 latents in 128 dimensions score 0.27 (`pw_mcc`) and
0.30 (`pw_max_cosine`). Dictionaries are W_dec (d_sae, d) of each seed, two or more; `live` are boolean masks (d_sae,)
of the latents to count, all by default. ValueError for shapes or masks that do not fit, or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.causal import orthonormal_basis
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.tensors import as_matrix, bool_mask, check_widths, number, unit_rows

Matrix = Tensor | np.ndarray
VARIES = 1e-6  # of the largest variance: a direction with less counts as one that does not vary


def pw_mcc(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """Pairwise mean correlation of dictionaries: mean matched signed cosine, averaged over pairs of seeds, in [-1, 1].

    Live latents are assigned one to one (`match`), and the cosines averaged over the min(live_a, live_b) matches: an
    arm gains here by killing latents. 0 for a pair in which one seed has no live latent.
    """
    pairs = combinations(_live_rows(decoders, live), 2)
    return float(np.mean([match(a, b).cosines.mean() if len(a) and len(b) else 0.0 for a, b in pairs]))


def pw_max_cosine(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """The older PWMCC: mean over latents of the largest *absolute* cosine in the other seed, both ways round.

    Several latents may choose the same partner, so it is at least as large as `pw_mcc`. In [0, 1].
    """
    pairs = combinations(_live_rows(decoders, live), 2)
    cosines = ((a @ b.t()).abs_() if len(a) and len(b) else torch.zeros(1, 1) for a, b in pairs)
    return float(np.mean([float(c.amax(0).mean() + c.amax(1).mean()) / 2 for c in cosines]))


def whitening_of(covariance: Matrix, d: int) -> Tensor:
    """What whitens rows of activations with the covariance (d, d), from the right: (d, rank) float64.

    Where data fill few dimensions any two dictionaries made of them agree; of whitened rows chance is that of random
    directions. Dimensions with less than 1e-6 of the largest variance are left out: their noise would be all that
    counts. ValueError for a covariance that is not (d, d), symmetric and positive.
    """
    C = as_matrix(covariance, "covariance").cpu().double()
    if C.shape != (d, d) or not torch.allclose(C, C.T, atol=1e-6 * float(C.abs().max())):
        raise ValueError(f"covariance is {tuple(C.shape)}; a symmetric matrix of {d} rows is needed")
    values, vectors = torch.linalg.eigh(C)
    kept = values > VARIES * values[-1].clamp_min(0)
    if not kept.any():
        raise ValueError("covariance has no positive variance: nothing to whiten by")
    return vectors[:, kept] / values[kept].sqrt()


def shared_latents(saes: Sequence[Any], threshold: float = 0.7, live: Sequence[Matrix] | None = None) -> float:
    """Share of latents found again in another seed: encoder and decoder name the same partner, at `threshold`.

    Decoders are matched one to one, encoders separately; both must give a latent the same partner at a cosine of
    `threshold` (Paulo & Belrose 2025, arXiv:2501.16615). Averaged over pairs of seeds, as a share of d_sae (so dead
    latents count as not shared). `saes` have ``W_dec`` (d_sae, d) and ``W_enc`` (d, d_sae). Chance is
    ``chance("recovery_rate", ..., threshold=threshold)``: as if encoders were tied, the generous case.
    """
    number("threshold", threshold, "(0, 1]")
    decoders = _live_rows([sae.W_dec for sae in saes], live)
    encoders = _live_rows([sae.W_enc.T for sae in saes], live, "encoders")
    shared = [
        len(_partners(decoders[i], decoders[j], threshold) & _partners(encoders[i], encoders[j], threshold))
        for i, j in combinations(range(len(saes)), 2)
    ]
    return float(np.mean(np.array(shared) / len(saes[0].W_dec)))


def subspace_overlap(a: Matrix, b: Matrix) -> float:
    """Mean squared cosine of the principal angles between the spans of two sets of directions (r, d).

    1 when the smaller span lies within the larger, whatever the directions in it. Random spans of ranks r_a and r_b
    overlap by max(r_a, r_b) / d on average.
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
    masks = [bool_mask(f"live[{i}]", mask, (len(rows[0]),)) for i, mask in enumerate(live)]
    return [r[mask.cpu()] for r, mask in zip(rows, masks, strict=True)]


def _partners(a: Tensor, b: Tensor, threshold: float) -> set[tuple[int, int]]:
    """Pairs (row of a, row of b) that are matched at a cosine of `threshold` or more."""
    return {(i, j) for i, j, cosine in zip(*match(a, b), strict=True) if cosine >= threshold}


def jackknife_pairs(matrix: np.ndarray) -> np.ndarray:
    """Turn a statistic of pairs of seeds into one value a seed, so that shared seeds are not taken as new data.

    The mean U over all pairs is a U-statistic of degree two. Its jackknife pseudo-values ``n U - (n - 1)
    U_without_seed`` have mean U, and their spread gives its standard error (Arvesen 1969, "Jackknifing U-statistics",
    Annals of Mathematical Statistics 40:2076-2100). `matrix` (n, n), symmetric, of three seeds or more: entry (i, j) is
    the statistic of seeds i and j; the diagonal is not read.
    """
    h = _without_diagonal(matrix)
    n, total = len(h), h.sum() / 2
    overall = total / (n * (n - 1) / 2)
    without = (total - h.sum(1)) / ((n - 1) * (n - 2) / 2)
    return n * overall - (n - 1) * without


def bootstrap_pairs(matrix: np.ndarray, n_draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval (low, high) of the mean over pairs, resampling seeds, not pairs; `matrix` as above.

    Every draw takes n seeds with replacement and averages over pairs of *different* seeds among them. With few seeds
    the interval is too short (at five it holds the truth in about three of four cases): it shows how much hangs on
    single seeds; verdicts rest on `jackknife_pairs`.
    """
    h, rng = _without_diagonal(matrix), np.random.default_rng(0)
    counts = rng.multinomial(len(h), np.full(len(h), 1 / len(h)), size=n_draws).astype(float)
    weights = np.square(counts.sum(1)) - np.square(counts).sum(1)  # ordered pairs of different seeds in a draw
    drawn = np.einsum("bi,ij,bj->b", counts, h, counts)[weights > 0] / weights[weights > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    h = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(h, 0.0)
    return h
