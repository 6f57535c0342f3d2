"""Worlds made of features we planted ourselves, so that what was mined can be held against what is true.

All generators are streams: built with a seed, each ``sample`` draws fresh rows, and two generators with the
same arguments give the same rows in the same order of calls. :mod:`rkcnn_lib.worlds.toy.planted` holds the large
world of features written into fewer dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from rkcnn_lib.tensors import MAX_SEED, as_numbers, number, switch, whole

ArrayLike = float | list | tuple | np.ndarray | torch.Tensor


class SyntheticSparseDataGenerator:
    """Sparse features: each is zero most of the time and uniform on [0, 1] when active.

    The synthetic input of Elhage et al. 2022, "Toy Models of Superposition" (section 2; correlated and
    anticorrelated pairs as in its section on correlated features).

    Parameters
    ----------
    p : float or array
        Probability in [0, 1] that a feature is active: one number, one per feature ``(n_features,)``, or
        ``(n_instances, n_features)`` (either axis may be 1) for a batch of independent streams.
    k_active : int, optional
        Exactly this many features, drawn uniformly, are active in every row. ``p`` is then not used except
        for its number of instances, and ``probabilities`` is k_active / n_features.
    signed : bool
        Active values are uniform on [-1, 1] instead of [0, 1].
    importance : float or array (n_features,)
        Non-negative weight of each feature in the reconstruction loss (see :meth:`loss`).
    correlated_pairs : int
        The first pairs (0, 1), (2, 3), ..., each of one probability, are always active together, with independent
        values.
    anticorrelated_pairs : int
        The pairs that follow are never active together; their probabilities add up to at most 1.
    device : str or torch.device, optional
        Where rows are drawn and returned; None means the CPU.

    Attributes ``probabilities`` (n_features,) or (n_instances, n_features), and ``importance`` (n_features,), are
    float32 tensors.
    """

    def __init__(
        self,
        n_features: int,
        p: ArrayLike = 0.05,
        *,
        k_active: int | None = None,
        signed: bool = False,
        importance: ArrayLike = 1.0,
        correlated_pairs: int = 0,
        anticorrelated_pairs: int = 0,
        random_state: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.n_features = n_features = whole("n_features", n_features)
        self.k_active = k_active = None if k_active is None else whole("k_active", k_active, 1, n_features)
        self.signed = switch("signed", signed)
        self.device = torch.device("cpu" if device is None else device)
        self.probabilities = _probabilities(p, n_features).to(self.device)
        self.importance = _importance(importance, n_features).to(self.device)
        if k_active is not None:
            if correlated_pairs or anticorrelated_pairs:
                raise ValueError("k_active and pairs exclude each other: pairs change how many are active")
            self.probabilities = torch.full_like(self.probabilities, k_active / n_features)
        self._correlated, self._anticorrelated = _pairs(self.probabilities, correlated_pairs, anticorrelated_pairs)
        self._generator = torch.Generator(self.device).manual_seed(whole("random_state", random_state, 0, MAX_SEED))

    def sample(self, n: int) -> torch.Tensor:
        """Draw ``n`` fresh rows: (n, n_features), or (n_instances, n, n_features) when ``p`` had two axes; float32."""
        n = whole("n", n)
        values = self._uniform(n)
        if self.signed:
            values = 2 * values - 1
        return torch.where(self._active(n), values, 0.0)

    def loss(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Importance-weighted squared error: summed over features, averaged over rows.

        ``x`` and ``x_hat`` are (..., n, n_features); the result has the leading axes only, so a batch of
        instances gives one loss each. Elhage et al. 2022: L = sum_i I_i (x_i - x_hat_i)^2.
        """
        x, x_hat = floats(x, "x"), floats(x_hat, "x_hat")
        if x.shape != x_hat.shape or x.ndim < 2 or x.shape[-1] != self.n_features:
            raise ValueError(
                f"x and x_hat must both be (..., n, {self.n_features}), got {tuple(x.shape)}, {tuple(x_hat.shape)}"
            )
        # Rows first: reducing over a handful of adjacent features is several times slower.
        return ((x - x_hat).square().mean(-2) * self.importance).sum(-1)

    def _uniform(self, n: int) -> torch.Tensor:
        shape = (*self.probabilities.shape[:-1], n, self.n_features)
        return torch.rand(shape, generator=self._generator, device=self.device)

    def _active(self, n: int) -> torch.Tensor:
        """Which features are active, (..., n, n_features) bool."""
        u = self._uniform(n)
        if self.k_active is not None:
            chosen = u.topk(self.k_active, dim=-1).indices
            return torch.zeros_like(u, dtype=torch.bool).scatter_(-1, chosen, True)
        p = self.probabilities.unsqueeze(-2)
        active = u < p
        # One uniform number decides both of a pair: the first fires below p_first, its anticorrelated twin
        # in the slice of length p_second just above. Each keeps its own rate.
        first, second = self._correlated
        active[..., second] = active[..., first]
        first, second = self._anticorrelated
        edge = p[..., first]
        active[..., second] = (u[..., first] >= edge) & (u[..., first] < edge + p[..., second])
        return active


