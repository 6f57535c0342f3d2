"""A large planted dictionary: thousands of sparse features written into fewer dimensions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from rkcnn_lib.tensors import number, whole
from rkcnn_lib.worlds.toy.synthetic import topic_rates

# Rows are always drawn in blocks of this many, so memory stays bounded and a seed fixes the rows.
BLOCK_ROWS = 16384
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


class PlantedDictionary:
    """Activations ``x = z @ directions + noise`` with sparse, one-sided codes z and known unit directions.

    A world of the kind that sparse autoencoders are tested on when the truth must be known (compare
    SynthSAEBench; the construction here is our own). Codes are drawn as lists of events, block by block, and
    are never held densely.

    Parameters
    ----------
    n_features, d : int
        Number of features and of dimensions. More features than dimensions: superposition.
    mean_active : float
        Expected number of active root features per row (children come on top). A feature's rate is cut at
        ``max_rate``, in (0, 1), and the others rise to keep the sum.
    zipf : float
        Rate of the k-th most frequent root is proportional to k ** -zipf; 0 makes all equally frequent.
    children, child_rate : int, float
        Hierarchy: each root has this many children, which fire with this probability where it does and nowhere else.
        The first n_features // (1 + children) features are the roots; a remainder that makes no full family is spread,
        one extra child each, over the first roots.
    n_topics, structure : int, float
        Correlation: each row has a hidden topic, and roots of one topic fire together; see
        :func:`rkcnn_lib.worlds.toy.synthetic.topic_rates`.
    noise : float
        Standard deviation of isotropic Gaussian noise, per dimension.

    Attributes
    ----------
    directions : Tensor (n_features, d), float32, unit rows, uniform on the sphere.
    rates : ndarray (n_features,), the probability that each feature is active in a row.
    parents : ndarray (n_features,), int64, the index of a child's root, -1 for a root.
    """

    def __init__(
        self,
        n_features: int,
        d: int,
        *,
        mean_active: float = 8.0,
        zipf: float = 1.0,
        max_rate: float = 0.5,
        children: int = 0,
        child_rate: float = 0.3,
        n_topics: int = 1,
        structure: float = 0.0,
        noise: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.n_features, self.d = whole("n_features", n_features), whole("d", d)
        self.noise, self.child_rate = number("noise", noise, "[0, inf)"), number("child_rate", child_rate, "(0, 1]")
        children = whole("children", children, 0)
        self.n_roots = max(1, n_features // (1 + children))
        self.parents = np.full(n_features, -1)
        self.parents[self.n_roots :] = np.arange(n_features - self.n_roots) % self.n_roots
        roots = _zipf_rates(self.n_roots, mean_active, zipf, max_rate)
        self._root_rates, _ = topic_rates(roots, n_topics, structure)
        self.rates = np.concatenate([roots, child_rate * roots[self.parents[self.n_roots :]]])
        self._rng = np.random.default_rng(whole("random_state", random_state, 0))
        directions = self._rng.standard_normal((n_features, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = torch.from_numpy(directions.astype(np.float32))

    def stream(self, n: int) -> Iterator[tuple[torch.Tensor, csr_array]]:
        """Draw ``n`` fresh rows block by block: pairs as :meth:`sample` returns, of at most 16384 rows."""
        for start in range(0, whole("n", n), BLOCK_ROWS):
            yield self._block(min(BLOCK_ROWS, n - start))

    def sample(self, n: int) -> tuple[torch.Tensor, csr_array]:
        """Draw ``n`` fresh rows: X (n, d) and their codes, a sparse (n, n_features), both float32.

        Codes are uniform on [0.5, 1.5] where a feature is active.
        """
        X, codes = torch.empty(whole("n", n), self.d), []
        for rows, (block, block_codes) in zip(X.split(BLOCK_ROWS), self.stream(n), strict=True):
            rows.copy_(block)
            codes.append(block_codes)
        return X, csr_array(vstack(codes, format="csr"))

    def _block(self, n: int) -> tuple[torch.Tensor, csr_array]:
        topics = self._rng.integers(len(self._root_rates), size=n)
        rows, features = self._root_events(topics)
        child_rows, child_features = self._child_events(rows, features)
        rows, features = np.concatenate([rows, child_rows]), np.concatenate([features, child_features])
        values = self._rng.uniform(0.5, 1.5, len(rows)).astype(np.float32)
        codes = csr_array((values, (rows, features)), shape=(n, self.n_features))
        X = codes @ self.directions.numpy()
        if self.noise:
            X += self.noise * self._rng.standard_normal(X.shape, dtype=np.float32)
        return torch.from_numpy(X), codes

    def _root_events(self, topics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, root) pairs that are active, each pair independently given the topics of the rows.

        Drawing one uniform number for each pair would cost rows x features. Instead a Poisson number of
        darts, -log(1 - p) expected per pair, is thrown at the rows of a topic: a pair is hit at least once
        with probability exactly p, independently of all others.
        """
        order = np.argsort(topics, kind="stable")
        sizes = np.bincount(topics, minlength=len(self._root_rates))
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        certain = np.minimum(self._root_rates, 1 - 1e-12)  # a rate of exactly 1 would need infinitely many darts
        counts = self._rng.poisson(sizes[:, None] * -np.log1p(-certain))
        topic_of_dart = np.repeat(np.arange(len(sizes)), counts.sum(1))
        features = np.repeat(np.tile(np.arange(self.n_roots), len(sizes)), counts.ravel())
        rows = order[starts[topic_of_dart] + self._rng.integers(sizes[topic_of_dart])]
        hit = np.unique(rows * self.n_roots + features)
        return hit // self.n_roots, hit % self.n_roots

    def _child_events(self, rows: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, child) pairs that are active, given the active (row, root) pairs."""
        child_rows, children = [rows[:0]], [roots[:0]]
        # Child number g of root r is feature (g + 1) n_roots + r, as laid out in __init__.
        for first in range(self.n_roots, self.n_features, self.n_roots):
            child = first + roots
            fires = (self._rng.random(len(roots)) < self.child_rate) & (child < self.n_features)
            child_rows.append(rows[fires])
            children.append(child[fires])
        return np.concatenate(child_rows), np.concatenate(children)


def _zipf_rates(n: int, mean_active: float, exponent: float, max_rate: float) -> np.ndarray:
    """Rates proportional to rank ** -exponent, at most ``max_rate``, summing to ``mean_active``."""
    max_rate, exponent = number("max_rate", max_rate, "(0, 1)"), number("zipf", exponent, "[0, inf)")
    mean_active = number("mean_active", mean_active, f"(0, {n * max_rate}]")  # roots x max_rate
    weights = np.arange(1, n + 1, dtype=float) ** -exponent
    if not weights.all():
        raise ValueError(f"zipf={exponent} is too steep: the rate of the rarest of {n} roots is not a number any more")
    rates = np.zeros(n)
    free = np.ones(n, dtype=bool)
    # Each pass fixes at least one more feature at the cap, or ends.
    while True:
        share = (mean_active - max_rate * (~free).sum()) / weights[free].sum() if free.any() else 0.0
        rates = np.where(free, share * weights, max_rate)
        over = free & (rates > max_rate)
        if not over.any():
            return rates
        free &= ~over
