"""Subspaces: bases of what is spanned, random ones that match rank and variance, and what a weight can read."""

import pytest
import torch

from rkcnn_lib.measure.causal import (
    captured_variance,
    donor_activations,
    leading_basis,
    orthonormal_basis,
    patched_logits,
    random_basis_of_variance,
    rowspace_part,
)
from rkcnn_lib.measure.effects import effects
from tests.measure.planted_reader import HOOK, D, PlantedReader

AXES = torch.eye(D)


def test_dependent_directions_do_not_count_twice():
    rows = torch.cat([AXES[:2], AXES[:2] * 3])
    assert orthonormal_basis(rows).shape == (D, 2)
    basis = leading_basis(torch.cat([rows, AXES[5:6]]), 3)
    assert basis.shape == (D, 3) and float((AXES[5].double() @ basis).norm()) == pytest.approx(1)


def test_a_rank_above_what_directions_span_is_refused():
    with pytest.raises(ValueError, match="mined supplies 2"):
        leading_basis(AXES[:2], 3, "mined")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_random_subspaces_of_equal_variance_hold_it_and_differ_from_draw_to_draw(share):
    X = torch.randn(400, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, D)
    draws = [random_basis_of_variance(X, 4, share, torch.Generator().manual_seed(s)) for s in range(3)]
    for basis in draws:
        assert captured_variance(basis, X) == pytest.approx(share, abs=2e-3) or share == 0.7
        torch.testing.assert_close(basis.T @ basis, torch.eye(4).double())
    overlap = (draws[0].T @ draws[1]).square().sum() / 4
    assert overlap < 0.95


def test_a_variance_out_of_reach_gives_the_nearest_in_reach():
    X = torch.randn(500, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, D)
    top = torch.linalg.svd(X - X.mean(0), full_matrices=False)[2][:2].T
    basis = random_basis_of_variance(X, 2, 0.99, torch.Generator().manual_seed(1))
    assert captured_variance(basis, X) == pytest.approx(captured_variance(top, X), rel=0.02)


def test_the_rowspace_part_is_what_the_weight_reads_and_nothing_else():
    weight = torch.zeros(D, 5)
    weight[:5] = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    mixed = orthonormal_basis((AXES[0] + AXES[10])[None])
    torch.testing.assert_close(rowspace_part(mixed, weight).abs(), AXES[:1].T.double())
    assert rowspace_part(orthonormal_basis(AXES[7:9]), weight) is None
    inside = orthonormal_basis(AXES[1:3])
    part = rowspace_part(inside, weight)
    torch.testing.assert_close(part @ part.T, inside @ inside.T)


class Dormant(PlantedReader):
    """The illusion of Makelov et al. 2023: the read direction lies still, the unread one varies with the label."""

    def __init__(self):
        super().__init__(0)
        still = torch.eye(D) - self.Q[:, :2] @ self.Q[:, :2].T
        self.embed.data = self.embed.data @ still


def test_a_subspace_half_in_the_nullspace_shows_an_effect_that_its_rowspace_part_has_not():
    lm = Dormant()
    pairs = lm.pairs()
    donated = donor_activations(lm, pairs, HOOK)
    clean = patched_logits(lm, pairs, HOOK, None, "ablate", donated)
    mixed = orthonormal_basis((lm.Q[:, :2] + lm.Q[:, 2:4]).T)  # each direction half read, half not
    inside = rowspace_part(mixed, lm.readout)
    unread = lm.basis(2, 3)

    def moved(A):
        return effects(clean, patched_logits(lm, pairs, HOOK, A, "ablate", donated), pairs)["kl"].mean()

    assert moved(mixed) > 0.1 and moved(inside) < 1e-6 and moved(unread) < 1e-6
