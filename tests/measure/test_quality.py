from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from transformer_lens import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from rkcnn_lib.measure.quality import _ABLATED, explained_variance, quality
from rkcnn_lib.sae import SAE, SAEConfig

D = 8
HOOK = "blocks.1.hook_mlp_out"


def perfect_sae(d: int = D) -> SAE:
    """relu(x) - relu(-x) = x, exactly."""
    sae = SAE(SAEConfig(d, 2 * d, "relu", l1=0.0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def empty_sae(b_dec: torch.Tensor) -> SAE:
    """No latent ever fires."""
    sae = SAE(SAEConfig(len(b_dec), 4, "jumprelu"))
    with torch.no_grad():
        sae.threshold.fill_(math.inf)
        sae.b_dec.copy_(b_dec)
    return sae


def rows(n: int = 3000, d: int = D, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) + 5.0


def test_perfect_sae_scores_one():
    result = quality(perfect_sae(), rows())
    assert result["explained_variance"] == 1.0 == result["explained_variance_standardised"]
    assert result["l0"] == D and result["n_tokens"] == 3000


def test_the_mean_alone_explains_nothing():
    X = rows()
    result = quality(empty_sae(X.mean(0)), X)
    assert result["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert result["explained_variance_standardised"] == pytest.approx(0, abs=1e-6)
    assert result["l0"] == 0.0 and result["dead"] == 1.0


def test_explained_variance_equals_the_definition():
    X = rows()
    sae = SAE(SAEConfig(D, 32, k=3))
    with torch.no_grad():
        x, x_hat = X.double().numpy(), sae(X).double().numpy()
    error = ((x - x_hat) ** 2).sum(1).mean()
    expected = 1 - error / ((x**2).sum(1).mean() - (x.mean(0) ** 2).sum())
    standardised = np.mean(1 - ((x - x_hat) ** 2).mean(0) / x.var(0))
    for given in (X, X.numpy()):
        result = quality(sae, given)
        assert result["explained_variance"] == pytest.approx(expected, abs=1e-6)
        assert result["explained_variance_standardised"] == pytest.approx(standardised, abs=1e-6)
    assert explained_variance(X, sae(X).detach()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shrunk", [0.5, 1.0, 2.0])
def test_shrinkage_is_found_by_both_ratios(shrunk):
    sae = perfect_sae()
    with torch.no_grad():
        sae.W_dec.mul_(shrunk)
    result = quality(sae, rows())
    assert result["l2_ratio"] == pytest.approx(shrunk) == result["relative_reconstruction_bias"]


def test_reconstruction_bias_is_the_scale_that_minimises_the_error():
    X, sae = rows(), SAE(SAEConfig(D, 32, k=3))
    x, x_hat = X.double(), sae(X).detach().double()
    best = minimize_scalar(lambda g: float((x_hat / g - x).square().sum()), bracket=(0.5, 1.5)).x
    result = quality(sae, X)
    assert result["relative_reconstruction_bias"] == pytest.approx(best, rel=1e-5)
    assert result["l2_ratio"] == pytest.approx(float(x_hat.norm(dim=1).mean() / x.norm(dim=1).mean()), rel=1e-6)


def test_one_large_dimension_does_not_hide_the_others_when_standardised():
    X = rows()
    X[:, 0] *= 1000
    X_hat = X.clone()
    X_hat[:, 1:] = X[:, 1:].mean(0)
    sae = perfect_sae()
    with torch.no_grad():  # reconstructs the large dimension alone
        sae.W_dec[[*range(1, D), *range(D + 1, 2 * D)]] = 0
        sae.b_dec.copy_(X.mean(0))
        sae.b_dec[0] = 0
    result = quality(sae, X)
    assert result["explained_variance"] > 0.99
    assert result["explained_variance_standardised"] == pytest.approx(1 / D, abs=0.01)


def test_variance_survives_a_mean_far_larger_than_the_spread():
    X = 1e4 + torch.randn(5000, D, generator=torch.Generator().manual_seed(0))
    assert explained_variance(X, X.mean(0).expand_as(X)) == pytest.approx(0, abs=1e-3)


def test_firing_is_counted_latent_by_latent():
    X = torch.zeros(1000, 4)
    X[:, 0] = 1.0  # fires always
    X[::10, 1] = 1.0  # fires on a tenth
    X[499, 2] = 1.0  # fires once, on the 500th token
    X[:, 3] = -torch.arange(1000.0)  # never
    sae = SAE(SAEConfig(4, 4, "relu", l1=0.0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(4))
        sae.W_enc.copy_(torch.eye(4))
    result = quality(sae, X)
    assert result["density"].tolist() == [1.0, 0.1, 0.001, 0.0]
    assert result["l0"] == pytest.approx(1.101)
    assert result["dead"] == 0.25 and result["live"] == 3 and result["dense"] == 0.25  # a tenth is not above it


def test_any_object_that_encodes_and_decodes_will_do():
    class Plain:
        def __init__(self, sae):
            self.encode, self.decode = sae.encode, sae.decode

    sae = SAE(SAEConfig(D, 32, k=3))
    with torch.no_grad():
        plain, ours = quality(Plain(sae), rows()), quality(sae, rows())
    assert torch.equal(plain["density"], ours["density"])
    assert plain["explained_variance"] == pytest.approx(ours["explained_variance"], abs=1e-9)


def test_bad_rows_are_refused():
    X = rows(50)
    sae = perfect_sae()
    spoiled = X.clone()
    spoiled[7, 3] = torch.nan
    for given, named in [
        (X[:0], "at least 1 row"),
        (X[:, :5], "width 5; this SAE reads d_in=8"),
        (spoiled, "NaN"),
        (torch.ones(50, D), "do not vary"),
        (X[0], r"X has shape \(8,\)"),
        ("rows", "X cannot be read"),
    ]:
        with pytest.raises(ValueError, match=named):
            quality(sae, given)
    with pytest.raises(ValueError, match="same rows in the same order"):
        explained_variance(X, X[:-1])
    for alone in ({"tokens": torch.zeros(2, 5, dtype=torch.long)}, {"lm": object()}, {"hook_name": HOOK}):
        with pytest.raises(ValueError, match="together"):
            quality(sae, X, **alone)


# --- inside a language model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), tokenizer=None, device="cpu")


@pytest.fixture(scope="module")
def inside(lm):
    """Contexts, and the activations that pass the hook from position 1 on."""
    tokens = torch.randint(1, 50, (12, 9), generator=torch.Generator().manual_seed(0))  # the bridge calls 0 special
    seen = []
    with torch.no_grad():
        lm.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(HOOK, lambda x, hook: seen.append(x[:, 1:]))])
    return tokens, torch.cat(seen).flatten(0, 1)


def test_perfect_sae_costs_nothing(lm, inside):
    tokens, X = inside
    result = quality(perfect_sae(16), X, lm=lm, tokens=tokens, hook_name=HOOK, contexts_per_batch=5)
    assert result["delta_ce"] == 0.0 and result["kl"] == 0.0
    assert result["ce_sae"] == result["ce_clean"]
    assert result["explained_variance_in_model"] == 1.0


@pytest.mark.parametrize("given", [True, False], ids=["the store's mask", "the tokenizer's special tokens"])
def test_what_no_sae_is_trained_on_is_neither_replaced_nor_a_target(lm, inside, given):
    """Exact on ordinary rows, the mean of text on those of special tokens: such an SAE costs nothing."""
    special, (tokens, X) = 7, inside
    tokens = tokens.clone()
    tokens[:, [3, 6]] = special
    mask = tokens != special
    mask[:, 0] = False
    with torch.no_grad():
        log_probs = lm(tokens, return_type="logits").log_softmax(-1)[:, :-1]

    class Speaking:
        run_with_hooks = staticmethod(lm.run_with_hooks)
        tokenizer = SimpleNamespace(all_special_ids=[special])

    seen = []
    lm.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(HOOK, lambda x, hook: seen.append(x.detach()))])
    acts = torch.cat(seen)
    spoiled = {tuple(row.tolist()) for row in acts[~mask]}

    class Spoiling:
        encode = staticmethod(lambda x: x)

        def decode(self, z):
            bad = torch.tensor([tuple(row.tolist()) in spoiled for row in z])
            return torch.where(bad[:, None], X.mean(0), z)

    options = {"lm": Speaking(), "tokens": tokens, "hook_name": HOOK} | ({"mask": mask} if given else {})
    found = quality(Spoiling(), acts[mask], **options)
    assert found["delta_ce"] == 0.0 == found["kl"] and found["explained_variance_in_model"] == pytest.approx(
        1, abs=1e-6
    )
    everything = torch.ones_like(mask)
    assert abs(quality(Spoiling(), acts[mask], **options | {"mask": everything})["delta_ce"]) > 1e-3, "else no test"
    own = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    assert found["ce_clean"] == pytest.approx(float(own[mask[:, 1:]].mean()), abs=1e-5)
    empty = quality(empty_sae(torch.zeros(16)), acts[mask], **options)
    assert empty["ce_sae"] == pytest.approx(empty["ce_zero"], abs=1e-9), "ablations keep the same rows"


def test_a_mask_that_fits_no_tokens_or_leaves_nothing_is_refused(lm, inside):
    tokens, X = inside
    options = {"lm": lm, "tokens": tokens, "hook_name": HOOK}
    with pytest.raises(ValueError, match="a boolean mask of shape"):
        quality(perfect_sae(16), X, **options, mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="is left to measure on"):
        quality(perfect_sae(16), X, **options, mask=torch.zeros_like(tokens, dtype=torch.bool))


def test_clean_loss_is_the_models_own(lm, inside):
    tokens, X = inside
    result = quality(perfect_sae(16), X, lm=lm, tokens=tokens, hook_name=HOOK)
    with torch.no_grad():
        own = float(lm(tokens, return_type="loss"))
    assert result["ce_clean"] == pytest.approx(own, abs=1e-5)


def test_losses_by_context_are_each_contexts_own_and_make_up_the_whole(lm, inside):
    tokens, X = inside
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[3, :], mask[5, 4:] = False, False
    options = {"lm": lm, "hook_name": HOOK}
    sae = SAE(SAEConfig(16, 32, k=4))
    result = quality(sae, X, tokens=tokens, mask=mask, contexts_per_batch=5, **options)
    losses, targets = result["ce_by_context"], mask[:, 1:].sum(1)
    assert losses.shape == (12,) and losses[3].isnan() and losses.isfinite().sum() == 11
    assert float((losses.nan_to_num() * targets).sum() / targets.sum()) == pytest.approx(result["ce_sae"])
    alone = quality(sae, X, tokens=tokens[5:6], mask=mask[5:6], **options)
    assert alone["ce_sae"] == pytest.approx(float(losses[5]), abs=1e-6)


def test_empty_sae_equals_the_ablations(lm, inside):
    tokens, X = inside
    zero = quality(empty_sae(torch.zeros(16)), X, lm=lm, tokens=tokens, hook_name=HOOK)
    assert zero["ce_sae"] == pytest.approx(zero["ce_zero"], abs=1e-9)
    mean = quality(empty_sae(X.mean(0)), X, lm=lm, tokens=tokens, hook_name=HOOK)
    assert mean["ce_sae"] == pytest.approx(mean["ce_mean"], abs=1e-5)
    assert zero["ce_zero"] == mean["ce_zero"] and zero["kl"] > 0.01
    assert mean["explained_variance_in_model"] == pytest.approx(0, abs=1e-5)


def test_scores_are_shares_of_the_harm_and_undefined_without_harm(lm, inside):
    tokens, X = inside
    result = quality(SAE(SAEConfig(16, 32, k=4)), X, lm=lm, tokens=tokens, hook_name=HOOK)
    for ablation in ("zero", "mean"):
        harm = result[f"ce_{ablation}"] - result["ce_clean"]
        recovered = result[f"ce_{ablation}"] - result["ce_sae"]
        score = result[f"ce_score_{ablation}"]
        assert math.isnan(score) if harm <= 0 else score == pytest.approx(recovered / harm)


def test_scores_run_from_zero_to_one_where_ablation_harms():
    """A stub that needs its activation: it predicts each token from the hooked one-hot of that token."""

    class Copying:
        def run_with_hooks(self, tokens, return_type, fwd_hooks):
            ((name, hook),) = fwd_hooks
            activations = torch.nn.functional.one_hot(tokens.roll(-1, 1), D).float()
            replaced = hook(activations, None) if name == HOOK else None
            return 5.0 * (activations if replaced is None else replaced)

    tokens = torch.randint(D, (20, 12), generator=torch.Generator().manual_seed(0))
    X = torch.eye(D)
    options = {"lm": Copying(), "tokens": tokens, "hook_name": HOOK}
    perfect = quality(perfect_sae(), X, **options)
    assert perfect["ce_score_zero"] == perfect["ce_score_mean"] == 1.0
    empty = quality(empty_sae(torch.zeros(D)), X, **options)
    assert empty["ce_score_zero"] == 0.0 and empty["delta_ce"] > 1
    # the prediction at position 0 is untouched, yet one of the eleven that count
    hit, flat = math.log(1 + (D - 1) * math.exp(-5)), math.log(D)
    assert empty["ce_sae"] == pytest.approx((hit + 10 * flat) / 11, rel=1e-5)
    with pytest.raises(ValueError, match="no row at hook_name"):
        quality(perfect_sae(), X, lm=Copying(), tokens=tokens, hook_name="blocks.9.hook_mlp_out")
    with pytest.raises(ValueError, match="at least 2"):
        quality(perfect_sae(), X, lm=Copying(), tokens=tokens[:, :1], hook_name=HOOK)
    with pytest.raises(ValueError, match="this SAE reads d_in=16"):
        quality(perfect_sae(16), torch.eye(16), lm=Copying(), tokens=tokens, hook_name=HOOK)


def test_ablations_are_remembered_for_one_hook_text_mean_and_set_of_weights(lm, inside, monkeypatch):
    """The second SAE of a hook costs two passes instead of four and is told the same; other weights are noticed."""
    tokens, X = inside
    passes, run = [], type(lm).run_with_hooks
    monkeypatch.setattr(type(lm), "run_with_hooks", lambda *a, **k: passes.append(1) or run(*a, **k))

    def asked(sae=None, X=X, tokens=tokens, hook_name=HOOK):
        passes.clear()
        sae = perfect_sae(16) if sae is None else sae
        result = quality(sae, X, lm=lm, tokens=tokens, hook_name=hook_name, contexts_per_batch=12)
        return len(passes), (result["ce_zero"], result["ce_mean"])

    _ABLATED.clear()
    (n_first, first), (n_second, second) = asked(), asked(SAE(SAEConfig(16, 32, k=4)))
    assert (n_first, n_second) == (4, 2)
    assert first == second
    others = {"X": X + 1.0, "tokens": tokens.flip(0), "hook_name": "blocks.0.hook_mlp_out"}
    assert all(asked(**{name: other})[0] == 4 for name, other in others.items())
    weight = lm.original_model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(3.0)
        n_changed, changed = asked()
        _ABLATED.clear()
        assert n_changed == 4 and changed == asked()[1] != first
    finally:
        with torch.no_grad():
            weight.copy_(before)
