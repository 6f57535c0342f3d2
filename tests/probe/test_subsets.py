from __future__ import annotations

import math

import pytest
import torch

from rkcnn_lib.probe import draw_subsets


@pytest.mark.parametrize(("d", "m", "h"), [(5, 2, 10), (8, 3, 40), (64, 8, 500), (6, 6, 1), (7, 1, 7)])
def test_coordinate_subsets_are_distinct_while_they_last(d: int, m: int, h: int) -> None:
    subsets = draw_subsets(d, m, h, random_state=3)
    assert len({tuple(row) for row in subsets.indices.tolist()}) == h == len(subsets) == subsets.n_coordinate
    assert all(len(set(row)) == m and max(row) < d for row in subsets.indices.tolist())


def test_rotated_subsets_make_up_the_number_and_the_result_says_so() -> None:
    subsets = draw_subsets(5, 2, 100)
    assert (subsets.n_coordinate, subsets.n_rotated, len(subsets)) == (10, 90, 100)
    assert math.comb(5, 2) == len({tuple(row) for row in subsets.indices.tolist()})


def test_every_basis_is_orthonormal_and_restricts_as_it_should() -> None:
    subsets = draw_subsets(6, 4, 20)
    X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    for i in (0, 14, 15, 19):
        basis = subsets.basis(i)
        torch.testing.assert_close(basis @ basis.T, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(subsets.restrict(X, i), X @ basis.T, atol=1e-5, rtol=1e-5)
    for part in (slice(2, 14), slice(13, 18), slice(16, 20)):  # coordinate subsets, both, rotated ones
        each = torch.stack([subsets.restrict(X[i : i + 3], i) for i in range(part.start, part.stop)])
        rows = torch.stack([X[i : i + 3] for i in range(part.start, part.stop)])
        torch.testing.assert_close(subsets.restrict_each(rows, part), each, atol=1e-5, rtol=1e-5)


def test_rotated_subspaces_favour_no_axis() -> None:
    bases = draw_subsets(10, 3, 2000, kind="rotated").bases
    energy = bases.square().sum(1).mean(0)  # 3/10 of each axis lies in a random 3-dimensional subspace
    torch.testing.assert_close(energy, torch.full((10,), 0.3), atol=0.03, rtol=0)


def test_same_seed_gives_the_same_subsets_and_another_seed_others() -> None:
    a, b, c = (draw_subsets(30, 4, 50, random_state=s).indices for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_expanded_subsets_live_in_the_named_columns() -> None:
    subsets = draw_subsets(3, 2, 5).expand(torch.tensor([1, 4, 6]), 8)
    assert set(subsets.indices.flatten().tolist()) <= {1, 4, 6}
    assert subsets.bases[:, :, [0, 2, 3, 5, 7]].abs().sum() == 0 and subsets.n_rotated == 2


@pytest.mark.parametrize("arguments", [(5, 6, 3), (5, 0, 3), (5, 2, 0)])
def test_impossible_sizes_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="given"):
        draw_subsets(*arguments)
    with pytest.raises(ValueError, match="unknown"):
        draw_subsets(5, 2, 3, kind="round")
