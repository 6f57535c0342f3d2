"""Random subsets: of coordinates, or rotated (random subspaces), drawn without duplicates while they last."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from rkcnn_lib.probe.inputs import KINDS, check_random_state
from rkcnn_lib.tensors import one_of, whole


@dataclass(frozen=True)
class Subsets:
    """Subsets of m dimensions of a d-dimensional space: coordinate ones first, rotated ones after them.

    `indices` (n_coordinate, m) int64: sorted coordinates of each coordinate subset, no two rows equal. `bases`
    (n_rotated, m, d) float32: orthonormal rows that span each rotated subset.
    """

    d: int
    indices: torch.Tensor
    bases: torch.Tensor

    @property
    def n_coordinate(self) -> int:
        return len(self.indices)

    @property
    def n_rotated(self) -> int:
        return len(self.bases)

    @property
    def size(self) -> int:
        return self.indices.shape[1]

    def __len__(self) -> int:
        return self.n_coordinate + self.n_rotated

    def basis(self, i: int) -> torch.Tensor:
        """Orthonormal basis (m, d) of subset i."""
        if i >= self.n_coordinate:
            return self.bases[i - self.n_coordinate]
        return torch.nn.functional.one_hot(self.indices[i], self.d).to(self.bases.dtype)

    def restrict(self, X: torch.Tensor, i: int) -> torch.Tensor:
        """Coordinates (n, m) of the rows of X (n, d) within subset i."""
        if i < self.n_coordinate:
            return X[:, self.indices[i]]
        return X @ self.bases[i - self.n_coordinate].to(X.dtype).T

    def restrict_each(self, rows: torch.Tensor, part: slice) -> torch.Tensor:
        """Coordinates (c, k, m) of rows (c, k, d), k for each of the c subsets in ``part``, within that subset."""
        indices, first = self.indices[part], self.n_coordinate
        bases = self.bases[max(part.start - first, 0) : max(part.stop - first, 0)].to(rows.dtype)
        inside, rotated = rows.split([len(indices), len(bases)])
        return torch.cat([inside.gather(2, indices[:, None].expand(-1, rows.shape[1], -1)), rotated @ bases.mT])

    def take(self, which: torch.Tensor) -> Subsets:
        """The subsets with the sorted numbers `which` (s,) int64."""
        rotated = which[which >= self.n_coordinate] - self.n_coordinate
        return Subsets(self.d, self.indices[which[which < self.n_coordinate]], self.bases[rotated])

    def to(self, device: str | torch.device) -> Subsets:
        """The same subsets on another device."""
        return Subsets(self.d, self.indices.to(device), self.bases.to(device))

    def expand(self, columns: torch.Tensor, d: int) -> Subsets:
        """The same subsets seen from a larger space, of which this one holds only some `columns`."""
        bases = self.bases.new_zeros(self.n_rotated, self.size, d)
        bases[:, :, columns] = self.bases
        return Subsets(d, columns[self.indices], bases)


def _coordinate_subsets(d: int, m: int, n: int, rng: np.random.RandomState) -> np.ndarray:
    """min(n, d choose m) distinct subsets in random order, (n_distinct, m)."""
    n_possible = math.comb(d, m)
    if n_possible <= 2 * n:  # few: list them all, for rejection would wait long for the last ones
        everything = np.array(list(itertools.combinations(range(d), m)))
        return everything[rng.permutation(n_possible)[:n]]
    seen: dict[bytes, np.ndarray] = {}
    while len(seen) < n:
        batch = min(n, 1 + 2**22 // d)
        draws = np.sort(np.argsort(rng.random_sample((batch, d)), axis=1)[:, :m], axis=1)
        for row in draws:
            seen.setdefault(row.tobytes(), row)
    return np.array(list(seen.values())[:n])


def draw_subsets(
    d: int,
    subset_size: int,
    n_subsets: int,
    kind: str = "coordinate",
    random_state: int | np.random.RandomState | None = 0,
) -> Subsets:
    """Draw `n_subsets` random subsets of `subset_size` out of d dimensions (Lu & Gweon 2025, step 1).

    Coordinate subsets are drawn without duplicates; where there are fewer than asked for (d=5, m=2: ten) rotated ones
    make up the number. With ``kind="rotated"`` all are uniform random orthonormal subspaces, so that nothing depends on
    an arbitrary basis. ValueError if a number is out of its range or the kind is unknown.
    """
    one_of("kind", kind, KINDS)
    d, n_subsets = whole("d", d), whole("n_subsets", n_subsets)
    m = whole("subset_size", subset_size, 1, d)
    rng = check_random_state(random_state)
    indices, bases = np.zeros((0, m), dtype=np.int64), np.zeros((0, m, d), dtype=np.float32)
    if kind == "coordinate":
        indices = _coordinate_subsets(d, m, n_subsets, rng).astype(np.int64)
    if n_rotated := n_subsets - len(indices):
        q, _ = np.linalg.qr(rng.standard_normal((n_rotated, d, m)))
        bases = np.ascontiguousarray(q.transpose(0, 2, 1), dtype=np.float32)
    return Subsets(d, torch.from_numpy(indices), torch.from_numpy(bases))
