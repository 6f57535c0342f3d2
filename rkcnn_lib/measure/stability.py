"""Do SAEs trained from different seeds find the same latents?

Print each number beside its chance level, ``chance(lambda a, b: pw_mcc([a, b]), n, n, d)``: random unit
dictionaries of 1024 latents in 128 dimensions score 0.27 (`pw_mcc`) and 0.30 (`pw_max_cosine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rkcnn_lib.measure.matching import match
from rkcnn_lib.measure.recovery import Chance, chance
from rkcnn_lib.measure.subspaces import orthonormal_basis
from rkcnn_lib.tensors import bool_mask, check_widths, number, unit_rows

Matrix = Tensor | np.ndarray


def pw_mcc(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """Pairwise mean correlation of dictionaries: mean matched signed cosine, averaged over pairs of seeds.

    Live latents of two seeds are assigned one to one so that the sum of signed cosines is greatest (`match`), and
    the cosines averaged over the min(live_a, live_b) matches. An arm gains here by killing latents: see `pw_mcc_total`.

    Parameters
    ----------
    decoders : sequence of (d_sae, d)
        W_dec of each seed, two or more.
    live : sequence of (d_sae,) bool, optional
        Which latents to count; all by default. Masks only: numbers could be indices or zeros and ones.

    Returns
    -------
    float in [-1, 1]
        0 for a pair in which one seed has no live latent.

    Raises
    ------
    ValueError
        On fewer than two decoders, shapes that differ, a mask that does not fit, or NaN.
    """
    return _mean_over_pairs(_live_rows(decoders, live), lambda a, b: _mean(_cosines(a, b)))


def pw_mcc_total(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """As `pw_mcc`, but the sum of matched cosines divided by d_sae: a dead latent counts as agreement 0."""
    rows = _live_rows(decoders, live)
    d_sae = len(decoders[0])
    return _mean_over_pairs(rows, lambda a, b: float(_cosines(a, b).sum()) / d_sae)


def pw_max_cosine(decoders: Sequence[Matrix], live: Sequence[Matrix] | None = None) -> float:
    """The older PWMCC: mean over latents of the largest *absolute* cosine in the other seed, both ways round.

    Several latents may choose the same partner, so it is at least as large as `pw_mcc`. In [0, 1].
    """

    def both_ways(a: Tensor, b: Tensor) -> float:
        if not len(a) or not len(b):
            return 0.0
        cosines = (a @ b.t()).abs_()
        return float((cosines.amax(0).mean() + cosines.amax(1).mean()) / 2)

    return _mean_over_pairs(_live_rows(decoders, live), both_ways)


def shared_latents(saes: Sequence[Any], threshold: float = 0.7, live: Sequence[Matrix] | None = None) -> float:
    """Share of latents found again in another seed: encoder and decoder name the same partner, at `threshold`.

    Decoders are matched one to one, encoders separately; a latent is shared when both matches give it the same
    partner and both cosines reach `threshold` (Paulo & Belrose 2025, arXiv:2501.16615). Averaged over pairs of
    seeds, as a share of d_sae (so dead latents count as not shared).

    Parameters
    ----------
    saes : sequence of SAE
        Anything with ``W_dec`` (d_sae, d) and ``W_enc`` (d, d_sae); two or more.
    threshold : float in (0, 1]
    live : sequence of (d_sae,) bool, optional

    Returns
    -------
    float in [0, 1]
    """
    number("threshold", threshold, "(0, 1]")
    decoders = _live_rows([sae.W_dec for sae in saes], live)
    encoders = _live_rows([sae.W_enc.T for sae in saes], live, "encoders")
    d_sae = saes[0].W_dec.shape[0]
    pairs = list(combinations(range(len(saes)), 2))
    shares = [
        len(_partners(decoders[i], decoders[j], threshold) & _partners(encoders[i], encoders[j], threshold)) / d_sae
        for i, j in pairs
    ]
    return float(np.mean(shares))


def shared_latents_chance(
    n_latents: int,
    d: int,
    threshold: float = 0.7,
    n_draws: int = 20,
    random_state: int = 0,
    spread: Matrix | None = None,
) -> Chance:
    """`shared_latents` between two random unit dictionaries with tied encoders, simulated; `spread` as in `chance`.

    Tied is the generous case: encoder and decoder then always agree about the partner.
    """

    number("threshold", threshold, "(0, 1]")

    def shared(a: Matrix, b: Matrix) -> float:
        return len(_partners(torch.from_numpy(a), torch.from_numpy(b), threshold)) / n_latents

    return chance(shared, n_latents, n_latents, d, n_draws=n_draws, random_state=random_state, spread=spread)


def subspace_overlap(a: Matrix, b: Matrix) -> float:
    """Mean squared cosine of the principal angles between the spans of two sets of directions (r, d).

    1 when the smaller span lies within the larger, whatever the directions in it: two dictionaries may share a
    space and no latent. Random spans of ranks r_a and r_b overlap by max(r_a, r_b) / d on average.

    Raises
    ------
    ValueError
        On directions that are empty, of different width, or hold NaN or zero rows.
    """
    units = [unit_rows(rows, name, least=1) for rows, name in ((a, "a"), (b, "b"))]
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


def _mean_over_pairs(rows: list[Tensor], agreement: Callable[[Tensor, Tensor], float]) -> float:
    return float(np.mean([agreement(a, b) for a, b in combinations(rows, 2)]))


def _cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """Cosines of the optimal one-to-one matches; none when either side is empty."""
    return np.asarray(match(a, b).cosines, dtype=float) if len(a) and len(b) else np.zeros(0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _partners(a: Tensor, b: Tensor, threshold: float) -> set[tuple[int, int]]:
    """Matched pairs (row of a, row of b) whose cosine reaches `threshold`."""
    if not len(a) or not len(b):
        return set()
    matching = match(a, b)
    return {
        (int(i), int(j))
        for i, j, cosine in zip(matching.rows, matching.columns, matching.cosines, strict=True)
        if cosine >= threshold
    }
