"""Distributed alignment search finds the read subspace, on held-out pairs too, and leaves the model as it was."""

import pytest
import torch

from rkcnn_lib.measure.causal import clean_logits, donor_activations, patched_logits
from rkcnn_lib.measure.effects import effects
from rkcnn_lib.measure.subspaces import align_subspace
from tests.measure.planted_reader import HOOK, D, PlantedReader


@pytest.fixture(scope="module")
def lm():
    return PlantedReader(3)


def accuracy(lm, basis):
    judged = lm.pairs(seed=99)
    patched = patched_logits(lm, judged, HOOK, basis, "ablate", donor_activations(lm, judged, HOOK))
    return float(effects(clean_logits(lm, judged), patched, judged)["interchanged"].mean())


def test_the_read_subspace_is_learnt_from_a_random_start(lm):
    basis, history = align_subspace(lm, lm.pairs(seed=1), HOOK, 2, steps=150)
    overlap = (basis.T @ lm.basis(0, 1)).square().sum() / 2
    # not 1: it may borrow from the decoy, whose variation pushes the read coordinates further; chance is 1/12
    assert overlap > 0.5 and accuracy(lm, basis) > 0.95 and history[-1] < 0.3 * history[0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(2).double())


def test_a_start_is_where_it_begins(lm):
    basis, history = align_subspace(lm, lm.pairs(seed=1), HOOK, 2, steps=1, lr=1e-6, start=lm.basis(0, 1))
    assert (basis.T @ lm.basis(0, 1)).square().sum() / 2 > 0.999 and len(history) == 1


def test_the_model_keeps_its_weights_and_their_gradients(lm):
    before = lm.embed.detach().clone()
    align_subspace(lm, lm.pairs(), HOOK, 1, steps=2)
    assert lm.embed.requires_grad and lm.embed.grad is None and torch.equal(before, lm.embed)


def test_answers_to_be_kept_hold_the_subspace_back(lm):
    moved, _ = align_subspace(lm, lm.pairs(seed=1), HOOK, 2, steps=80)
    held, _ = align_subspace(lm, lm.pairs(seed=1), HOOK, 2, steps=80, keep_answers=lm.pairs(seed=1))
    assert accuracy(lm, moved) > accuracy(lm, held)


def test_ranks_steps_and_starts_that_cannot_be_are_refused(lm):
    for rank in (0, D + 1):
        with pytest.raises(ValueError, match=f"rank={rank}"):
            align_subspace(lm, lm.pairs(), HOOK, rank, steps=1)
    with pytest.raises(ValueError, match="steps=0"):
        align_subspace(lm, lm.pairs(), HOOK, 1, steps=0)
    with pytest.raises(ValueError, match="start is"):
        align_subspace(lm, lm.pairs(), HOOK, 2, steps=1, start=torch.eye(D))
