"""What directions explain as they are: the pursuit held against its slow twin and against worlds that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rkcnn_lib.measure import frozen_dictionary_ev
from tests.measure.test_quality import D, rows


def pursue_slowly(x: np.ndarray, D: np.ndarray, k: int) -> np.ndarray:
    """One token, one step at a time: pick the best positive direction, solve least squares anew."""
    residual, picked = x.copy(), []
    for _ in range(k):
        products = D @ residual
        products[picked] = -np.inf
        best = int(products.argmax())
        if products[best] <= 1e-6 * np.linalg.norm(x):
            break
        picked.append(best)
        coefficients = np.linalg.lstsq(D[picked].T, x, rcond=None)[0]
        residual = x - coefficients @ D[picked]
    return residual


def test_pursuit_equals_its_slow_twin():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 10)) * np.arange(1, 11) + 2
    directions = generator.normal(size=(25, 10)) * 3.0
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    found = frozen_dictionary_ev(X, directions, ks=(1, 4, 9))
    for k, ev in found.items():
        left = sum((pursue_slowly(x - X.mean(0), unit, k) ** 2).sum() for x in X)
        assert ev == pytest.approx(1 - left / ((X - X.mean(0)) ** 2).sum(), abs=1e-4)


def test_true_directions_explain_all_and_random_ones_do_not():
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator), dim=1)
    which = torch.rand(500, 40, generator=generator).topk(2, dim=1).indices
    sparse = torch.zeros(500, 40).scatter(1, which, 1.0) @ truth
    X = torch.cat([sparse, -sparse])  # the mean is 0
    both, random = torch.cat([truth, -truth]), torch.randn(80, 32, generator=generator)
    assert frozen_dictionary_ev(X, both, ks=(4,))[4] > 0.97
    assert frozen_dictionary_ev(X, random, ks=(4,))[4] < 0.8


def test_selection_is_one_sided():
    X = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    one = frozen_dictionary_ev(X, torch.tensor([[1.0, 0.0]]), ks=(1,))
    both = frozen_dictionary_ev(X, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), ks=(1,))
    assert one[1] == pytest.approx(0.5) and both[1] == pytest.approx(1.0)


def test_copies_of_a_direction_and_more_steps_than_directions_do_no_harm():
    X = rows(40)
    D3 = torch.randn(3, X.shape[1], generator=torch.Generator().manual_seed(1))
    few = frozen_dictionary_ev(X, D3, ks=(3, 8))
    many = frozen_dictionary_ev(X, D3.repeat(4, 1), ks=(12,))
    assert few[3] == pytest.approx(few[8], abs=1e-6)
    assert few[3] - 1e-5 <= many[12] <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"D": torch.ones(3, 5)}, "X has 8 columns and D 5"),
        ({"D": torch.zeros(3, D)}, "D has a zero row"),
        ({"X": torch.zeros(0, D)}, "at least 1 row"),
        ({"X": torch.full((5, D), torch.nan)}, "NaN"),
        ({"X": torch.ones(5, D)}, "does not vary"),
    ],
)
def test_pursuit_refuses_bad_input(arguments, named):
    with pytest.raises(ValueError, match=named):
        frozen_dictionary_ev(**({"X": rows(20), "D": torch.eye(D)} | arguments))
