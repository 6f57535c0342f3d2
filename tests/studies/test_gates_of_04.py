"""04's gate fails on each fault that it is there for, and passes without one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.runs.units import Unit
from rkcnn_lib.studies import cells, sae_panels
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.vocabulary import ARMS

N_LATENTS = 64
P = resolve("04_sae_compare", {"model": "atlas", "k": 8, "n_seeds": 2, "variants": []})


def compared(**faults: float) -> Compared:
    """Two seeds of every arm, alike in everything; a fault changes one number of rkcnn, seed 1."""
    units, rows, supply = {}, [], []
    for arm in P.arms:
        for seed in (0, 1):
            is_faulty = arm == "rkcnn" and seed == 1
            given = {name: value for name, value in faults.items() if is_faulty}
            history = pd.DataFrame({"tokens": [1000, given.get("tokens", 20_000)]})
            units[arm, seed] = SimpleNamespace(tables={"history": history}, arrays={"density": torch.ones(N_LATENTS)})
            values = {"explained_variance": 0.9, "l0": 8.0, "n_tokens": 4000.0} | given
            rows += [
                {"arm": arm, "seed": seed, "metric": metric, "value": values[metric]}
                for metric in ("explained_variance", "l0", "n_tokens")
            ]
            if arm != "random":
                candidates = given.get("candidates_a_place", 3.7) if ARMS[arm].searches else None
                mined = {"rows": given.get("rows", 1000), "candidates_a_place": candidates, "wanted": N_LATENTS,
                         "supply": given.get("supply", N_LATENTS)}  # fmt: skip
                supply.append({"arm": arm, "seed": seed} | mined)
    return Compared(units, pd.DataFrame(supply), pd.DataFrame(rows), *[pd.DataFrame()] * 2)


def failed(**faults: float) -> list[str]:
    return [check.name for check in sae_panels.checks(compared(**faults), P) if not check.passed]


def test_arms_that_differ_in_their_directions_alone_pass():
    assert failed() == []


@pytest.mark.parametrize(
    ("fault", "value", "told"),
    [
        ("candidates_a_place", 0.75, "candidates for a place"),
        ("l0", 10.0, "L0 of the arms"),
        ("rows", 900, "rows mined"),
        ("tokens", 10_000, "tokens trained on"),
        ("supply", 20, "start from its own directions"),
        ("explained_variance", -0.1, "smallest explained variance"),
        ("explained_variance", float("nan"), "every number is finite"),
    ],
)
def test_each_fault_fails_its_own_check(fault, value, told):
    names = failed(**{fault: value})
    assert any(told in name for name in names), names


def test_too_few_held_out_tokens_fail_for_all_arms_alike():
    few = compared()
    few.metrics.loc[few.metrics["metric"] == "n_tokens", "value"] = 700.0  # the mean latent fires 88 times
    (name,) = [check.name for check in sae_panels.checks(few, P) if not check.passed]
    assert "mean latent fires" in name


def test_a_search_that_selects_nothing_is_refused_with_the_numbers(monkeypatch):
    funnel = pd.DataFrame({"round": [1, 2], "drawn": 96, "candidates": [96, 40], "places": 32, "kept": 32})
    found = [Unit(tables={"funnel": rows}) for rows in (funnel, funnel.head(1))]
    monkeypatch.setattr(cells, "cached_unit", lambda *_: found.pop(0))
    cell = (SimpleNamespace(key="activations"), P, "rkcnn", 32, 3, "cpu")
    with pytest.raises(ParameterError, match=r"rkcnn, seed 3: .*round 2: 40 for 32"):
        cells.directions_unit(*cell)
    cells.directions_unit(*cell)


def test_more_contexts_of_the_same_documents_do_not_narrow_the_interval_of_the_loss():
    rng, tables = np.random.default_rng(0), []
    by_document = {(arm, seed): rng.normal(arm == "random", 0.1, 6) for arm in ("random", "rkcnn") for seed in range(5)}
    for n in (1, 40):
        arrays = {
            cell: {"ce_by_context": torch.tensor(losses).repeat_interleave(n)} for cell, losses in by_document.items()
        }
        units = {cell: SimpleNamespace(arrays=parts) for cell, parts in arrays.items()}
        store = SimpleNamespace(context_documents=lambda split, n=n: torch.arange(6).repeat_interleave(n))
        p = SimpleNamespace(splice_contexts=6 * n)
        tables.append(sae_panels.loss_over_documents(units.items(), store, p))
    pd.testing.assert_frame_equal(*tables)
    (row,) = tables[0].to_dict("records")
    assert (row["contrast"], row["seeds"], row["documents"]) == ("rkcnn - random", 5, 6)
    assert 0.8 < row["low"] < row["difference"] < row["high"] < 1.2


def test_the_loss_of_several_layers_is_judged_on_its_mean_over_them():
    units, steps = {}, torch.linspace(0, 0.1, 6)
    for layer, ahead in ((2, 3.0), (5, -1.0)):  # in the mean 1
        for seed in range(3):
            units[layer, "rkcnn", seed] = SimpleNamespace(arrays={"ce_by_context": steps})
            units[layer, "random", seed] = SimpleNamespace(arrays={"ce_by_context": steps + ahead + 0.01 * seed})
    store = SimpleNamespace(context_documents=lambda split: torch.arange(6))
    (row,) = sae_panels.loss_over_documents(units.items(), store, SimpleNamespace(splice_contexts=6)).to_dict("records")
    assert (row["seeds"], row["documents"]) == (3, 6) and row["difference"] == pytest.approx(1.01)
