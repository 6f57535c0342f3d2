"""Worlds made of features we planted ourselves, so that what was mined can be held against what is true.

All are streams: built with a seed, each ``sample`` draws fresh rows, and two with the same arguments give the same
rows in the same order of calls.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from rkcnn_lib.tensors import MAX_SEED, as_numbers, number, whole

ArrayLike = float | list | tuple | np.ndarray | torch.Tensor
# Rows of a planted dictionary are always drawn in blocks of this many, so a seed fixes the rows.
BLOCK_ROWS = 16384
MAX_RATE = 0.5  # of a feature of a planted dictionary
# Activations made here, their true directions known, that 04 and sweeps run on like a model's: `toy` is the 20-feature,
# 5-dimension model of notebook 01, the others random dictionaries in superposition, their rates by Zipf's law.
PLANTED = {
    "planted": {"n_features": 256, "d": 64, "mean_active": 4.0},
    "planted_1024": {"n_features": 1024, "d": 96, "mean_active": 4.0, "noise": 0.05},
    "planted_4096": {"n_features": 4096, "d": 256, "mean_active": 8.0, "noise": 0.05},
}
TOY = {"n_features": 20, "n_hidden": 5, "n_active": 2, "steps": 2000}
WIDTHS = {"toy": TOY["n_hidden"]} | {name: int(world["d"]) for name, world in PLANTED.items()}
INVENTED_MODELS = tuple(WIDTHS)


class SyntheticSparseDataGenerator:
    """Sparse features (Elhage et al. 2022, section 2): each is zero most of the time, uniform on [0, 1] when active.

    ``p`` is the probability in [0, 1] that a feature is active: one number, one per feature ``(n_features,)``, or
    ``(n_instances, n_features)`` (either axis may be 1) for a batch of independent streams. With ``k_active`` exactly
    so many features, drawn uniformly, are active in every row; ``p`` then decides the number of streams alone.
    """

    def __init__(
        self, n_features: int, p: ArrayLike = 0.05, *, k_active: int | None = None, random_state: int = 0
    ) -> None:
        self.n_features = whole("n_features", n_features)
        self.k_active = None if k_active is None else whole("k_active", k_active, 1, n_features)
        self._probabilities = _probabilities(p, n_features)
        self._generator = torch.Generator().manual_seed(whole("random_state", random_state, 0, MAX_SEED))

    def sample(self, n: int) -> torch.Tensor:
        """Draw ``n`` fresh rows: (n, n_features), or (n_instances, n, n_features) when ``p`` had two axes; float32."""
        shape = (*self._probabilities.shape[:-1], whole("n", n), self.n_features)
        values, u = (torch.rand(shape, generator=self._generator) for _ in range(2))
        if self.k_active is None:
            return torch.where(u < self._probabilities.unsqueeze(-2), values, 0.0)
        chosen = u.topk(self.k_active, dim=-1).indices
        return torch.zeros_like(values).scatter_(-1, chosen, values.gather(-1, chosen))


class SyntheticClusteredDataGenerator:
    """Sparse features whose activity depends on a latent topic: rows with a hidden class label.

    Each row has one of ``n_topics`` equally likely topics, and feature i belongs to topic i mod n_topics. With T topics
    and ``structure`` s in [0, 1] a feature fires at p (1 + s (T - 1)) in its own topic and at p (1 - s) in the others,
    at ``p``, a number or (n_features,), over all.

    Attributes ``rates`` (n_topics, n_features), the probability that a feature is active, given the topic, and
    ``feature_topics`` (n_features,), the topic each feature belongs to.
    """

    def __init__(
        self, n_features: int, n_topics: int = 4, p: ArrayLike = 0.05, *, structure: float = 0.8, random_state: int = 0
    ) -> None:
        rates = _probabilities(p, whole("n_features", n_features)).double().numpy()
        if rates.ndim != 1:
            raise ValueError(f"p must be a number or have shape ({n_features},), got an array of two axes")
        self.n_topics, structure = whole("n_topics", n_topics, 1, n_features), number("structure", structure, "[0, 1]")
        own = rates * (1 + structure * (n_topics - 1))
        if own.max() > 1:
            raise ValueError(
                f"a feature would fire at rate {own.max():.3g} > 1 in its own topic: lower p, structure or n_topics"
            )
        self.feature_topics = np.arange(n_features) % n_topics
        self.rates = np.where(self.feature_topics == np.arange(n_topics)[:, None], own, rates * (1 - structure))
        self._generator = torch.Generator().manual_seed(whole("random_state", random_state, 0, MAX_SEED))

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``n`` fresh rows: X (n, n_features), float32, and their topics (n,), int64."""
        topics = torch.randint(self.n_topics, (whole("n", n),), generator=self._generator)
        rates = torch.from_numpy(self.rates).float()[topics]
        active = torch.rand(rates.shape, generator=self._generator) < rates
        return torch.where(active, torch.rand(rates.shape, generator=self._generator), 0.0), topics


