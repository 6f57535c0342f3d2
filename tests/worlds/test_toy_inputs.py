"""Whatever is given to the toy and planted worlds: an answer, or a refusal that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.planted import lu_gweon_classes
from rkcnn_lib.worlds.toy import (
    ParallelToyModel,
    PlantedDictionary,
    SyntheticClusteredDataGenerator,
    SyntheticSparseDataGenerator,
    ToyModel,
)
from tests.odd_inputs import assert_refused, forms, no_matrices

X = np.arange(20.0).reshape(4, 5) % 7
INF, NAN = float("inf"), float("nan")
WHOLE = (0, -1, 2.5, 3.0, True, "3", NAN, INF)
PLAIN = {
    SyntheticSparseDataGenerator: {"n_features": 8},
    SyntheticClusteredDataGenerator: {"n_features": 8},
    PlantedDictionary: {"n_features": 40, "d": 6},
    ParallelToyModel: {"n_instances": 2, "n_features": 5, "n_hidden": 2},
    ToyModel: {"n_features": 5, "n_hidden": 2},
    lu_gweon_classes: {"n": 20, "n_noise": 2},
}
BAD = {
    "n": WHOLE, "n_features": WHOLE, "n_hidden": WHOLE, "n_instances": WHOLE, "n_topics": WHOLE, "d": WHOLE,
    "k_active": (*WHOLE, 9), "n_noise": WHOLE[1:], "n_informative": WHOLE, "n_classes": WHOLE,
    "random_state": ("a", 1.5, -1, True, [1]),
    "p": (NAN, INF, -0.1, 1.5, "a", [0.1, "a"], [0.1, NAN], 0.1j, None),
    "probabilities": (NAN, INF, "a", [0.1, "a"], 0.1j, None),
    "structure": (NAN, INF, -0.1, 1.5, "a", None), "shift": (NAN, INF, "a", None), "mean_active": (NAN, INF, 0, "a"),
    "noise": (NAN, INF, -1.0, "a"),
}  # fmt: skip
TAKEN = {
    SyntheticSparseDataGenerator: "n_features p k_active",
    SyntheticClusteredDataGenerator: "n_features n_topics p structure",
    PlantedDictionary: "n_features d mean_active noise",
    ParallelToyModel: "n_instances n_features n_hidden probabilities k_active",
    ToyModel: "n_features n_hidden probabilities k_active",
    lu_gweon_classes: "n n_noise n_informative n_classes shift",
}


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, names in TAKEN.items() for name in [*names.split(), "random_state"]]
)
def test_every_argument_is_checked_by_type_and_range_and_named(make: Any, name: str) -> None:
    for value in BAD[name]:
        assert_refused(lambda value=value: make(**PLAIN[make] | {name: value}), name, f"{make.__name__} {value!r}")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", (INF, NAN, 0.0, -1.0, "1e-3", None)),
        ("steps", WHOLE), ("batch_size", WHOLE), ("progress", ("no", None)),
    ],
)  # fmt: skip
def test_training_is_told_finite_numbers_in_range(name: str, values: tuple) -> None:
    """`ToyModel.train(lr=inf)` gave NaN."""
    for value in values:
        model = ToyModel(5, 2)
        start = model.W.clone()
        call = lambda value=value, model=model: model.train(**{"steps": 3, "progress": False, name: value})  # noqa: E731
        assert_refused(call, name, repr(value))
        assert torch.equal(model.W, start)


def test_a_loss_that_is_no_number_any_more_ends_training_with_the_rate_named() -> None:
    assert_refused(lambda: ToyModel(5, 2).train(50, lr=1e30, progress=False), "lr", "diverged")


@pytest.mark.parametrize("n", WHOLE)
def test_numbers_of_rows_are_whole(n: Any) -> None:
    for world in (ToyModel(5, 2), *(make(**PLAIN[make]) for make in list(PLAIN)[:3])):
        assert_refused(lambda world=world: world.sample(n), "n", f"{type(world).__name__} {n!r}")


def test_features_in_any_form_are_read_alike_and_refused_by_name() -> None:
    model = ToyModel(5, 2, random_state=1)
    calls = {"hidden": model.hidden, "reconstruction": model, "loss": model.loss}
    for name, call in calls.items():
        plain = call(torch.tensor(X)).detach().double()
        for form, given in forms(X).items():
            torch.testing.assert_close(call(given).detach().double(), plain, rtol=1e-5, atol=1e-3, msg=f"{name} {form}")
        for what, given in no_matrices(X).items():
            if what not in ("three axes", "NaN, tensor"):  # instances; tensors of floats are not read through
                assert_refused(lambda call=call, given=given: call(given), "x", f"{name}: {what}")


def test_gradients_pass_through_a_toy_model() -> None:
    x = torch.tensor(X, requires_grad=True)
    ToyModel(5, 2).loss(x).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_probabilities_of_any_form_are_read_alike() -> None:
    p = [0.5, 0.25, 0.125, 0.75, 1.0]
    plain = SyntheticSparseDataGenerator(5, p).sample(9)
    for given in (
        np.array(p)[::-1].copy()[::-1],
        torch.tensor(p).bfloat16(),
        pd.Series(p),
        torch.tensor(p).requires_grad_(),
    ):
        assert torch.equal(SyntheticSparseDataGenerator(5, given).sample(9), plain)
        assert torch.equal(ToyModel(5, 2, given).sample(4), ToyModel(5, 2, p).sample(4))
    assert SyntheticSparseDataGenerator(np.int64(5), random_state=np.int64(3)).sample(np.int32(2)).shape == (2, 5)
