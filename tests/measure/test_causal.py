"""Interventions are exact where the truth is known: on projections and on a planted linear model."""

from types import SimpleNamespace

import pytest
import torch

from rkcnn_lib.measure.causal import (
    PromptPairs,
    clean_logits,
    effects,
    mix,
    orthonormal_basis,
    patched_logits,
    recovered_share,
)

HOOK = "blocks.0.hook_resid_post"
D, VOCAB = 8, 8


class LinearModel(torch.nn.Module):
    """Embeds tokens, then reads logits off the first two of eight dimensions: those alone are causal."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.randn(VOCAB, D, generator=generator)
        self.readout = torch.zeros(D, VOCAB)
        self.readout[:2] = torch.randn(2, VOCAB, generator=generator)

    def forward(self, tokens, return_type="logits"):
        return self.run_with_hooks(tokens)

    def run_with_hooks(self, tokens, return_type="logits", fwd_hooks=()):
        activation = self.embed[tokens]
        for name, function in fwd_hooks:
            assert name == HOOK
            activation = function(activation, SimpleNamespace(name=name))
        return activation @ self.readout

    def run_with_cache(self, tokens, names_filter):
        return self(tokens), {HOOK: self.embed[tokens]}


@pytest.fixture
def pairs():
    tokens = torch.arange(VOCAB)
    return PromptPairs(tokens.view(-1, 1), tokens.roll(1).view(-1, 1), answer=tokens, foil=tokens.roll(1))


AXES = torch.eye(D)


def test_keeping_the_whole_space_is_the_clean_run(pairs):
    lm = LinearModel()
    whole = orthonormal_basis(torch.randn(D, D))
    kept = patched_logits(lm, pairs, HOOK, whole, "keep")
    torch.testing.assert_close(kept, clean_logits(lm, pairs.base), atol=1e-5, rtol=0)


def test_keeping_nothing_is_the_full_resample_ablation(pairs):
    lm = LinearModel()
    donor = clean_logits(lm, pairs.donor)
    torch.testing.assert_close(patched_logits(lm, pairs, HOOK, None, "keep"), donor)
    whole = orthonormal_basis(torch.randn(D, D))
    torch.testing.assert_close(patched_logits(lm, pairs, HOOK, whole, "ablate"), donor, atol=1e-5, rtol=0)


def test_the_read_subspace_is_sufficient_and_the_unread_one_is_not(pairs):
    lm = LinearModel()
    clean = clean_logits(lm, pairs.base)
    read, unread = orthonormal_basis(AXES[:2]), orthonormal_basis(AXES[2:4])
    assert effects(clean, patched_logits(lm, pairs, HOOK, read, "keep"), pairs)["kl"].max() < 1e-6
    assert effects(clean, patched_logits(lm, pairs, HOOK, unread, "ablate"), pairs)["kl"].max() < 1e-6
    assert effects(clean, patched_logits(lm, pairs, HOOK, unread, "keep"), pairs)["kl"].mean() > 0.05


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


def test_dependent_directions_do_not_count_twice():
    rows = torch.cat([AXES[:2], AXES[:2] * 3])
    assert orthonormal_basis(rows).shape == (D, 2)


def test_interchange_is_counted_where_the_donor_answers(pairs):
    logits = torch.nn.functional.one_hot(pairs.foil, VOCAB).float()
    found = effects(logits, logits, pairs)
    assert found["interchanged"].mean() == 1 and found["top1"].mean() == 0 and found["kl"].max() == 0


def test_recovered_share_runs_from_empty_to_whole():
    assert recovered_share(0.0, 0.0, 2.0) == 0 and recovered_share(2.0, 0.0, 2.0) == 1
    with pytest.raises(ValueError, match="nothing to share"):
        recovered_share(1.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [(torch.zeros(0, D), "empty"), (torch.zeros(2, D), "zero"), (torch.full((1, D), torch.nan), "NaN")],
)
def test_directions_that_span_nothing_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        orthonormal_basis(rows)


def test_mismatched_prompts_and_subspaces_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        PromptPairs(torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), torch.zeros(2).long(), torch.zeros(2).long())
    with pytest.raises(ValueError, match="dimensions"):
        mix(torch.randn(2, D), torch.randn(2, D), torch.eye(D + 1), "keep")
    with pytest.raises(ValueError, match="mode"):
        mix(torch.randn(2, D), torch.randn(2, D), torch.eye(D), "erase")
