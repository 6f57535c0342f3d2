"""Interventions are exact where the truth is known: on projections, on a planted linear model, on the embedded one."""

from types import SimpleNamespace

import pytest
import torch

from rkcnn_lib.measure.causal import (
    PromptPairs,
    clean_logits,
    donor_activations,
    latents_part,
    mix,
    orthonormal_basis,
    patched_logits,
    random_basis,
    run_edited,
    share_in,
    steered_continuation,
)
from rkcnn_lib.measure.effects import effects, latent_attribution
from rkcnn_lib.sae import SAE, SAEConfig
from tests.measure.planted_reader import HOOK, D, PlantedReader


@pytest.fixture(scope="module")
def lm():
    return PlantedReader(0)


@pytest.fixture(scope="module")
def pairs(lm):
    return lm.pairs()


@pytest.fixture(scope="module")
def atlas():
    from rkcnn_lib.worlds import load_model

    return load_model("atlas", device="cpu")


def whole_space(d, seed=0):
    return random_basis(d, d, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("replacement", ["donor", "mean", "zero"])
def test_keeping_the_whole_space_is_the_clean_run_and_nothing_the_full_replacement(lm, pairs, replacement):
    donated = donor_activations(lm, pairs, HOOK)
    values = {"donor": donated, "mean": donated.mean((0, 1)), "zero": torch.zeros(D)}[replacement]
    clean = clean_logits(lm, pairs)
    torch.testing.assert_close(
        patched_logits(lm, pairs, HOOK, whole_space(D), "keep", values), clean, atol=1e-5, rtol=0
    )
    nothing = patched_logits(lm, pairs, HOOK, None, "keep", values)
    expected = values.expand(len(pairs), 1, D)[:, 0] @ lm.readout + lm.bias
    torch.testing.assert_close(nothing, expected, atol=1e-4, rtol=0)
    everything = patched_logits(lm, pairs, HOOK, whole_space(D), "ablate", values)
    torch.testing.assert_close(everything, nothing, atol=1e-5, rtol=0)


def test_the_read_subspace_is_sufficient_and_the_decoy_does_nothing(lm, pairs):
    donated, clean = donor_activations(lm, pairs, HOOK), clean_logits(lm, pairs)
    read, decoy = lm.basis(0, 1), lm.basis(2, 3)

    def effect(A, mode):
        return effects(clean, patched_logits(lm, pairs, HOOK, A, mode, donated), pairs)

    assert effect(read, "keep")["kl"].max() < 1e-5 and effect(read, "ablate")["interchanged"].mean() == 1
    assert effect(decoy, "ablate")["kl"].max() < 1e-5 and effect(decoy, "keep")["interchanged"].mean() == 1


@pytest.mark.parametrize("hook", ["resid_pre", "resid_post", "mlp_out", "mlp_post", "attn_out"])
def test_both_ends_are_exact_at_every_hook_of_the_embedded_model(atlas, hook):
    from rkcnn_lib.worlds import hook_name

    generator = torch.Generator().manual_seed(0)
    base, donor = torch.randint(3, 200, (2, 6, 9), generator=generator)
    found = PromptPairs(base, donor, base[:, 0], donor[:, 0], positions=torch.tensor([[2, 8]] * 6))
    for layer in (0, 3):
        name = hook_name(hook, layer)
        donated = donor_activations(atlas, found, name)
        whole = whole_space(donated.shape[-1])
        kept = patched_logits(atlas, found, name, whole, "keep", donated)
        torch.testing.assert_close(kept, clean_logits(atlas, found), atol=1e-5, rtol=0)
        nothing = patched_logits(atlas, found, name, None, "keep", donated)
        torch.testing.assert_close(
            patched_logits(atlas, found, name, whole, "ablate", donated), nothing, atol=1e-5, rtol=0
        )


def test_exchanging_the_last_layer_at_the_last_token_is_the_donors_answer(atlas):
    base, donor = torch.randint(3, 200, (2, 4, 7), generator=torch.Generator().manual_seed(1))
    found = PromptPairs(base, donor, base[:, 0], donor[:, 0])
    name = "blocks.3.hook_resid_post"
    patched = patched_logits(atlas, found, name, None, "keep", donor_activations(atlas, found, name))
    there = PromptPairs(donor, base, base[:, 0], donor[:, 0])
    torch.testing.assert_close(patched, clean_logits(atlas, there), atol=1e-4, rtol=0)


def test_rows_filled_up_on_the_right_answer_as_they_do_alone(atlas):
    tokens = torch.randint(3, 200, (2, 8), generator=torch.Generator().manual_seed(2))
    filled = tokens.clone()
    filled[0, 5:] = 0
    together = PromptPairs(filled, filled, tokens[:, 0], tokens[:, 1], lengths=torch.tensor([5, 8]))
    assert together.positions.tolist() == [[4], [7]]
    short = PromptPairs(tokens[:1, :5], tokens[:1, :5], tokens[:1, 0], tokens[:1, 1])
    torch.testing.assert_close(clean_logits(atlas, together)[:1], clean_logits(atlas, short), atol=1e-4, rtol=1e-4)


def test_donors_are_read_once_however_many_interventions_follow(lm, pairs, monkeypatch):
    reads = []
    original = PlantedReader.run_with_cache
    monkeypatch.setattr(PlantedReader, "run_with_cache", lambda *a, **k: reads.append(1) or original(*a, **k))
    donated = donor_activations(lm, pairs, HOOK)
    for A in (None, lm.basis(0), lm.basis(1, 2)):
        patched_logits(lm, pairs, HOOK, A, "ablate", donated)
    assert len(reads) == 1


def test_kept_and_ablated_parts_add_up():
    clean, donor = torch.randn(5, D), torch.randn(5, D)
    basis = orthonormal_basis(torch.randn(3, D))
    both = mix(clean, donor, basis, "keep") + mix(clean, donor, basis, "ablate")
    torch.testing.assert_close(both, clean + donor)


def test_mix_equals_the_obvious_loop():
    clean, donor, rows = torch.randn(4, D), torch.randn(4, D), torch.randn(2, D)
    basis = orthonormal_basis(rows)
    projector = torch.linalg.pinv(rows) @ rows
    for i in range(4):
        expected = projector @ clean[i] + (torch.eye(D) - projector) @ donor[i]
        torch.testing.assert_close(mix(clean, donor, basis, "keep")[i], expected, atol=1e-5, rtol=1e-4)


def planted_sae(lm):
    """An SAE whose latents 0-3 are the read dimensions with both signs, 4-7 the decoy's."""
    sae = SAE(SAEConfig(D, 8, architecture="relu", l1=1.0))
    rows = torch.cat([lm.Q[:, [0, 1]].T, -lm.Q[:, [0, 1]].T, lm.Q[:, [2, 3]].T, -lm.Q[:, [2, 3]].T])
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def test_exchanging_latents_equals_exchanging_the_subspace_they_span(lm, pairs):
    sae, donated = planted_sae(lm), donor_activations(lm, pairs, HOOK)
    by_latents = patched_logits(lm, pairs, HOOK, latents_part(sae, torch.arange(4)), "ablate", donated)
    by_span = patched_logits(lm, pairs, HOOK, lm.basis(0, 1), "ablate", donated)
    torch.testing.assert_close(by_latents, by_span, atol=1e-3, rtol=1e-4)


def test_attribution_finds_the_latents_that_are_read(lm, pairs):
    found = latent_attribution(lm, pairs, HOOK, planted_sae(lm))
    assert found.shape == (8,) and found[:4].min() > 100 * found[4:].max()


def test_steering_by_nothing_is_the_models_own_continuation_and_steering_far_is_not(atlas):
    prompt = torch.tensor([1, 30, 31, 32])
    own = prompt
    for _ in range(3):
        own = torch.cat([own, atlas(own[None], return_type="logits")[0, -1].argmax()[None]])
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    name = "blocks.1.hook_resid_post"
    assert steered_continuation(atlas, prompt, name, direction, 0.0, 3) == own[4:].tolist()
    assert steered_continuation(atlas, prompt, name, direction, 50.0, 3) != own[4:].tolist()


def test_the_empty_subspace_has_no_share():
    x = torch.randn(3, D)
    assert not share_in(x, None).any()


def test_a_hook_whose_activations_fit_no_mask_is_refused_by_name():
    def run_with_hooks(tokens, return_type, fwd_hooks):
        return fwd_hooks[0][1](torch.ones(7, 2))

    odd = SimpleNamespace(run_with_hooks=run_with_hooks)
    with pytest.raises(ValueError, match=r"hook_scores gives \(7, 2\); needed is \(contexts, positions, d\)"):
        run_edited(odd, torch.ones(2, 3), "hook_scores", torch.ones(2, 3, dtype=torch.bool), lambda x: x)