class SyntheticClusteredDataGenerator:
    """Sparse features whose activity depends on a latent topic: rows with a hidden class label.

    Each row has one of ``n_topics`` equally likely topics, and feature i belongs to topic i mod n_topics.
    ``structure`` moves a feature's activity into its own topic without changing its overall rate ``p``: see
    :func:`topic_rates`.

    Parameters
    ----------
    p : float or array (n_features,)
        Overall probability that a feature is active.
    structure : float
        0: topics make no difference (labels are then pure noise); 1: features fire in their own topic only.
    signed : bool
        Active values are uniform on [-1, 1] instead of [0, 1].

    Attributes
    ----------
    rates : ndarray (n_topics, n_features), the probability that a feature is active, given the topic.
    feature_topics : ndarray (n_features,), the topic each feature belongs to.
    """

    def __init__(
        self,
        n_features: int,
        n_topics: int = 4,
        p: ArrayLike = 0.05,
        *,
        structure: float = 0.8,
        signed: bool = False,
        random_state: int = 0,
    ) -> None:
        probabilities = _probabilities(p, whole("n_features", n_features))
        if probabilities.ndim != 1:
            raise ValueError(f"p must be a number or have shape ({n_features},), got an array of two axes")
        self.rates, self.feature_topics = topic_rates(probabilities.double().numpy(), n_topics, structure)
        self.n_features = n_features
        self.n_topics = n_topics
        self.signed = switch("signed", signed)
        self._generator = torch.Generator().manual_seed(whole("random_state", random_state, 0, MAX_SEED))

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``n`` fresh rows: X (n, n_features), float32, and their topics (n,), int64."""
        n = whole("n", n)
        topics = torch.randint(self.n_topics, (n,), generator=self._generator)
        rates = torch.from_numpy(self.rates).float()[topics]
        active = torch.rand(rates.shape, generator=self._generator) < rates
        values = torch.rand(rates.shape, generator=self._generator)
        if self.signed:
            values = 2 * values - 1
        return torch.where(active, values, 0.0), topics


def topic_rates(p: np.ndarray, n_topics: int, structure: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates (n_topics, n_features) of each feature in each topic, and the topic i mod n_topics of each feature i.

    With T equally likely topics a feature fires at p (1 + s (T - 1)) in its own topic and p (1 - s) in the
    others, which averages to p for every structure s in [0, 1].
    """
    n_topics, structure = whole("n_topics", n_topics, 1, len(p)), number("structure", structure, "[0, 1]")
    feature_topics = np.arange(len(p)) % n_topics
    own = p * (1 + structure * (n_topics - 1))
    if own.max() > 1:
        raise ValueError(
            f"a feature would fire at rate {own.max():.3g} > 1 in its own topic: lower p, structure or n_topics"
        )
    is_own = feature_topics == np.arange(n_topics)[:, None]
    return np.where(is_own, own, p * (1 - structure)), feature_topics


def floats(given: ArrayLike, name: str) -> torch.Tensor:
    """A tensor of floats as it is, with its history and unread; all else as `as_numbers` takes or refuses it."""
    if isinstance(given, torch.Tensor) and given.layout == torch.strided and given.is_floating_point():
        return given
    return as_numbers(given, name)


def _probabilities(p: ArrayLike, n_features: int) -> torch.Tensor:
    """``p`` as (n_features,) or (n_instances, n_features), checked."""
    given = as_numbers(p, "p").float()
    shape = (*given.shape[:-1], n_features)
    if given.ndim > 2 or (given.ndim and given.shape[-1] not in (1, n_features)):
        raise ValueError(
            f"p must be a number, ({n_features},) or (n_instances, {n_features}), got shape {tuple(given.shape)}"
        )
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError("every probability p must be in [0, 1]")
    return given.expand(shape).clone()


def _importance(importance: ArrayLike, n_features: int) -> torch.Tensor:
    weights = as_numbers(importance, "importance").float()
    if weights.ndim > 1 or (weights.ndim == 1 and len(weights) != n_features):
        raise ValueError(f"importance must be a number or have shape ({n_features},), got {tuple(weights.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("every importance must be finite and 0 or more")
    return weights.expand(n_features).clone()


def _pairs(
    p: torch.Tensor, n_correlated: int, n_anticorrelated: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the (first, second) features of the correlated and of the anticorrelated pairs."""
    whole("correlated_pairs", n_correlated, 0)
    whole("anticorrelated_pairs", n_anticorrelated, 0)
    middle, end = 2 * n_correlated, 2 * (n_correlated + n_anticorrelated)
    if end > p.shape[-1]:
        raise ValueError(f"{end // 2} pairs need {end} features, there are {p.shape[-1]}")
    correlated = (slice(0, middle, 2), slice(1, middle, 2))
    anticorrelated = (slice(middle, end, 2), slice(middle + 1, end, 2))
    if not torch.equal(p[..., correlated[0]], p[..., correlated[1]]):
        raise ValueError("the two features of a correlated pair must have the same probability p")
    if bool((p[..., anticorrelated[0]] + p[..., anticorrelated[1]] > 1).any()):
        raise ValueError("the probabilities p of an anticorrelated pair must add up to at most 1")
    return correlated, anticorrelated
