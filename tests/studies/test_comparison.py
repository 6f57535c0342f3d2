"""A comparison is fair, and its tables say what was planted: arms differ in their directions alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.runs.units import Unit
from rkcnn_lib.studies import cells, comparison, front, sae_panels
from rkcnn_lib.studies import truth as truth_panel
from rkcnn_lib.studies.cells import SEARCH_SEED
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.worlds.activations.store import MemoryStore
from rkcnn_lib.worlds.toy import PlantedDictionary

D_IN, N_LATENTS = 16, 32
P = resolve("04_sae_compare", {
    "model": "planted", "expansion": 2.0, "k": 4, "steps": 5, "batch_size": 64, "mining_rows": 1200, "n_neighbours": 8,
    "encoder": "tied", "n_seeds": 2, "arms": ["random", "kmeans_refined", "rkcnn"], "variants": [], "n_jobs": 1,
})  # fmt: skip


class Watched(MemoryStore):
    """Activations that remember which rows were asked for."""

    asked: list[tuple[str, int]]

    def rows(self, split: str, seed: int = 0) -> np.ndarray:
        self.__dict__.setdefault("asked", []).append((split, seed))
        return super().rows(split, seed)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Watched:
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    return Watched(PlantedDictionary(N_LATENTS, D_IN, mean_active=2.0, random_state=0).sample(8000)[0])


def test_what_an_arm_cannot_supply_is_filled_alike_in_all_arms(store, monkeypatch):
    supply = {"kmeans": 10, "datapoint": 20}

    def mined(store, p, arm, seed, device):
        rows = torch.randn(supply[arm], D_IN, generator=torch.Generator().manual_seed(len(arm)))
        return Unit(arrays={"directions": normalize(rows, dim=1)})

    monkeypatch.setattr(cells, "mined_unit", mined)
    few, more = (cells.initial_sae(store, P, arm, 0, "cpu").W_dec for arm in supply)
    assert torch.equal(few[20:], more[20:]) and not torch.isclose(few[:20], more[:20]).all(1).any()
    other_seed = cells.initial_sae(store, P, "kmeans", 1, "cpu").W_dec
    assert not torch.isclose(few[10:], other_seed[10:]).all(1).any()


def test_random_subsets_and_k_means_are_refined_alike(store, monkeypatch):
    passes = []

    def watched(X, D, n_passes, refine=cells.refine):
        passes.append(n_passes)
        return refine(X, D, n_passes)

    monkeypatch.setattr(cells, "refine", watched)
    for arm in ("rkcnn", "kmeans_refined"):
        unit = cells.mined_unit(store, P, arm, 0, "cpu")
        mined, refined = unit.arrays["mined"], unit.arrays["directions"]
        assert mined.shape == refined.shape == (int(unit.scalars["supply"]), D_IN)
        assert (mined * refined).sum(1).min() < 0.999
    assert passes == [P.n_refinements] * 2
    cells.mined_unit(store, P, "kmeans", 0, "cpu")
    assert passes[-1] == 0


def test_each_arm_trains_at_the_rate_that_suits_it_best(store, monkeypatch):
    best = {"random": 1e-3, "kmeans_refined": 3e-3, "rkcnn": 1e-2}

    def rate(store, p, arm, device):
        return Unit(scalars={"explained_variance": 1.0 - abs(p.lr - best[arm])})

    used = {}
    monkeypatch.setattr(comparison, "rate_unit", rate)
    monkeypatch.setattr(comparison, "cell", lambda s, p, arm, seed, *_: (used.setdefault((arm, seed), p.lr), {}))
    p = P.model_copy(update={"lr_search": list(best.values())})
    rates = comparison.run_grid({6: store}, p, "cpu").rates
    assert used == {(arm, seed): lr for arm, lr in best.items() for seed in range(2)}
    assert len(rates) == 9 and rates[rates["chosen"]].set_index("arm")["lr"].to_dict() == best


def test_each_arm_starts_with_the_encoder_that_suits_it_and_every_layer_and_budget_goes_by_one_search(
    store, monkeypatch
):
    best, searched, used = {"random": "tied", "kmeans_refined": "fitted", "rkcnn": "fitted"}, [], {}

    def rate(store, p, arm, device):
        searched.append((p.steps, arm, p.encoder))
        return Unit(scalars={"explained_variance": float(p.encoder == best[arm])})

    def cell(store, p, arm, seed, *_):
        used.setdefault(arm, set()).add(p.encoder)
        return Unit(scalars={"explained_variance": 0.5}), {"supply": 1}

    monkeypatch.setattr(comparison, "rate_unit", rate)
    monkeypatch.setattr(comparison, "cell", cell)
    monkeypatch.setattr(comparison, "unit_scalars", lambda unit: unit.scalars)
    monkeypatch.setattr(comparison, "load_unit", lambda unit: unit)
    p = P.model_copy(update={"encoder": None, "budgets": [0.2, 0.6]})
    comparison.compare(store, p, "cpu")
    comparison.run_grid({2: store, 4: store, 6: store}, p, "cpu")
    assert used == {arm: {encoder} for arm, encoder in best.items()}
    assert searched == [(5, arm, encoder) for _ in range(2) for arm in P.arms for encoder in ("fitted", "tied")]


def test_rates_are_tried_on_a_seed_of_their_own_and_read_no_held_out_row(store):
    for arm in P.arms:
        assert 0 < cells.rate_unit(store, P, arm, "cpu").scalars["explained_variance"] < 1
    assert P.n_seeds <= SEARCH_SEED and {seed for _, seed in store.asked} == {SEARCH_SEED}
    assert {split for split, _ in store.asked} == {"train", "mine"}


def compared(budgets: pd.DataFrame, seconds: float = 100.0, mining: float = 10.0) -> Compared:
    cells = budgets[["arm", "seed"]].drop_duplicates()
    metrics = cells.assign(metric="seconds", value=seconds)
    supply = cells[cells["arm"] != "random"].assign(seconds=mining)
    return Compared({}, supply, metrics, pd.DataFrame(), budgets)


def along(**curves: list[float]) -> pd.DataFrame:
    """Explained variance of each arm after 1,000, 2,000 and 4,000 tokens; of fewer values the last ones."""
    return pd.DataFrame([
        {"arm": arm, "seed": seed, "metric": "explained_variance", "tokens": tokens, "value": value}
        for arm, values in curves.items() for seed in (0, 1)
        for tokens, value in zip([1000, 2000, 4000][-len(values):], values, strict=True)
    ])  # fmt: skip


def test_an_arm_that_is_where_random_ends_after_half_of_the_tokens_needs_half_and_its_mining():
    table = front.needed_tokens(compared(along(
        random=[0.5, 0.6, 0.7], rkcnn=[0.6, 0.7, 0.8], kmeans=[0.8, 0.8, 0.8], pca=[0.1, 0.2, 0.3], frozen=[0.9]
    )))  # fmt: skip
    rows = table.groupby("arm").first()
    assert rows["value"].to_dict() == pytest.approx({"kmeans": 0.35, "pca": 1.1, "random": 1.0, "rkcnn": 0.6})
    assert rows["mining"].to_dict() == pytest.approx({"kmeans": 0.1, "pca": 0.1, "random": 0.0, "rkcnn": 0.1})
    assert rows["bound"].to_dict() == {"kmeans": "<=", "pca": ">", "random": "=", "rkcnn": "="}
    assert len(table) == 8 and set(table["metric"]) == {"tokens_to_quality"}
    assert front.needed_tokens(compared(along(random=[0.7], rkcnn=[0.8]))).empty


def test_a_rival_that_never_reaches_the_quality_enters_no_verdict_on_tokens():
    found = compared(along(random=[0.5, 0.6, 0.7], rkcnn=[0.4, 0.5, 0.6], covariance=[0.4, 0.5, 0.6]))
    frozen = pd.DataFrame(
        {"arm": "rkcnn", "stage": ["before training", "after training"], "seed": 0, "k": 4, "value": [0.5, 0.25]}
    )
    told = sae_panels.measured(found, frozen).set_index(["metric", "arm"])["value"]
    assert set(told["tokens_to_quality"].index) == {"random", "rkcnn"}
    assert told["frozen_ev", "rkcnn"] == 0.5 and told["frozen_ev_trained", "rkcnn"] == 0.25


def test_an_advantage_is_positive_where_the_mined_arm_is_better_whichever_way_a_metric_runs():
    ev = along(random=[0.5, 0.6, 0.7], rkcnn=[0.6, 0.6, 0.6], covariance=[0.6, 0.5, 0.4])
    budgets = pd.concat([ev, ev.assign(metric="dead")])
    ahead = front.advantage(compared(budgets)).groupby(["metric", "arm", "tokens"])["value"].mean().unstack()
    assert ahead.loc["explained_variance", "random"].tolist() == pytest.approx([0.1, 0.0, -0.1])
    assert ahead.loc["dead", "random"].tolist() == pytest.approx([-0.1, 0.0, 0.1])
    assert ahead.loc["explained_variance", "covariance"].tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_chance_of_recovery_is_not_drawn_as_the_truth_was(monkeypatch):
    world = PlantedDictionary(64, 16, random_state=0)
    arrays = {"W_dec_start": world.directions, "density": torch.ones(64)}
    found = SimpleNamespace(units={("rkcnn", 0): SimpleNamespace(folder=Path("rkcnn"), arrays=arrays)})
    monkeypatch.setattr(cells, "load_saelens", lambda folder: SimpleNamespace(W_dec=world.directions))
    table = truth_panel.recovery(found, SimpleNamespace(truth=world.directions, rates=world.rates, d_in=16))
    rates = table[table["metric"].str.endswith("recovery_rate")]
    assert len(rates) == 3 and (rates["value"] == 1).all() and (rates["chance_mean"] < 0.02).all()


def test_recovery_is_told_apart_by_how_often_a_true_direction_fires(monkeypatch):
    """One decoder holds the rarer half of the truth, another all of it, but with the busiest fifth dead."""
    generator = torch.Generator().manual_seed(0)
    truth = normalize(torch.randn(40, 32, generator=generator), dim=1)
    order = torch.randperm(40, generator=generator)
    rates = np.empty(40)
    rates[order.numpy()] = np.linspace(0.01, 0.4, 40)  # rarest first
    noise = normalize(torch.randn(20, 32, generator=generator), dim=1)
    decoders = {"half": torch.cat([truth[order[:20]], noise]), "dead": truth[order]}
    alive = {"half": torch.ones(40, dtype=torch.bool), "dead": torch.arange(40) < 32}
    found = SimpleNamespace(
        units={
            (arm, 0): SimpleNamespace(folder=Path(arm), arrays={"W_dec_start": truth, "density": alive[arm].float()})
            for arm in decoders
        }
    )
    monkeypatch.setattr(cells, "load_saelens", lambda folder: SimpleNamespace(W_dec=decoders[folder.parent.name]))
    table = truth_panel.recovery_by_rate(found, SimpleNamespace(truth=truth, rates=rates))
    assert table.loc["half"].tolist() == [1.0] * 5 + [0.0] * 5
    assert table.loc["dead"].tolist() == [1.0] * 8 + [0.0] * 2
    assert truth_panel.recovery_by_rate(found, SimpleNamespace(truth=truth)).empty


def test_a_search_that_selects_nothing_is_refused_before_anything_is_trained(store, tmp_path):
    few = P.model_copy(update={"n_subsets": 40, "n_stages": 1, "lr_search": [1e-3, 3e-3]})
    with pytest.raises(ParameterError, match=r"rkcnn, seed 0: .*candidates a place"):
        comparison.run_grid({0: store}, few, "cpu")
    assert [path.name for path in (tmp_path / "units").iterdir()] == ["directions"]
