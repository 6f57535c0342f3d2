from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rkcnn_lib.measure import matched_cosine
from rkcnn_lib.sae import SAE, SAEConfig, TrainConfig, init_from_directions, train_many, train_sae
from rkcnn_lib.sae import trainer as trainer_module
from rkcnn_lib.sae.architectures import random_directions
from rkcnn_lib.sae.trainer import Trainer, auxk_error, training_output, twin_distance
from rkcnn_lib.sae.training import batches, input_scale
from tests.sae.planted import planted

X, TRUTH = planted(20_000)
CONFIG = SAEConfig(32, 64, k=3)
SHORT = TrainConfig(steps=30, batch_size=128, lr=3e-3, log_every=10)


def same_weights(a: SAE, b: SAE) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_topk_recovers_planted_directions():
    sae = train_sae(X, CONFIG, TrainConfig(steps=500, batch_size=128, lr=1e-2), progress=False)
    untrained = matched_cosine(SAE(CONFIG).W_dec, TRUTH)
    assert untrained < 0.6 < 0.9 <= matched_cosine(sae.W_dec, TRUTH)
    assert sae.history[-1]["explained_variance"] > 0.9


def test_started_from_the_truth_it_stays_there():
    init = init_from_directions(CONFIG, TRUTH, X=X)
    assert matched_cosine(init.W_dec, TRUTH) >= 0.99
    sae = train_sae(X, CONFIG, TrainConfig(steps=200, batch_size=256), init, progress=False)
    assert matched_cosine(sae.W_dec, TRUTH) >= 0.99
    assert init.history == [] and matched_cosine(init.W_dec, TRUTH) >= 0.99  # the start itself is not changed


def test_a_frozen_decoder_stays_where_it_starts_while_the_rest_learns():
    frozen = train_sae(X, CONFIG, replace(SHORT, train_decoder=False), progress=False)
    start = init_from_directions(CONFIG, X=X)
    torch.testing.assert_close(frozen.W_dec, start.W_dec, atol=1e-6, rtol=0)
    assert (frozen.W_enc - start.W_enc).norm() > 0.1 * start.W_enc.norm()


