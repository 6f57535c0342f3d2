"""An interrupted run ends with the same bits as one that was left alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.sae import SAEConfig, TrainConfig, init_from_directions, train_many, train_sae
from tests.sae.planted import planted

X, _ = planted(4000)
CONFIG = SAEConfig(32, 64, k=3, aux_k=8)
TRAIN = TrainConfig(
    steps=60, batch_size=100, lr=3e-3, dead_tokens=1500, log_every=7, snapshot_steps=(0, 20, 60), checkpoint_every=9
)


class Interrupted(Exception):
    pass


class Stream:
    """Data with the interface of a store, which may break down after some batches."""

    def __init__(self, dies_at: int | None = None, poison_at: int | None = None) -> None:
        self.dies_at, self.poison_at = dies_at, poison_at

    def matrix(self, split, seed=0, n_rows=None):
        return X[:n_rows]

    def batches(self, batch_size, seed=0, split="train", start=0):
        generator = torch.Generator().manual_seed(seed)
        step = 0
        while True:
            if step == self.dies_at:
                raise Interrupted
            batch = X[torch.randint(len(X), (batch_size,), generator=generator)]
            if step >= start:
                yield torch.full_like(batch, torch.nan) if step == self.poison_at else batch
            step += 1


def assert_same(a, b):
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert a.history == b.history
    assert sorted(a.snapshots) == sorted(b.snapshots)
    assert all(torch.equal(a.snapshots[step], b.snapshots[step]) for step in a.snapshots)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_resuming_gives_the_same_bits(architecture, tmp_path):
    config = SAEConfig(32, 64, "relu", l1=1.0) if architecture == "relu" else replace(CONFIG, architecture=architecture)
    whole = train_sae(Stream(), config, TRAIN, progress=False)
    for dies_at in (5, 23, 41, 59):  # before the first checkpoint, and between others
        with pytest.raises(Interrupted):
            train_sae(Stream(dies_at), config, TRAIN, checkpoint=tmp_path, progress=False)
    resumed = train_sae(Stream(), config, TRAIN, checkpoint=tmp_path, progress=False)
    assert_same(whole, resumed)
    assert len(list(tmp_path.iterdir())) == 2  # one state, old ones and half-written ones gone


def test_a_tensor_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = train_sae(X, CONFIG, TRAIN, progress=False)
    from rkcnn_lib.sae import training

    save = training.save_checkpoint

    def save_and_die(trainer, *rest):
        save(trainer, *rest)
        if trainer.step == 45:
            raise Interrupted

    monkeypatch.setattr(training, "save_checkpoint", save_and_die)
    with pytest.raises(Interrupted):
        train_sae(X, CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    assert_same(whole, train_sae(X, CONFIG, TRAIN, checkpoint=tmp_path, progress=False))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_finished_run_is_read_and_not_repeated(architecture, tmp_path):
    config = replace(CONFIG, architecture=architecture)
    done = train_sae(Stream(), config, TRAIN, checkpoint=tmp_path, progress=False)
    assert_same(done, train_sae(Stream(dies_at=0), config, TRAIN, checkpoint=tmp_path, progress=False))


def test_arms_that_stopped_at_different_steps_end_alike(tmp_path):
    arms = {"a": (CONFIG, None), "b": (replace(CONFIG, k=4), None)}
    whole = train_many(Stream(), arms, TRAIN, seeds=(2,), progress=False)
    with pytest.raises(Interrupted):
        train_many(Stream(40), arms, TRAIN, seeds=(2,), checkpoint=tmp_path, progress=False)
    for old in (tmp_path / "b-seed2").iterdir():
        old.unlink()  # b must begin again while a waits at step 36
    resumed = train_many(Stream(), arms, TRAIN, seeds=(2,), checkpoint=tmp_path, progress=False)
    for key in whole:
        assert_same(whole[key], resumed[key])


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path):
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    (tmp_path / "step-00000027.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint.json.part").write_text("{", encoding="utf-8")
    whole = train_sae(Stream(), CONFIG, TRAIN, progress=False)
    assert_same(whole, train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False))


def test_another_run_does_not_take_up_this_checkpoint(tmp_path):
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    for config, train, named in [
        (CONFIG, replace(TRAIN, lr=1e-3), "training lr=0.003, this run has 0.001"),
        (replace(CONFIG, k=4), TRAIN, "sae k=3, this run has 4"),
    ]:
        with pytest.raises(ValueError, match=named):
            train_sae(Stream(), config, train, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="identity data"):
        train_sae(X + 1, CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    train_sae(Stream(), CONFIG, replace(TRAIN, checkpoint_every=50), checkpoint=tmp_path, progress=False)


def test_a_run_resumes_where_another_device_rounded_its_start_otherwise(tmp_path):
    start = init_from_directions(CONFIG, X=X, random_state=0)
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, init=start, checkpoint=tmp_path, progress=False)
    elsewhere, other = copy.deepcopy(start), init_from_directions(CONFIG, X=X, random_state=1)
    with torch.no_grad():
        for tensor in elsewhere.state_dict().values():
            tensor.mul_(1 + 1e-4 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="identity init W_dec=another"):
        train_sae(Stream(), CONFIG, TRAIN, init=other, checkpoint=tmp_path, progress=False)
    resumed = train_sae(Stream(), CONFIG, TRAIN, init=elsewhere, checkpoint=tmp_path, progress=False)
    assert_same(train_sae(Stream(), CONFIG, TRAIN, init=start, progress=False), resumed)


def test_damage_is_reported(tmp_path):
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    (tensors,) = tmp_path.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged"):
        train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 10**9}, "step 1000000000 of 60"),
        ({"step": 1e9}, "step 1000000000.0 of 60"),
        ({"step": 60}, "step 60 of 60 with the tensors 'step-00000018.safetensors'"),
        ({"step": -1}, "step -1 of 60"),
        ({"step": 0}, "step 0 of 60"),
        ({"step": True}, "step True of 60"),
        ({"step": "18"}, "step '18' of 60"),
        ({"step": None}, "step None of 60"),
        ({"tensors": "../other/step-00000018.safetensors"}, "tensors '../other"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"scale": None}, "damaged"),
        ({"sae": []}, "damaged"),
    ],
)
def test_a_checkpoint_that_says_what_cannot_be_does_not_count_as_trained(changes, said, tmp_path):
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    state = json.loads((tmp_path / "checkpoint.json").read_text(encoding="utf-8"))
    (tmp_path / "checkpoint.json").write_text(json.dumps(state | changes), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"checkpoint in {tmp_path} is damaged .*{said}" if said != "damaged" else said
    ):
        train_sae(Stream(dies_at=0), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize("missing", ["step", "scale", "tensors", "history", "identity"])
def test_a_checkpoint_that_lacks_a_part_is_damaged(missing, tmp_path):
    with pytest.raises(Interrupted):
        train_sae(Stream(25), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    state = json.loads((tmp_path / "checkpoint.json").read_text(encoding="utf-8"))
    del state[missing]
    (tmp_path / "checkpoint.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ValueError, match=f"damaged .*{missing}"):
        train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize("spoil", [lambda t: t.fill_(torch.nan), lambda t: t[:1].clone()], ids=["nan", "shape"])
@pytest.mark.parametrize("named", ["W_enc", "exp_avg_sq.b_dec"])
def test_a_checkpoint_with_spoiled_tensors_is_damaged(named, spoil, tmp_path):
    train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    save_file(tensors | {named: spoil(tensors[named])}, path)
    with pytest.raises(ValueError, match=f"damaged .{named} has shape"):
        train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)


def test_what_killed_processes_left_goes_with_the_next_checkpoint(tmp_path):
    for left in (".step-00000009.safetensors.part-0123456789ab", ".checkpoint.json.part-0123456789ab"):
        (tmp_path / left).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours", encoding="utf-8")
    train_sae(Stream(), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["checkpoint.json", "notes.txt", "step-00000060.safetensors"]


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"nan at step 33; last good checkpoint: none"):
        train_sae(Stream(poison_at=33), CONFIG, TRAIN, progress=False)
    with pytest.raises(FloatingPointError, match=r"nan at step 33; last good checkpoint: step 27 in"):
        train_sae(Stream(poison_at=33), CONFIG, TRAIN, checkpoint=tmp_path, progress=False)
    assert json.loads((tmp_path / "checkpoint.json").read_text(encoding="utf-8"))["step"] == 27


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_weights_that_the_last_update_spoils_are_neither_returned_nor_kept(architecture, tmp_path):
    config = SAEConfig(32, 64, "relu", l1=1.0) if architecture == "relu" else replace(CONFIG, architecture=architecture)
    train = TrainConfig(steps=1, batch_size=100, lr=1e39)  # beyond float32
    with pytest.raises(FloatingPointError, match="weights are not finite after step 1; last good checkpoint: none"):
        train_sae(X, config, train, checkpoint=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_data_that_ends_too_early_are_refused():
    class Short(Stream):
        def batches(self, batch_size, seed=0, split="train", start=0):
            yield from (X[:100] for _ in range(3))

    with pytest.raises(ValueError, match="ended after 3 batches"):
        train_sae(Short(), CONFIG, TRAIN, progress=False)
