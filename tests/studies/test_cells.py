"""Cells of a comparison: ReLU is matched in L0, and a variant changes one thing only."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.sae import train_sae
from rkcnn_lib.studies import cells
from rkcnn_lib.vocabulary import DECODER_ONLY, FROZEN_DECODER, MINED, UNMINED, VARIANTS
from rkcnn_lib.worlds.activations.store import MemoryStore
from rkcnn_lib.worlds.toy import PlantedDictionary

RELU = {"model": "planted", "architecture": "relu", "k": 16}


def matched(l0_of, monkeypatch):
    """Return the L0 that the search ends at, and how many SAEs it trained, on a simulated curve of L0 by penalty."""
    tried = []

    def sae_unit(store, p, *rest):
        tried.append(p.l1)
        return SimpleNamespace(scalars={"l0": l0_of(p.l1)})

    monkeypatch.setattr(cells, "sae_unit", sae_unit)
    unit = cells.matched_unit(None, resolve("04_sae_compare", RELU), "random", 0, "cpu")
    return unit.scalars["l0"], len(tried)


@pytest.mark.parametrize(
    "l0_of",
    [
        lambda l1: 60 * math.exp(-l1 / 5),
        lambda l1: 40 / l1,
        lambda l1: 0.3 / l1,
        lambda l1: 200 / (1 + l1**2),
        lambda l1: 30 * l1**-0.3,
        lambda l1: 600 * l1**-0.5,
    ],
)
def test_the_search_meets_the_l0_asked_for_on_any_falling_curve(l0_of, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        l0, n_trained = matched(l0_of, monkeypatch)
    assert abs(l0 / 16 - 1) <= 0.01 and n_trained <= 5


def test_an_l0_out_of_reach_is_said_and_costs_few_trainings(monkeypatch):
    with pytest.warns(UserWarning, match="nearest to 16"):
        l0, n_trained = matched(lambda l1: 30 + 10 / (1 + l1), monkeypatch)
    assert l0 < 31 and n_trained <= 5


def test_topk_is_trained_once(monkeypatch):
    calls = []
    monkeypatch.setattr(cells, "sae_unit", lambda *given: calls.append(given))
    cells.matched_unit(None, resolve("04_sae_compare", {"model": "planted"}), "random", 0, "cpu")
    assert len(calls) == 1


@pytest.mark.parametrize("given", [{"l1": 2.0}, RELU | {"l1": 2.0, "front_k": [8]}])
def test_a_penalty_that_would_be_ignored_is_refused(given):
    with pytest.raises(ParameterError, match="l1"):
        resolve("04_sae_compare", given)


def test_a_variant_starts_from_its_arms_directions_and_changes_one_thing(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    p = resolve(
        "04_sae_compare",
        {"model": "planted", "expansion": 1.0, "k": 4, "steps": 5, "mining_rows": 4000, "encoder": "tied"},
    )  # fmt: skip
    X, _ = PlantedDictionary(32, 16, mean_active=2.0, random_state=0).sample(8000)
    store = MemoryStore(X)
    start = {arm: cells.initial_sae(store, p, arm, 0, "cpu") for arm in (UNMINED, *VARIANTS, MINED)}
    both, decoder_only, plain = start[MINED], start[DECODER_ONLY], start[UNMINED]
    torch.testing.assert_close(decoder_only.W_dec, both.W_dec)
    cosine = torch.nn.functional.cosine_similarity(decoder_only.W_enc, plain.W_enc, dim=0)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    torch.testing.assert_close(start[FROZEN_DECODER].W_dec, plain.W_dec)
    assert not cells.train_config(p, FROZEN_DECODER, 0).train_decoder
    assert cells.train_config(p, DECODER_ONLY, 0) == cells.train_config(p, MINED, 0)


def test_dead_latents_are_told_by_where_they_started_and_when_they_died():
    start = torch.tensor([0.0, 0.2, 0.3, 0.0, 0.0, 0.1])  # two mined ones, then four of the fill
    end = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.4, 0.0])
    found = cells.dead_latents(start, end, n_mined=2)
    assert (found["dead"], found["untrained_dead"]) == pytest.approx((4 / 6, 3 / 6))
    assert (found["dead_mined"], found["untrained_dead_mined"], found["died_mined"]) == pytest.approx((1, 0.5, 0.5))
    assert (found["dead_fill"], found["untrained_dead_fill"]) == pytest.approx((0.5, 0.5))
    assert (found["died_fill"], found["revived_fill"]) == pytest.approx((0.25, 0.25))
    assert found["dead"] == pytest.approx(found["untrained_dead"] + found["died"] - found["revived"])
    assert not any(name.endswith("_mined") for name in cells.dead_latents(start, end, n_mined=0))


def test_a_twin_is_the_same_arm_undrawn_with_a_seed_of_its_own_that_no_other_shares(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    seen = []

    def watched(store, config, training, twin=None, **rest):
        seen.append((training.seed, training.twin_weight, None if twin is None else twin.shape[1]))
        return train_sae(store, config, training, twin=twin, **rest)

    monkeypatch.setattr(cells, "train_sae", watched)
    X, _ = PlantedDictionary(32, 16, mean_active=2.0, random_state=0).sample(8000)
    given = {"model": "planted", "expansion": 1.0, "k": 4, "steps": 5, "mining_rows": 400, "encoder": "tied",
             "batch_size": 64, "heldout_rows": 200, "twin_weight": 3.0}  # fmt: skip
    for seed in (0, 1):
        cells.sae_unit(MemoryStore(X), resolve("04_sae_compare", given), UNMINED, seed, "cpu")
    assert seen == [(500, 0.0, None), (0, 3.0, 16), (501, 0.0, None), (1, 3.0, 16)]


def test_loss_is_judged_on_contexts_of_all_documents():
    contexts = torch.arange(100)[:, None].expand(100, 3)
    few = cells.evenly(contexts, 5)
    assert few[:, 0].tolist() == [0, 25, 50, 74, 99] and cells.evenly(contexts, 200).equal(contexts)