def test_raw_units_go_in_and_come_out():
    """The same data in other units trains to the same SAE in those units."""
    runs = {}
    for factor in (1.0, 250.0):
        init = init_from_directions(CONFIG, TRUTH, X=factor * X)
        runs[factor] = train_sae(factor * X, CONFIG, SHORT, init, progress=False)
    torch.testing.assert_close(runs[250.0](250.0 * X) / 250, runs[1.0](X), atol=1e-3, rtol=1e-3)
    error = (runs[250.0](250.0 * X) / 250 - X).square().sum() / (X - X.mean(0)).square().sum()
    assert error < 0.2
    torch.testing.assert_close(runs[250.0].W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize(
    "config", [replace(CONFIG, aux_k=8), SAEConfig(32, 64, "relu", l1=0.1)], ids=["topk, auxk", "relu"]
)
def test_running_out_of_memory_halves_the_work_and_keeps_the_numbers(monkeypatch, config):
    settings = replace(SHORT, dead_tokens=500, autocast=False)
    whole = train_sae(X, config, settings, progress=False)
    tight, asked = trainer_module.training_output, []

    def out_of_memory_above_40_tokens(sae, x, *args, **options):
        asked.append(len(x))
        if len(x) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tight(sae, x, *args, **options)

    monkeypatch.setattr(trainer_module, "training_output", out_of_memory_above_40_tokens)
    with pytest.warns(UserWarning, match="out of memory: 64 tokens at a time from step 0 on"):
        halved = train_sae(X, config, settings, progress=False)
    assert asked[:6] == [128, 64, 32, 32, 32, 32] and set(asked[6:]) == {32}  # found out once
    torch.testing.assert_close(halved.W_dec, whole.W_dec, atol=1e-4, rtol=0)
    for one, other in zip(halved.history, whole.history, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_memory_that_no_halving_can_save_is_said(monkeypatch):
    def never(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer_module, "training_output", never)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="1 tokens at a time"):
        train_sae(X, CONFIG, SHORT, progress=False)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        train_sae(X, SAEConfig(32, 64, "batchtopk", k=3), SHORT, progress=False)
    assert "lower batch_size" in raised.value.__notes__[0]


def test_l1_is_summed_over_latents():
    sae = SAE(SAEConfig(32, 64, "relu", l1=0.5))
    x = X[:100]
    z = sae.encode(x)
    expected = (x - sae.decode(z)).square().sum(1).mean() + 0.5 * z.sum(1).mean()
    torch.testing.assert_close(training_output(sae, x).loss, expected)
    halved = training_output(sae, x, l1_share=0.5).loss
    torch.testing.assert_close(expected - halved, 0.25 * z.sum(1).mean())


def test_relu_becomes_sparse():
    config = SAEConfig(32, 64, "relu", l1=3.0)
    sae = train_sae(X, config, TrainConfig(steps=500, batch_size=128, lr=3e-3), progress=False)
    assert sae.history[-1]["l0"] < 8 < sae.history[0]["l0"]
    assert sae.history[-1]["explained_variance"] > 0.6


def test_batchtopk_is_a_jumprelu_with_k_active_latents_at_inference():
    config = SAEConfig(32, 64, "batchtopk", k=3)
    sae = train_sae(X, config, TrainConfig(steps=300, batch_size=256, lr=1e-2), progress=False)
    held_out, _ = planted(5000, seed=1)
    z = sae.encode(held_out)
    assert float((z > 0).sum(1).float().mean()) == pytest.approx(3, rel=0.05)
    assert z[z > 0].min().item() >= float(sae.threshold[0]) > 0
    assert (sae.decode(z) - held_out).square().sum() < 0.1 * (held_out - held_out.mean(0)).square().sum()


@pytest.mark.parametrize("steps", [1, 20, 60, 200])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_batchtopk_lets_k_latents_through_at_inference_after_any_length_of_training(steps, lr):
    X, _ = planted(6000, n_features=256, d=64, k=8)
    held_out, _ = planted(4000, n_features=256, d=64, k=8, seed=1)
    config = SAEConfig(64, 256, "batchtopk", k=8, aux_k=32)
    sae = train_sae(X, config, TrainConfig(steps=steps, batch_size=128, lr=lr), progress=False)
    assert float((sae.encode(held_out) > 0).sum(1).float().mean()) == pytest.approx(8, rel=0.05)
    assert len(sae.threshold.unique()) == 1


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_seeds_reproduce_to_the_bit(architecture):
    config = SAEConfig(32, 64, architecture, **({"l1": 1.0} if architecture == "relu" else {"k": 3, "aux_k": 8}))
    short = replace(SHORT, dead_tokens=500)
    first, again = (train_sae(X, config, short, progress=False) for _ in range(2))
    other = train_sae(X, config, replace(short, seed=1), progress=False)
    assert same_weights(first, again) and first.history == again.history
    assert not same_weights(first, other)


def test_an_arm_does_not_depend_on_its_companions():
    relu = SAEConfig(32, 48, "relu", l1=1.0)
    arms = {
        "random": (CONFIG, None),
        "mined": (CONFIG, lambda seed: init_from_directions(CONFIG, TRUTH, X=X, random_state=seed)),
        "relu": (relu, None),
    }
    together = train_many(X, arms, SHORT, seeds=(0, 5), progress=False)
    assert set(together) == {(name, seed) for name in arms for seed in (0, 5)}
    alone = train_many(X, {"mined": arms["mined"]}, SHORT, seeds=(5,), progress=False)
    assert same_weights(together["mined", 5], alone["mined", 5])
    single = train_sae(X, relu, replace(SHORT, seed=5), progress=False)
    assert same_weights(together["relu", 5], single)


def test_auxk_with_the_right_sign_revives_dead_latents_and_inverted_does_harm(monkeypatch):
    """Three quarters of the latents start too weak ever to be chosen; only AuxK can bring them in."""

    def outcome(aux_k: int | None) -> tuple[float, float]:
        init = init_from_directions(replace(CONFIG, aux_k=aux_k), X=X)
        with torch.no_grad():
            init.W_enc[:, 16:] *= 1e-3
        train = TrainConfig(steps=200, batch_size=64, lr=1e-2, dead_tokens=500, log_every=200)
        sae = train_sae(X, init.config, train, init, progress=False)
        return sae.history[-1]["dead"], sae.history[-1]["explained_variance"]

    dead_off, ev_off = outcome(aux_k=None)
    dead_on, ev_on = outcome(aux_k=32)
    assert dead_off > 0.7 and dead_on < 0.5
    assert ev_off < 0.7 and ev_on > 0.9
    right = auxk_error
    monkeypatch.setattr(trainer_module, "auxk_error", lambda *arguments: -right(*arguments))
    assert outcome(aux_k=32)[1] < 0.7
    monkeypatch.setattr(trainer_module, "auxk_error", lambda sae, x, left, dead: right(sae, x, -left, dead))
    assert outcome(aux_k=32)[1] < 0.7


def test_auxk_moves_dead_latents_only():
    sae = SAE(SAEConfig(32, 64, k=3, aux_k=4))
    dead = torch.zeros(64, dtype=torch.bool)
    dead[10:20] = True
    auxk_error(sae, X[:50], torch.randn(50, 32), dead).backward()
    assert not sae.W_dec.grad[~dead].any() and sae.W_dec.grad[dead].any()
    assert not sae.W_enc.grad[:, ~dead].any() and sae.b_dec.grad is None


def test_decoder_rows_stay_unit_and_snapshots_are_kept():
    train = replace(SHORT, snapshot_steps=(0, 7, 30), clip=1.0)
    sae = train_sae(X, CONFIG, train, progress=False)
    assert sorted(sae.snapshots) == [0, 7, 30]
    assert torch.equal(sae.snapshots[30], sae.W_dec)
    assert not torch.equal(sae.snapshots[0], sae.snapshots[7])
    for rows in sae.snapshots.values():
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(64))


