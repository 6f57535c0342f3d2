"""The stability panel: one dictionary in three orders agrees wholly, three random ones as chance says."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from rkcnn_lib.runs import grid
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from rkcnn_lib.studies import agreement as study
from rkcnn_lib.studies.agreement import (
    AFTER,
    ALL,
    BEFORE,
    NONE,
    OLDER,
    PW_MCC,
    SHARED,
    SPAN,
    TOTAL,
    WHITE,
    agreement,
    recurrence,
)
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.vocabulary import MINED, UNMINED
from rkcnn_lib.worlds.activations.store import MemoryStore

D, N = 32, 64
P = SimpleNamespace(other_architecture=None, n_jobs=1, n_seeds=3)


def unit(arm, seed, sae, n_live):
    start = SAE(SAEConfig(D, N, k=4), random_state=100 + seed).W_dec.data  # starts never agree
    arrays = {"W_dec_start": start,
              "density": torch.cat([torch.full((n_live,), 0.1), torch.zeros(N - n_live)])}  # fmt: skip
    return cached_unit(
        "saes", {"arm": arm, "seed": seed},
        lambda scratch: Unit(
            scalars={"l0": 4.0}, arrays=arrays, save_extra=lambda folder: save_saelens(sae, folder / "sae")
        ),
    )  # fmt: skip


def store(rank):
    """Activations that fill so many of the dimensions."""
    generator = torch.Generator().manual_seed(5)
    X = torch.randn(4000, rank, generator=generator) @ torch.linalg.qr(torch.randn(D, rank, generator=generator)).Q.T
    return MemoryStore(X)


@pytest.fixture(params=[store(D)], ids=["everywhere"], scope="module")
def panel(request, tmp_path_factory):
    """Three seeds: the mined arm ends at one dictionary in different orders, the random arm at unrelated ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RKCNN_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield agreed(request.param)


def agreed(activations):
    units = {}
    for seed in range(3):
        same, other = SAE(SAEConfig(D, N, k=4), random_state=7), SAE(SAEConfig(D, N, k=4), random_state=seed)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            same.W_dec.copy_(same.W_dec[order])
            same.W_enc.copy_(same.W_enc[:, order])
        units[MINED, seed] = unit(MINED, seed, same, N)
        units[UNMINED, seed] = unit(UNMINED, seed, other, N // 2)
    found = agreement(Compared(units, *[pd.DataFrame()] * 4), activations, P)
    return SimpleNamespace(**vars(found), trained=units)


def mean(panel, metric, arm, column="value"):
    table = panel.table
    return table[(table["metric"] == metric) & (table["arm"] == arm)][column].mean()


@pytest.mark.parametrize("measure", [WHITE, PW_MCC, TOTAL, OLDER, SHARED])
def test_the_same_latents_in_another_order_agree_wholly(panel, measure):
    assert mean(panel, f"{measure} {AFTER}", MINED) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("measure", [WHITE, PW_MCC, TOTAL, OLDER, SHARED, SPAN])
def test_unrelated_latents_agree_as_chance_says(panel, measure):
    value = mean(panel, f"{measure} {AFTER}", UNMINED)
    assert value == pytest.approx(mean(panel, f"{measure} {AFTER}", UNMINED, "chance_mean"), abs=0.06)


def test_agreement_at_the_end_is_not_taken_for_agreement_at_the_start(panel):
    assert mean(panel, f"{PW_MCC} {BEFORE}", MINED) < 0.5
    assert mean(panel, f"{PW_MCC} {AFTER}", MINED) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("panel", [store(4)], indirect=True, ids=["in four dimensions"], scope="module")
def test_where_activations_fill_few_dimensions_chance_is_higher(panel):
    levels = {level: mean(panel, f"{PW_MCC} {AFTER}", MINED, level) for level in ("chance_mean", "chance_any")}
    assert levels["chance_mean"] > 0.75 > 0.5 > levels["chance_any"]
    white = mean(panel, f"{WHITE} {AFTER}", UNMINED)
    assert white == pytest.approx(mean(panel, f"{WHITE} {AFTER}", UNMINED, "chance_mean"), abs=0.06)


def test_dead_latents_count_in_the_total_only(panel):
    assert mean(panel, f"{TOTAL} {AFTER}", UNMINED) == pytest.approx(mean(panel, f"{PW_MCC} {AFTER}", UNMINED) / 2)


def test_every_number_of_the_summary_stands_beside_its_chance_level(panel):
    shown = panel.summary.drop(columns=["L0", f"{WHITE}, bootstrap 95 %"])
    assert shown.map(lambda cell: "(" in cell).all().all() and list(shown.index) == [MINED, UNMINED]


def test_no_more_processes_match_at_once_than_memory_holds(monkeypatch):
    monkeypatch.setattr(study, "_n_latents", lambda folder: 10_000)  # 3.9 GB a process
    monkeypatch.setattr(grid.joblib, "cpu_count", lambda: 64)
    for free, n in ((1e9, 1), (8e9, 2), (1e13, 64)):
        monkeypatch.setattr(grid.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert study.matching_processes(None, Path("unit")) == n
    assert study.matching_processes(5, Path("unit")) == 5, "what was asked for is obeyed"


def test_one_seed_agrees_with_nobody_and_nothing_is_judged():
    alone = agreement(None, None, SimpleNamespace(n_seeds=1))
    assert alone.table.empty and alone.summary.empty and alone.by_seed.empty


def test_latents_of_one_dictionary_recur_in_all_seeds_and_unrelated_ones_in_none(panel):
    truth = SAE(SAEConfig(D, N, k=4), random_state=7).W_dec.data
    known = SimpleNamespace(truth=truth[: N // 2])  # half of the mined arm's latents are true directions
    compared = Compared(panel.trained, *[pd.DataFrame()] * 4)
    found = recurrence(compared, panel, known, SimpleNamespace(p=SimpleNamespace(n_seeds=3, model="planted")))
    shares = found.shares.groupby("metric")["value"].mean()
    assert shares[MINED] == 1 and shares[UNMINED] == 0
    assert found.traits["share of live latents"].to_dict() == {(MINED, ALL): 1.0, (UNMINED, NONE): 1.0}
    assert found.traits["is a true direction"].to_dict() == {(MINED, ALL): 0.5, (UNMINED, NONE): 0.0}
