"""What training takes, however it lies in memory, and what it refuses by name before it computes anything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rkcnn_lib.sae import SAE, SAEConfig, init_from_directions, train_many, train_sae
from tests.sae.test_training import CONFIG, SHORT, X, same_weights


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"steps": True}, "steps=True"),
        ({"batch_size": 64.0}, "batch_size=64.0"),
        ({"warmup": math.nan}, "warmup=nan"),
        ({"decay": -math.inf}, "decay=-inf"),
        ({"l1_warmup": None}, "l1_warmup=None"),
        ({"clip": math.inf}, "clip=inf"),
        ({"train_decoder": "no"}, "train_decoder='no'"),
        ({"train_decoder": None}, "train_decoder=None"),
        ({"autocast": "bfloat16"}, "autocast='bfloat16'"),
        ({"snapshot_steps": (0, 1.5)}, r"snapshot_steps=1.5 .*\[0, 30\]"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"snapshot_steps": (0, 31)}, r"snapshot_steps=31 .*\[0, 30\]"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
    ],
)
def test_training_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        replace(SHORT, **settings)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[::-1].astype(">f4"),
        lambda rows: rows[::-1].astype(np.float64),
        lambda rows: torch.from_numpy(rows[::-1].copy()).requires_grad_(),
    ],
    ids=["reversed", "big-endian", "float64", "with a gradient"],
)
def test_rows_may_lie_in_memory_as_they_like(laid_out):
    given, plain = laid_out(X[:3000].numpy()), X[:3000].flip(0)
    expected = train_sae(plain, CONFIG, SHORT, progress=False)
    assert same_weights(train_sae(given, CONFIG, SHORT, progress=False), expected)
    assert getattr(given, "grad", None) is None
    start = init_from_directions(CONFIG, given[:40], X=given, random_state=np.int64(1))
    assert same_weights(start, init_from_directions(CONFIG, plain[:40], X=plain, random_state=1))


@pytest.mark.parametrize("given", [X.to_sparse(), X.to(torch.complex64)], ids=["sparse", "complex"])
def test_rows_that_are_not_dense_and_real_are_refused(given):
    for work in (lambda: train_sae(given, CONFIG, SHORT), lambda: init_from_directions(CONFIG, given, X=X)):
        with pytest.raises(ValueError, match=r"give dense values|real numbers are needed"):
            work()


def test_unusable_data_and_starts_are_refused():
    for shapeless in (torch.tensor(3.0), X[0]):
        with pytest.raises(ValueError, match="X has shape"):
            train_sae(shapeless, CONFIG, SHORT)
    with pytest.raises(ValueError, match="20 rows; batch_size=128"):
        train_sae(X[:20], CONFIG, SHORT)
    spoiled = X.clone()
    spoiled[15_000, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        train_sae(spoiled, CONFIG, SHORT)
    for bad in (torch.nan, torch.inf):
        init = SAE(CONFIG)
        with torch.no_grad():
            init.W_enc[3, 4] = bad
        with pytest.raises(ValueError, match="init holds NaN or infinite values in W_enc"):
            train_sae(X, CONFIG, SHORT, init)
    with pytest.raises(ValueError, match="d_in=16"):
        train_sae(X, replace(CONFIG, d_in=16), SHORT)
    with pytest.raises(ValueError, match="init was made for"):
        train_sae(X, CONFIG, SHORT, SAE(replace(CONFIG, k=4)))
    with pytest.raises(ValueError, match="only zeros"):
        train_sae(torch.zeros(200, 32), CONFIG, SHORT, SAE(CONFIG))
    with pytest.raises(ValueError, match="not trained here yet"):
        train_sae(X, SAEConfig(32, 64, "jumprelu"), SHORT)
    for arms, seeds in (({}, (0,)), ({"a": (CONFIG, None)}, ()), ({"a": (CONFIG, None)}, np.arange(0))):
        with pytest.raises(ValueError, match="at least one arm"):
            train_many(X, arms, SHORT, seeds)


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "..", "", "a/b", ".hidden", "a" * 300, "two\nlines"])
def test_an_arm_whose_name_makes_no_folder_is_refused_before_anything_is_computed(name, tmp_path):
    def never(seed):
        raise AssertionError("a start was computed")

    with pytest.raises(ValueError, match=r"arm = .* becomes the name of a folder"):
        train_many(X, {"good": (CONFIG, never), name: (CONFIG, never)}, SHORT, checkpoint=tmp_path / "in")
    assert not list(tmp_path.iterdir())
    assert set(train_many(X, {name: (CONFIG, None)}, replace(SHORT, steps=1), progress=False)) == {(name, 0)}


@pytest.mark.parametrize("names", [("a", "A"), (1, "1")])
def test_arms_that_would_share_a_folder_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="share a folder"):
        train_many(X, dict.fromkeys(names, (CONFIG, None)), SHORT, checkpoint=tmp_path)


def test_seeds_may_be_an_array_of_numpy():
    def start(seed):
        assert type(seed) is int
        return init_from_directions(CONFIG, X=X, random_state=seed)

    trained = train_many(X, {"a": (CONFIG, start)}, replace(SHORT, steps=1), np.arange(2), progress=False)
    assert list(trained) == [("a", 0), ("a", 1)]
