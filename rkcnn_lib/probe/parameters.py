"""What the parameters of the estimators and the options of `mine` may be: one line each, whoever takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rkcnn_lib.probe.found import RULES, SELECTIONS
from rkcnn_lib.probe.lift import check_shrinkage
from rkcnn_lib.probe.neighbours import NEIGHBOURS
from rkcnn_lib.probe.nulls import SURROGATES
from rkcnn_lib.probe.scores import SCORES
from rkcnn_lib.probe.subsets import KINDS
from rkcnn_lib.tensors import number, one_of, switch, whole

NULLS = (*SURROGATES, "labels")
MIN_SURROGATES = 99  # a 95 % threshold takes as many


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "n_subsets": partial(whole, least=3),  # a third of them is selected
    "subset_size": _or_none(whole),
    "n_directions": whole,
    "n_selected": _or_none(whole),
    "k": whole,
    "ensemble": switch,
    "subsets": partial(one_of, allowed=KINDS),
    "score": partial(one_of, allowed=(*SCORES, NEIGHBOURS)),
    "lift": switch,
    "null": _or_none(partial(one_of, allowed=NULLS)),
    "surrogates": partial(one_of, allowed=SURROGATES),
    "rule": partial(one_of, allowed=RULES),
    "n_neighbours": partial(whole, least=2),
    "n_shifts": partial(whole, least=0),
    "select": partial(one_of, allowed=SELECTIONS),
    "n_stages": whole,
    "n_refinements": partial(whole, least=0),
    "n_surrogates": partial(whole, least=MIN_SURROGATES),
    "full_null_size": partial(number, interval="[0, inf]"),
    "normalise": switch,
    "merge_cosine": partial(number, interval="(0, 1]"),
    "shrinkage": lambda name, value: check_shrinkage(value),
    "max_steps": whole,
    "max_rows": partial(whole, least=2),
    "max_elements": whole,
    "max_iter": whole,
    "batch_size": whole,
}


def check_parameters(given: dict[str, Any]) -> None:
    """Raise ValueError for the first of the parameters given that has the wrong type or lies out of its range."""
    for name, value in given.items():
        if name in CHECKS:
            CHECKS[name](name, value)
