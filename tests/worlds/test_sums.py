"""Sums are screened in one order, asked in the other, and judged on pairs that no training ever showed."""

from __future__ import annotations

import pytest

from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.models import modadd
from rkcnn_lib.worlds.prompts import ROLES, screen, task_prompts


@pytest.fixture(scope="module")
def lm():
    return load_model("modadd", device="cpu")


def test_sums_are_right_and_of_one_side_each(lm):
    asked = task_prompts("modadd", lm.tokenizer, "sum")
    assert all(prompt.answer_ids == ((prompt.ids[0] + prompt.ids[1]) % 113,) for prompt in asked)
    sides = [{p.entity for p in asked if p.role == role} for role in ROLES]
    assert sides[0] == sides[1] | sides[2] and not sides[1] & sides[2]
    assert min(len(side) for side in sides) > 200


def test_judged_sums_were_never_trained_on_and_the_model_knows_them_all(lm):
    judged = [p for p in task_prompts("modadd", lm.tokenizer, "sum") if p.role == "evaluation"]
    held_out = modadd.held_out_pairs(113)
    for prompt in judged:
        a, b, _ = prompt.ids
        assert held_out[a * 113 + b] and lm.untrained[a * 113 + b] and lm.untrained[b * 113 + a]
    assert screen(lm, judged) == judged
