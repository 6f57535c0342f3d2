"""The search for the L1 penalty at which a ReLU SAE has as many active latents as the TopK SAEs it is compared with."""

import math
import warnings
from typing import Any

import numpy as np

from rkcnn_lib.runs.schemas import Comparison
from rkcnn_lib.runs.units import Unit
from rkcnn_lib.studies.cells import FIRST_L1, sae_unit

L0_TOLERANCE = 0.02  # arms are compared at L0 matched within 2 %
MOST_TRIALS = 8


def matched_unit(store: Any, p: Comparison, arm: str, seed: int, device: str) -> Unit:
    """Return the trained SAE of a cell with ``k`` active latents a token on held-out text.

    TopK and BatchTopK have them by construction. A ReLU SAE with ``l1 = None`` is trained at several penalties until
    its L0 is within half the tolerance of ``k``. The nearest is returned, with a warning, when `MOST_TRIALS` are spent
    or a larger penalty no longer lowers L0 (training too short to become sparse).
    """
    if p.architecture != "relu" or p.l1 is not None:
        return sae_unit(store, p, arm, seed, device)
    tried, units = [], []  # (penalty, L0), and the unit of each
    while len(tried) < MOST_TRIALS:
        l1 = next_penalty(tried, p.k)
        units.append(sae_unit(store, p.model_copy(update={"l1": l1}), arm, seed, device))
        tried.append((l1, units[-1].scalars["l0"]))
        if abs(tried[-1][1] / p.k - 1) <= L0_TOLERANCE / 2:
            return units[-1]
        *_, before, after = 0.0, *(l0 for _, l0 in sorted(tried))  # of the two largest penalties
        if len(tried) > 2 and min(l0 for _, l0 in tried) > p.k and after > 0.98 * before:
            break
    nearest = min(range(len(tried)), key=lambda i: abs(tried[i][1] - p.k))
    told = f"L0 {tried[nearest][1]:.1f} is the nearest to {p.k} that L1 penalties gave"
    warnings.warn(f"{arm}, seed {seed}: {told}", stacklevel=2)
    return units[nearest]


def next_penalty(tried: list[tuple[float, float]], target: float) -> float:
    """Return the L1 penalty to try next, from (penalty, L0) pairs: L0 falls as the penalty grows.

    Between the nearest penalties on either side of the target L0 the line in logarithms is followed. With none on one
    side the line through the two nearest goes on (taken as L0 ~ 1 / penalty at first), by a factor of 8 at most.
    """
    if not tried:
        return FIRST_L1
    points = sorted((math.log(l1), math.log(max(l0, 1e-3) / target)) for l1, l0 in tried)
    too_many, too_few = [p for p in points if p[1] > 0], [p for p in points if p[1] <= 0]
    if too_many and too_few:
        (x0, y0), (x1, y1) = too_many[-1], too_few[0]
        return math.exp(float(np.interp(0.0, [y1, y0], [x1, x0])))
    (x, y), (x1, y1) = (points[-1], points[-2:][0]) if too_many else (points[0], points[:2][-1])
    slope = (y - y1) / (x - x1) if x != x1 else -1.0
    return math.exp(x + float(np.clip(-y / min(slope, -0.1), -math.log(8), math.log(8))))