class PlantedDictionary:
    """Activations ``x = z @ directions + noise`` with sparse, one-sided codes z and known unit directions.

    A world of the kind that sparse autoencoders are tested on when the truth must be known (compare SynthSAEBench; the
    construction here is our own). More features than dimensions ``d``: superposition. The rate of the k-th most
    frequent feature is proportional to 1 / k (Zipf), at most 0.5; ``mean_active`` are active in a row on average.
    ``noise`` is the standard deviation of isotropic Gaussian noise, per dimension.

    Attributes ``directions`` (n_features, d), float32, uniform on the sphere, and ``rates`` (n_features,), the
    probability that each feature is active in a row.
    """

    def __init__(
        self, n_features: int, d: int, *, mean_active: float = 8.0, noise: float = 0.0, random_state: int = 0
    ) -> None:
        self.n_features, self.d = whole("n_features", n_features), whole("d", d)
        self.noise = number("noise", noise, "[0, inf)")
        self.rates = _zipf_rates(n_features, number("mean_active", mean_active, f"(0, {n_features * MAX_RATE}]"))
        self._rng = np.random.default_rng(whole("random_state", random_state, 0))
        directions = self._rng.standard_normal((n_features, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = torch.from_numpy(directions.astype(np.float32))

    def sample(self, n: int) -> tuple[torch.Tensor, csr_array]:
        """Draw ``n`` fresh rows: X (n, d) and their codes, a sparse (n, n_features), both float32.

        Codes are uniform on [0.5, 1.5] where a feature is active.
        """
        X, codes = torch.empty(whole("n", n), self.d), []
        for rows in X.split(BLOCK_ROWS):
            block, block_codes = self._block(len(rows))
            rows.copy_(torch.from_numpy(block))
            codes.append(block_codes)
        return X, csr_array(vstack(codes, format="csr"))

    def _block(self, n: int) -> tuple[np.ndarray, csr_array]:
        # One uniform number for each pair of row and feature would cost rows x features. Instead a Poisson number of
        # darts, -log(1 - p) expected per pair, is thrown at the rows: a pair is hit at least once with probability
        # exactly p, independently of all others.
        counts = self._rng.poisson(n * -np.log1p(-self.rates))
        thrown = np.repeat(np.arange(self.n_features), counts)
        hit = np.unique(self._rng.integers(n, size=len(thrown)) * self.n_features + thrown)
        values = self._rng.uniform(0.5, 1.5, len(hit)).astype(np.float32)
        codes = csr_array((values, np.divmod(hit, self.n_features)), shape=(n, self.n_features))
        X = codes @ self.directions.numpy()
        if self.noise:
            X += self.noise * self._rng.standard_normal(X.shape, dtype=np.float32)
        return X, codes


def _zipf_rates(n: int, mean_active: float) -> np.ndarray:
    """Rates proportional to 1 / rank, at most `MAX_RATE`, summing to ``mean_active``."""
    weights = 1 / np.arange(1, n + 1)
    free = np.ones(n, dtype=bool)
    # Each pass fixes at least one more feature at the cap, or ends.
    while True:
        share = (mean_active - MAX_RATE * (~free).sum()) / weights[free].sum() if free.any() else 0.0
        rates = np.where(free, share * weights, MAX_RATE)
        over = free & (rates > MAX_RATE)
        if not over.any():
            return rates
        free &= ~over


def _probabilities(p: ArrayLike, n_features: int) -> torch.Tensor:
    """``p`` as (n_features,) or (n_instances, n_features), checked."""
    given = as_numbers(p, "p").float()
    if given.ndim > 2 or (given.ndim and given.shape[-1] not in (1, n_features)):
        raise ValueError(
            f"p must be a number, ({n_features},) or (n_instances, {n_features}), got shape {tuple(given.shape)}"
        )
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError("every probability p must be in [0, 1]")
    return given.expand(*given.shape[:-1], n_features)
