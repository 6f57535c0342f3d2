"""How well do mined directions recover true ones? Metrics, and what random directions would reach.

All metrics take ``directions`` (r, d) first and ``truth`` (t, d) second, numpy or torch, any float type; rows
are normalised and compared in float64. Cosines are *signed*: a direction that points the other way is wrong.
No metric means anything alone: print it beside :func:`chance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rkcnn_lib.measure.matching import Directions, match, unit_pair
from rkcnn_lib.tensors import as_matrix, number, one_of, scaled, whole


class Chance(NamedTuple):
    """What random unit vectors reach."""

    mean: float
    """Mean of the metric over the draws."""
    upper: float
    """Its 95 % point: one draw in twenty is higher."""


def mmcs(directions: Directions, truth: Directions) -> float:
    """Mean over true features of the best signed cosine, in [-1, 1].

    "Mean max cosine similarity" of Sharkey, Braun & Millidge 2022 ("Taking features out of superposition with
    sparse autoencoders"), truth to directions. One direction may serve several features, so it flatters sets
    of near-copies: :func:`matched_cosine` does not. No directions: 0. No truth: ValueError.
    """
    a, b = _unit(directions, truth)
    return float((a @ b.T).max(axis=0).mean()) if len(a) else 0.0


def matched_cosine(directions: Directions, truth: Directions) -> float:
    """Mean over true features of the signed cosine with the direction matched to each one-to-one.

    In [-1, 1]. A feature that is left over (fewer directions than features) counts as 0, so returning less
    does not help. No directions: 0. No truth: ValueError.
    """
    a, b = _unit(directions, truth)
    return float(match(a, b).cosines.sum() / len(b))


def recovery_rate(directions: Directions, truth: Directions, threshold: float = 0.9) -> float:
    """Share of true features matched one-to-one at a signed cosine of ``threshold`` or more, in [0, 1].

    The assignment is the one of :func:`matched_cosine`. No directions: 0. No truth: ValueError.
    """
    number("threshold", threshold, "[-1, 1]")
    a, b = _unit(directions, truth)
    return float((match(a, b).cosines >= threshold).sum() / len(b))


def precision(directions: Directions, truth: Directions, threshold: float = 0.9) -> float:
    """Share of returned directions matched one-to-one at a signed cosine of ``threshold`` or more, in [0, 1].

    The assignment is the one of :func:`matched_cosine`. No directions: 0. No truth: ValueError.
    """
    number("threshold", threshold, "[-1, 1]")
    a, b = _unit(directions, truth)
    return float((match(a, b).cosines >= threshold).sum() / len(a)) if len(a) else 0.0


METRICS: dict[str, Callable[..., float]] = {
    "mmcs": mmcs,
    "matched_cosine": matched_cosine,
    "recovery_rate": recovery_rate,
    "precision": precision,
}


def chance(
    metric: str | Callable[..., float],
    n_a: int,
    n_b: int,
    d: int,
    n_draws: int = 200,
    random_state: int = 0,
    *,
    truth: Directions | None = None,
    spread: Directions | None = None,
    **metric_options: float,
) -> Chance:
    """What ``metric`` gives for ``n_a`` random unit directions against ``n_b`` true ones in ``d`` dimensions.

    Parameters
    ----------
    metric : str or callable
        A name in ``METRICS``, or any function of two arrays (n_a, d), (n_b, d) that returns a number.
    n_a, n_b, d : int
        Number of directions, number of true features, dimension.
    n_draws : int, default 200
        Simulations. The 95 % point of 200 draws is itself uncertain: it lies at the true 92 % to 98 %
        point. Large sets need few draws, since their means hardly vary.
    random_state : int, default 0
    truth : array (n_b, d), optional
        Hold the truth at these directions instead of drawing it: what random directions reach against this
        very truth. A regular truth is easier to hit evenly than a random one.
    spread : array (m, d), optional
        Draw directions as Gaussian mixtures of these rows instead of uniformly: of centred activations, as likely
        as activations are to point that way. Where data fill a few of d dimensions, any two dictionaries made of
        them agree far better than directions of all d.
    **metric_options
        Passed to the metric, for example ``threshold``.

    Returns
    -------
    Chance
        Mean and 95 % point.

    Raises
    ------
    ValueError
        For an unknown metric, sizes below 1, or ``truth`` or ``spread`` of another shape.
    """
    if not callable(metric):
        metric = METRICS[one_of("metric", metric, METRICS)]
    for name, size in {"n_a": n_a, "n_b": n_b, "d": d, "n_draws": n_draws}.items():
        whole(name, size)
    rng = np.random.default_rng(whole("random_state", random_state, 0))
    if truth is not None:
        truth = as_matrix(truth, "truth").cpu().double().numpy()
        if truth.shape != (n_b, d):
            raise ValueError(f"truth must have shape (n_b, d) = ({n_b}, {d}), got {truth.shape}")
    if spread is not None and (spread := as_matrix(spread, "spread")).shape[1] != d:
        raise ValueError(f"spread must have shape (m, d = {d}), got {tuple(spread.shape)}")
    factor = None if spread is None else covariance_factor(spread)
    values = [
        metric(
            random_directions(rng, n_a, d, factor),
            random_directions(rng, n_b, d, factor) if truth is None else truth,
            **metric_options,
        )
        for _ in range(n_draws)
    ]
    return Chance(float(np.mean(values)), float(np.quantile(values, 0.95)))


def covariance_factor(rows: Directions) -> np.ndarray:
    """Return F (d, d) so that Gaussian vectors times F have the covariance of ``rows`` (m, d), up to scale."""
    rows = scaled(as_matrix(rows, "spread").cpu()).numpy()
    if not rows.any():
        raise ValueError("spread is zero everywhere: directions spread like it point nowhere")
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return (vectors * np.sqrt(np.clip(values, 0, None))).T


def random_directions(rng: np.random.Generator, n: int, d: int, factor: np.ndarray | None = None) -> np.ndarray:
    """``n`` unit vectors in ``d`` dimensions: uniform on the sphere, or spread by a factor (see above)."""
    vectors = rng.standard_normal((n, d))
    vectors = vectors if factor is None else vectors @ factor
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _unit(directions: Directions, truth: Directions) -> tuple[np.ndarray, np.ndarray]:
    a, b = unit_pair(directions, truth, ("directions", "truth"))
    if len(b) == 0:
        raise ValueError("truth is empty: without true features recovery is undefined")
    return a, b
