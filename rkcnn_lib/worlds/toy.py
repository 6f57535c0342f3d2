"""Worlds whose features we planted ourselves, so that what was mined can be held against what is true.

Rows come as streams: each ``sample`` draws fresh ones, and two streams with the same arguments, a seed among them, give
the same rows in the same order. Toy models of superposition (Elhage et al. 2022, "Toy Models of Superposition",
transformer-circuits.pub/2022/toy_model) squeeze sparse features x through fewer hidden dimensions and read them back,

    h = x W,   x_hat = ReLU(h W^T + b),   loss = sum_i (x_i - x_hat_i)^2.

Row i of W is the direction of feature i in the hidden space: the truth against which mined directions are judged.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch.nn.functional import normalize
from tqdm import tqdm

from rkcnn_lib.tensors import MAX_SEED, as_numbers, number, switch, whole

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
# Expected norm of a feature at the start. From large rows (norm 1.4) features that start close together stay stuck on
# one side, and a quarter of the 5 -> 2 models misses the pentagon.
INIT_NORM = 0.4
LOG_EVERY = 100  # steps
REPRESENTED = 0.5  # norm above which a model did not drop a feature
POLYGONS = {2: "digon", 3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}
BENT = 10.0  # degrees that an angle of a polygon may be off


class SyntheticSparseDataGenerator:
    """Sparse features (Elhage et al. 2022, section 2): each is zero most of the time, uniform on [0, 1] when active.

    ``p`` is the probability that a feature is active: one number, one per feature ``(n_features,)``, or ``(n_instances,
    n_features)`` (either axis may be 1) for a batch of independent streams. With ``k_active`` exactly so many features,
    drawn uniformly, are active in every row; ``p`` then decides the number of streams alone.
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

    Attributes ``rates`` (n_topics, n_features), the probability that a feature is active, given the topic, and each
    feature's own in ``feature_topics`` (n_features,).
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

    More features than dimensions ``d``: superposition (compare SynthSAEBench; the construction here is our own). The
    rate of the k-th most frequent feature is proportional to 1 / k (Zipf), at most 0.5; ``mean_active`` are active in a
    row on average. ``noise`` is the standard deviation of isotropic Gaussian noise, per dimension.

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
        X, codes = np.empty((whole("n", n), self.d), dtype=np.float32), []
        for start in range(0, n, BLOCK_ROWS):
            rows = X[start : start + BLOCK_ROWS]
            # Instead of a uniform number for each pair of row and feature, a Poisson number of darts, -log(1 - p)
            # expected per pair, is thrown: a pair is hit at least once with probability exactly p, independently.
            counts = self._rng.poisson(len(rows) * -np.log1p(-self.rates))
            thrown = np.repeat(np.arange(self.n_features), counts)
            hit = np.unique(self._rng.integers(len(rows), size=len(thrown)) * self.n_features + thrown)
            values = self._rng.uniform(0.5, 1.5, len(hit)).astype(np.float32)
            codes.append(csr_array((values, np.divmod(hit, self.n_features)), shape=(len(rows), self.n_features)))
            rows[:] = codes[-1] @ self.directions.numpy()
            if self.noise:
                rows += self.noise * self._rng.standard_normal(rows.shape, dtype=np.float32)
        return torch.from_numpy(X), csr_array(vstack(codes, format="csr"))


def _zipf_rates(n: int, mean_active: float) -> np.ndarray:
    """Rates proportional to 1 / rank, at most `MAX_RATE`, summing to ``mean_active``."""
    weights = 1 / np.arange(1, n + 1)
    for n_capped in range(n):
        share = (mean_active - MAX_RATE * n_capped) / weights[n_capped:].sum()
        if share * weights[n_capped] <= MAX_RATE:
            return np.where(np.arange(n) < n_capped, MAX_RATE, share * weights)
    return np.full(n, MAX_RATE)


