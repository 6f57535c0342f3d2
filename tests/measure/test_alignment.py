"""Distributed alignment search finds the read subspace, on held-out pairs too, and leaves the model as it was."""

import pytest
import torch

from rkcnn_lib.measure.causal import align_subspace, clean_logits, donor_activations, patched_logits, random_basis
from rkcnn_lib.measure.effects import effects
from tests.measure.planted_reader import HOOK, D, PlantedReader


@pytest.fixture(scope="module")
def lm():
    return PlantedReader(3)


def accuracy(lm, basis):
    judged = lm.pairs(seed=99)
    patched = patched_logits(lm, judged, HOOK, basis, "ablate", donor_activations(lm, judged, HOOK))
    return float(effects(clean_logits(lm, judged), patched, judged)["interchanged"].mean())


def start(rank=2):
    return random_basis(D, rank, torch.Generator().manual_seed(0))


def test_the_read_subspace_is_learnt_from_a_random_start(lm):
    basis = align_subspace(lm, lm.pairs(seed=1), HOOK, start(), steps=150)
    overlap = (basis.T @ lm.basis(0, 1)).square().sum() / 2
    # not 1: it may borrow from the decoy, whose variation pushes the read coordinates further; chance is 1/12
    assert overlap > 0.5 and accuracy(lm, basis) > 0.95 > accuracy(lm, start())
    torch.testing.assert_close(basis.T @ basis, torch.eye(2).double())


def test_a_start_is_where_it_begins(lm):
    basis = align_subspace(lm, lm.pairs(seed=1), HOOK, lm.basis(0, 1), steps=1)
    assert (basis.T @ lm.basis(0, 1)).square().sum() / 2 > 0.99


def test_the_model_keeps_its_weights_and_their_gradients(lm):
    before = lm.embed.detach().clone()
    align_subspace(lm, lm.pairs(), HOOK, start(1), steps=2)
    assert lm.embed.requires_grad and lm.embed.grad is None and torch.equal(before, lm.embed)


def test_answers_to_be_kept_hold_the_subspace_back(lm):
    moved = align_subspace(lm, lm.pairs(seed=1), HOOK, start(), steps=80)
    held = align_subspace(lm, lm.pairs(seed=1), HOOK, start(), steps=80, keep_answers=lm.pairs(seed=1))
    assert accuracy(lm, moved) > accuracy(lm, held)