def test_fused_optimiser_equals_the_plain_one():
    """It walks memory, and W_enc lies in memory by columns."""
    fused = Trainer(SAE(CONFIG), SHORT, scale=1.0)
    plain = Trainer(SAE(CONFIG), SHORT, scale=1.0)
    plain.optimizer = torch.optim.Adam(plain.sae.parameters(), lr=SHORT.lr, fused=False)
    for step in range(5):
        for run in (fused, plain):
            run.train_step(X[step * 128 : (step + 1) * 128])
    for a, b in zip(fused.sae.parameters(), plain.sae.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_history_counts_tokens_and_silent_latents():
    init = init_from_directions(CONFIG, TRUTH, X=X)
    with torch.no_grad():
        init.b_enc[48:] = -100.0  # sixteen latents that never fire
    train = replace(SHORT, dead_tokens=128 * 20)
    history = train_sae(X, CONFIG, train, init, progress=False).history
    assert [entry["step"] for entry in history] == [1, 10, 20, 30]
    assert [entry["tokens"] for entry in history] == [128, 1280, 2560, 3840]
    assert [entry["dead"] for entry in history[:2]] == [0.0, 0.0]  # not silent for long enough to say
    assert history[2]["dead"] == history[3]["dead"] == 16 / 64
    assert all(0 < entry["l0"] <= 3 for entry in history)


def test_learning_rate_climbs_and_falls():
    train = TrainConfig(steps=100, lr=1.0, warmup=0.1, decay=0.2)
    rates = [train.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == pytest.approx([1.0] * 72)
    assert rates[99] == pytest.approx(0.05) and rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)
    assert TrainConfig(steps=10, warmup=0.0, decay=0.0).lr_at(9) == 1e-3


def test_inputs_are_scaled_to_the_square_root_of_their_width():
    scale = input_scale(X)
    assert float((scale * X).norm(dim=1).mean()) == pytest.approx(32**0.5, rel=1e-5)


def test_batches_are_epochs_of_permutations_and_start_anywhere():
    rows = torch.arange(10.0)[:, None]
    stream = batches(rows, 3, seed=4)
    drawn = [next(stream).flatten().tolist() for _ in range(7)]
    for epoch in (drawn[0:3], drawn[3:6]):
        assert len({row for batch in epoch for row in batch}) == 9
    assert drawn[0:3] != drawn[3:6]
    for start in range(7):
        assert next(batches(rows, 3, seed=4, start=start)).flatten().tolist() == drawn[start]
    assert next(batches(rows, 3, seed=5)).flatten().tolist() != drawn[0]


def test_bfloat16_products_train_as_well():
    full = train_sae(X, CONFIG, replace(SHORT, steps=100), progress=False)
    half = train_sae(X, CONFIG, replace(SHORT, steps=100, autocast=True), progress=False)
    assert half.W_enc.dtype == torch.float32
    assert half.history[-1]["explained_variance"] > full.history[-1]["explained_variance"] - 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_training_on_cuda_agrees_with_the_processor(architecture):
    config = SAEConfig(32, 64, architecture, k=3, aux_k=8)
    train = replace(SHORT, dead_tokens=500)
    here = train_sae(X, config, train, progress=False)
    there = train_sae(X, config, replace(train, autocast=False), device="cuda", progress=False)
    assert there.W_dec.device.type == "cuda"
    assert there.history[-1]["explained_variance"] == pytest.approx(here.history[-1]["explained_variance"], abs=0.02)
    mixed = train_sae(X.cuda(), config, train, progress=False)
    assert mixed.history[-1]["explained_variance"] > here.history[-1]["explained_variance"] - 0.1


def test_a_cosine_decay_climbs_like_the_other_and_falls_to_nothing_at_the_end_without_a_plateau():
    train = TrainConfig(steps=100, lr=1.0, warmup=0.1, cosine=True)
    rates = [train.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([TrainConfig(steps=100, lr=1.0, warmup=0.1).lr_at(step) for step in range(10)])
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 0.001 and sorted(rates[10:], reverse=True) == rates[10:]


def test_a_twin_draws_the_decoder_towards_its_rows_and_changes_nothing_at_weight_0():
    X, config = torch.randn(600, 8), SAEConfig(8, 16, k=3)
    twin = random_directions(16, 8, random_state=9)
    train = TrainConfig(steps=60, batch_size=100, lr=1e-2)
    free, drawn = (
        train_sae(X, config, replace(train, twin_weight=weight), twin=given, progress=False)
        for weight, given in ((0.0, None), (30.0, twin))
    )
    start = twin_distance(SAE(config).W_dec, twin)
    assert twin_distance(drawn.W_dec, twin) < 0.5 * min(twin_distance(free.W_dec, twin), start)
    for weight, given in ((0.0, twin), (1.0, None), (1.0, twin[:, :5])):
        with pytest.raises(ValueError, match="twin"):
            train_sae(X, config, replace(train, twin_weight=weight), twin=given, progress=False)