def _probabilities(p: ArrayLike, n_features: int) -> torch.Tensor:
    """``p`` as (n_features,) or (n_instances, n_features), checked."""
    given = as_numbers(p, "p").float()
    if given.ndim > 2 or (given.ndim and given.shape[-1] not in (1, n_features)):
        raise ValueError(f"p has shape {tuple(given.shape)}: give a number, ({n_features},) or (n, {n_features})")
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError("every probability p must be in [0, 1]")
    return given.expand(*given.shape[:-1], n_features)


class ParallelToyModel:
    """Many independent toy models trained together as one batched tensor.

    They share one stream of random numbers, so an instance is reproducible for a given ``n_instances`` and seed.
    ``probabilities`` that a feature is active are one number, one per instance ``(n_instances,)``, or
    ``(n_instances, n_features)``; for one per feature pass ``(1, n_features)``. ``k_active`` as in
    :class:`rkcnn_lib.worlds.SyntheticSparseDataGenerator`.

    Attributes ``W`` (n_instances, n_features, n_hidden), Gaussian at first, ``b`` (n_instances, n_features), zero at
    first, and ``data``, the stream of rows, whose ``data.sample(n)`` is (n_instances, n, n_features).
    """

    def __init__(
        self,
        n_instances: int,
        n_features: int,
        n_hidden: int,
        probabilities: ArrayLike = 0.05,
        *,
        k_active: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.n_instances = whole("n_instances", n_instances)
        self.n_features, self.n_hidden = whole("n_features", n_features), whole("n_hidden", n_hidden)
        given = as_numbers(probabilities, "probabilities").float()
        try:
            p = (given[:, None] if given.ndim == 1 else given).expand(n_instances, n_features)
        except RuntimeError:
            raise ValueError(
                f"probabilities must be a number, ({n_instances},) or ({n_instances}, {n_features}), "
                f"got shape {tuple(given.shape)}"
            ) from None
        self.data = SyntheticSparseDataGenerator(n_features, p, k_active=k_active, random_state=random_state)
        # A generator of its own: the weights do not depend on how the rows are drawn.
        W = torch.randn(n_instances, n_features, n_hidden, generator=torch.Generator().manual_seed(int(random_state)))
        self.W = W * INIT_NORM / math.sqrt(n_hidden)
        self.b = torch.zeros(n_instances, n_features)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden activations x W, (n_instances, n, n_hidden): the rows a miner sees.

        ``x`` is (n_instances, n, n_features), or (n, n_features) for the same rows in every instance.
        """
        x = self._read(x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.n_features or (x.ndim == 3 and len(x) != self.n_instances):
            raise ValueError(
                f"x must be (n, {self.n_features}) or ({self.n_instances}, n, {self.n_features}), got {tuple(x.shape)}"
            )
        return x @ self.W

    def _read(self, x: Any) -> torch.Tensor:
        """Take a tensor of floats as it is, with its history; all else as `as_numbers` does."""
        is_plain = isinstance(x, torch.Tensor) and x.layout == torch.strided and x.is_floating_point()
        return (x if is_plain else as_numbers(x, "x")).to(self.W)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction ReLU(x W W^T + b), (n_instances, n, n_features), of ``x`` as in :meth:`hidden`."""
        return torch.relu(self.hidden(x) @ self.W.mT + self.b.unsqueeze(-2))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Squared error of each instance, (n_instances,), summed over features, averaged over rows."""
        x = self._read(x)
        # Rows first: reducing over a handful of adjacent features is several times slower.
        return (x - self(x)).square().mean(-2).sum(-1)

    def train(self, steps: int = 2000, batch_size: int = 256, lr: float = 1e-2, *, progress: bool = True) -> np.ndarray:
        """Train all instances with Adam and a cosine schedule from ``lr`` to zero; ``batch_size`` fresh rows a step.

        On 100 instances of 5 features in 2 dimensions, seeds not used to choose the defaults, it ended in the pentagon
        100 times at p = 0.02 and at 0.05 and 82 times at 0.1, where the square is a local minimum: report the rate.

        Returns losses (n_logged, n_instances), each averaged over 100 steps; ValueError if one grew beyond all numbers.
        """
        steps, batch_size = whole("steps", steps), whole("batch_size", batch_size)
        lr, progress = number("lr", lr, "(0, inf)"), switch("progress", progress)
        logged, total = [], 0.0
        optimizer = torch.optim.Adam([self.W.requires_grad_(True), self.b.requires_grad_(True)], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        bar = tqdm(range(1, steps + 1), desc=f"{self.n_instances} toy models", disable=not progress)
        try:
            for step in bar:
                losses = self.loss(self.data.sample(batch_size))
                optimizer.zero_grad()
                losses.sum().backward()  # the sum keeps the gradient of an instance free of the number of instances
                optimizer.step()
                schedule.step()
                total = total + losses.detach()
                if step % LOG_EVERY == 0 or step == steps:
                    logged.append((total / (step - LOG_EVERY * len(logged))).numpy())
                    total = 0.0
                    if not np.isfinite(logged[-1]).all():
                        raise ValueError(f"the loss is no number any more after {step} steps: lower lr={lr}")
                    bar.set_postfix(loss=f"{logged[-1].mean():.5f}")
        finally:
            bar.close()
            self.W, self.b = self.W.detach(), self.b.detach()
        return np.array(logged)


class ToyModel(ParallelToyModel):
    """One toy model: a :class:`ParallelToyModel` of one instance, without the instance axis.

    ``probabilities`` is one number or ``(n_features,)``; the other options are the same. ``W`` is (n_features,
    n_hidden), ``b`` (n_features,), and rows of features and of hidden activations have two axes.
    """

    def __init__(self, n_features: int, n_hidden: int, probabilities: ArrayLike = 0.05, **options: Any) -> None:
        p = as_numbers(probabilities, "probabilities").float()
        if p.ndim > 1:
            raise ValueError(f"probabilities of one model must be a number or ({n_features},), got {tuple(p.shape)}")
        super().__init__(1, n_features, n_hidden, p[None] if p.ndim else p, **options)
        self.W, self.b = self.W[0], self.b[0]

    def sample(self, n: int) -> torch.Tensor:
        """``n`` fresh rows of features, (n, n_features)."""
        return self.data.sample(n)[0]


def dimensionality(W: torch.Tensor) -> torch.Tensor:
    """Return the share of a dimension that each feature of ``W`` (..., n_features, n_hidden) has to itself, in [0, 1].

    D_i = ||W_i||^2 / sum_j (w_i . W_j)^2 with w_i = W_i / ||W_i|| (Elhage et al. 2022): 1/2 in an antipodal pair, 2/5
    in a pentagon, 0 if W_i = 0.
    """
    total = (normalize(W, dim=-1) @ W.mT).square().sum(-1)
    return torch.where(total > 0, W.norm(dim=-1).square() / total, 0.0)


def represented(W: torch.Tensor) -> torch.Tensor:
    """Mask (..., n_features) of the features with ||W_i|| > 0.5: those the model did not drop."""
    return W.norm(dim=-1) > REPRESENTED


def true_directions(W: torch.Tensor) -> torch.Tensor:
    """Unit directions (n_represented, n_hidden) of the represented features of one model ``W``."""
    return normalize(W[represented(W)], dim=-1)


def polygon(W: torch.Tensor) -> str:
    """Name the shape that the represented features of one model ``W`` (n_features, 2) form in the plane.

    "digon" (an antipodal pair), "triangle", ... "octagon" where no angle between neighbours is further than 10 degrees
    from the regular shape's, whatever the lengths; "single", "empty" for one feature and none; else "irregular N".
    """
    kept = W[represented(W)].double().numpy()
    n = len(kept)
    if n < 2:
        return ("empty", "single")[n]
    angles = np.sort(np.degrees(np.arctan2(kept[:, 1], kept[:, 0])))
    gaps = np.diff(angles, append=angles[0] + 360)
    regular = np.abs(gaps - 360 / n).max() <= BENT
    return POLYGONS[n] if regular and n in POLYGONS else f"irregular {n}"
