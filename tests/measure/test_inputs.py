"""Whatever is given to the room: the answer for the plain array, or a refusal that names the argument."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.measure import (
    chance,
    explained_variance,
    frozen_dictionary_ev,
    matched_cosine,
    mmcs,
    precision,
    pw_max_cosine,
    pw_mcc,
    quality,
    recovery_rate,
    shared_latents,
    subspace_overlap,
)
from rkcnn_lib.measure.fourier import Planes, plane_energy, span_energy
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.sae import SAE, SAEConfig
from tests.odd_inputs import assert_refused, forms, no_matrices

RNG = np.random.default_rng(0)
A = np.round(20 * RNG.standard_normal((12, 6)))
B = np.round(20 * RNG.standard_normal((12, 6)))
PLANES = Planes(torch.eye(6)[None, :2].double(), torch.ones(1))
READER = SAE(SAEConfig(6, 8, k=3))
SEEDS = [SimpleNamespace(W_dec=torch.tensor(A), W_enc=torch.tensor(A.T)) for _ in range(2)]

# {what: (the call, its argument, whether lengths of rows do not matter)}
CALLS: dict[str, tuple[Any, str, bool]] = {
    "mmcs directions": (lambda x: mmcs(x, B), "directions", True),
    "mmcs truth": (lambda x: mmcs(B, x), "truth", True),
    "matched_cosine directions": (lambda x: matched_cosine(x, B), "directions", True),
    "matched_cosine truth": (lambda x: matched_cosine(B, x), "truth", True),
    "recovery_rate": (lambda x: recovery_rate(x, B, 0.3), "directions", True),
    "precision": (lambda x: precision(B, x, 0.3), "truth", True),
    "match": (lambda x: match(x, B).cosines, "A", True),
    "chance truth": (lambda x: chance("mmcs", 3, 12, 6, 5, truth=x), "truth", True),
    "chance spread": (lambda x: chance("mmcs", 3, 4, 6, 5, spread=x), "spread", True),
    "pw_mcc": (lambda x: pw_mcc([x, B]), "decoders", True),
    "pw_max_cosine": (lambda x: pw_max_cosine([x, B]), "decoders", True),
    "subspace_overlap": (lambda x: subspace_overlap(x, B[:2]), "a", True),
    "explained_variance X": (lambda x: explained_variance(x, A + 1), "X", False),
    "explained_variance X_hat": (lambda x: explained_variance(A + 1, x), "X_hat", False),
    "frozen_dictionary_ev X": (lambda x: frozen_dictionary_ev(x, B, (2,))[2], "X", True),
    "frozen_dictionary_ev D": (lambda x: frozen_dictionary_ev(B, x, (2,))[2], "D", True),
    "quality": (lambda x: quality(READER, x)["explained_variance"], "X|rows", False),
    "plane_energy": (lambda x: plane_energy(x, PLANES), "D", True),
    "span_energy": (lambda x: span_energy(x, PLANES), "D", True),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers_in_any_form_give_the_same_answer(name: str) -> None:
    call = CALLS[name][0]
    plain = np.asarray(call(A))
    for form, given in forms(A).items():
        np.testing.assert_allclose(np.asarray(call(given)), plain, atol=1e-6, err_msg=form)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_matrix_of_numbers_is_refused_by_name(name: str) -> None:
    call, argument, _ = CALLS[name]
    for what, given in no_matrices(A).items():
        if given is None and name.startswith("chance"):
            continue  # none is given
        assert_refused(lambda given=given: call(given), argument, f"{name}: {what}")


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e30])
@pytest.mark.parametrize("name", [name for name, (*_, scale_free) in CALLS.items() if scale_free])
def test_enormous_and_tiny_numbers_give_the_same_answer(name: str, scale: float) -> None:
    call = CALLS[name][0]
    np.testing.assert_allclose(np.asarray(call(A * scale)), np.asarray(call(A)), atol=1e-6)


def test_explained_variance_of_enormous_and_tiny_rows_is_that_of_others() -> None:
    for scale in (1e300, 1e-300):
        assert explained_variance(A * scale, B * scale) == pytest.approx(explained_variance(A, B))
    assert_refused(lambda: quality(READER, A * 1e300), "held-out rows", "beyond the SAE's float32")


def test_widths_that_differ_zero_directions_and_empty_sets_are_refused_by_name() -> None:
    narrow, zero, none = A[:, :4], np.where(np.arange(12)[:, None] == 3, 0.0, A), A[:0]
    for name in ("mmcs directions", "mmcs truth", "match", "subspace_overlap", "frozen_dictionary_ev D", "pw_mcc",
                 "explained_variance X", "chance truth", "chance spread"):  # fmt: skip
        call, argument, _ = CALLS[name]
        assert_refused(lambda call=call: call(narrow), argument, f"{name}: narrow")
    for name in ("mmcs directions", "mmcs truth", "match", "subspace_overlap", "frozen_dictionary_ev D", "pw_mcc",
                 "chance truth", "plane_energy"):  # fmt: skip
        call, argument, _ = CALLS[name]
        assert_refused(lambda call=call: call(zero), argument, f"{name}: zero row")
    for name in ("mmcs truth", "pw_mcc", "subspace_overlap", "frozen_dictionary_ev D", "frozen_dictionary_ev X",
                 "explained_variance X", "chance truth", "chance spread"):  # fmt: skip
        call, argument, _ = CALLS[name]
        assert_refused(lambda call=call: call(none), argument, f"{name}: no rows")
    for metric in (mmcs, matched_cosine, recovery_rate, precision):
        assert metric(none, B) == 0 == metric(none.tolist() or torch.zeros(0, 6), B)
    assert_refused(lambda: chance("mmcs", 3, 4, 6, spread=np.zeros((3, 6))), "spread", "spread of zeros")


ONES = np.ones(12, dtype=bool)


@pytest.mark.parametrize("metric", [pw_mcc, pw_max_cosine, lambda d, live: shared_latents(SEEDS, 0.5, live)])
def test_live_is_a_mask_and_indices_are_refused_by_name(metric: Any) -> None:
    """`pw_mcc(live=indices)` was read as a mask: all latents but number 0."""
    few = ONES & (np.arange(12) < 5)
    expected = metric([A, A], live=[few, few])
    for form in (torch.tensor(few), few.tolist(), few[::-1].copy()[::-1], pd.Series(few)):
        assert metric([A, A], live=[form, form]) == expected
    for bad in (
        np.arange(5),
        torch.arange(12),
        torch.ones(12),
        np.ones(12, dtype=np.uint8),
        ONES[:5],
        ONES[None],
        "all",
    ):
        assert_refused(lambda bad=bad: metric([A, A], live=[bad, bad]), "live", repr(bad))


def test_other_masks_are_masks_too() -> None:
    tokens = torch.zeros(2, 4, dtype=torch.long)
    for bad in (torch.ones(2, 4), torch.ones(2, 4, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)):
        call = lambda bad=bad: quality(READER, A, lm=object(), tokens=tokens, hook_name="h", mask=bad)  # noqa: E731
        assert_refused(call, "mask", repr(bad))


@pytest.mark.parametrize("seed", ["a", 1.5, -1, None, True, np.random.default_rng(0)])
def test_seeds_that_are_none_are_refused_by_name(seed: Any) -> None:
    assert_refused(lambda: chance("mmcs", 2, 2, 3, 5, seed), "random_state", repr(seed))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        *[(name, lambda name=name, bad=bad: chance(**{"metric": "mmcs", "n_a": 2, "n_b": 2, "d": 3, name: bad}))
          for name in ("n_a", "n_b", "d", "n_draws") for bad in (0, 2.5, "2", None, True)],
        *[("threshold", lambda bad=bad: recovery_rate(A, B, bad)) for bad in (90, float("nan"), "0.9", None)],
        *[("threshold", lambda bad=bad: shared_latents(SEEDS, bad)) for bad in (0, 1.5, float("nan"), "0.9")],
        ("metric", lambda: chance(["mmcs"], 2, 2, 3)),
    ],
)  # fmt: skip
def test_arguments_out_of_their_range_are_refused_by_name(argument: str, call: Any) -> None:
    assert_refused(call, argument, argument)


def test_more_directions_a_token_than_there_are_cost_nothing_and_give_no_more() -> None:
    few, many = frozen_dictionary_ev(A, B, (12,)), frozen_dictionary_ev(A, B, (12, 10**9))
    assert many[10**9] == many[12] == few[12]
