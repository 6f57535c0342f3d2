"""Tokens to the quality at which random starts end: read off between budgets, never beyond them."""

from __future__ import annotations

import math

import pytest

from rkcnn_lib.measure import tokens_to_quality

BUDGETS = (1000, 2000, 4000, 8000)


def curve(*values: float) -> dict[int, float]:
    return dict(zip(BUDGETS, values, strict=True))


def test_tokens_to_quality_are_found_between_budgets_on_a_logarithmic_scale():
    random = curve(0.5, 0.6, 0.7, 0.8)  # linear in log tokens
    twice_as_fast = {n: 0.5 + 0.1 * math.log2(2 * n / 1000) for n in BUDGETS}
    assert tokens_to_quality(twice_as_fast, random) == (pytest.approx(0.5), "=")
    between = {n: 0.5 + 0.1 * math.log2(3 * n / 1000) for n in BUDGETS}
    assert tokens_to_quality(between, random) == (pytest.approx(1 / 3), "=")
    assert tokens_to_quality(random, random) == (pytest.approx(1.0), "=")


def test_tokens_to_quality_are_never_extrapolated():
    random = curve(0.5, 0.6, 0.7, 0.8)
    assert tokens_to_quality(curve(0.5, 0.6, 0.7, 0.79), random) == (1.0, ">")
    assert tokens_to_quality(curve(0.85, 0.86, 0.87, 0.88), random) == (1 / 8, "<=")
    assert tokens_to_quality(curve(0.7, 0.9, 0.75, 0.9), random).ratio < 2 / 8, "the first crossing counts"


def test_mining_is_paid_for_in_tokens():
    random, fast = curve(0.5, 0.6, 0.7, 0.8), curve(0.6, 0.7, 0.8, 0.9)
    assert tokens_to_quality(fast, random, mining_tokens=2000) == (pytest.approx(0.5 + 0.25), "=")
    assert tokens_to_quality(curve(0.1, 0.1, 0.1, 0.1), random, mining_tokens=800) == (pytest.approx(1.1), ">")
