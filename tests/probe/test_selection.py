"""Selection selects: candidates outnumber places, the score changes what is kept, and its control never uses it."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rkcnn_lib.measure import recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.probe import RkCNNMiner, mine, search
from rkcnn_lib.probe.inputs import RULES, SearchOptions
from rkcnn_lib.probe.search import MIN_RATIO, N_ENSEMBLES, SelectionWarning, choose, cover, votes
from rkcnn_lib.worlds import SyntheticSparseDataGenerator, ToyModel, open_or_capture
from rkcnn_lib.worlds.toy import PlantedDictionary, true_directions

BEST, RANDOM, WORST = METHODS = ("rkcnn", "rkcnn_unscored", "rkcnn_worst")


def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """200 features in 48 dimensions whose rates follow Zipf's law, so that many subsets see none of them clearly."""
    world = PlantedDictionary(200, 48, mean_active=3, noise=0.05, random_state=seed)
    return world.sample(4000)[0], world.directions


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    store = open_or_capture(
        "atlas", layer=2, hook="mlp_out", n_tokens=30_000, root=tmp_path_factory.mktemp("cache"), device="cpu"
    )
    return store.matrix("mine", n_rows=10_000)


def chosen_by_round(
    X: torch.Tensor, method: str, monkeypatch: pytest.MonkeyPatch, **options: int | str
) -> list[torch.Tensor]:
    rounds: list[torch.Tensor] = []

    def watched(scores, directions, *arguments):
        found = choose(scores, directions, *arguments)
        rounds.append(directions[found[0]])
        return found

    monkeypatch.setattr(search, "choose", watched)
    mine(method, X, **options)
    return rounds


def jaccard(A: torch.Tensor, B: torch.Tensor, cosine: float = 0.9) -> float:
    """Shared directions over all: two with a cosine above `cosine` are one, whichever subsets led to them."""
    both = int((match(A, B).cosines > cosine).sum())
    return both / (len(A) + len(B) - both)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "rule"), [("atlas", "separation"), *(("planted", rule) for rule in RULES)])
def test_best_random_and_worst_keep_different_directions_in_every_round(world, rule, atlas, monkeypatch) -> None:
    X, options = (atlas, {"n_directions": 120}) if world == "atlas" else (planted(0)[0], {})
    options = {"n_directions": 128, "n_subsets": 480, "rule": rule} | options
    kept = {method: chosen_by_round(X, method, monkeypatch, **options) for method in METHODS}
    for a, b in ((BEST, RANDOM), (BEST, WORST), (RANDOM, WORST)):
        for one, other in zip(kept[a], kept[b], strict=True):
            assert jaccard(one, other) < 0.5, (a, b)


@pytest.mark.slow
def test_candidates_outnumber_the_places_of_every_round_on_a_language_model(atlas) -> None:
    funnel: list[dict[str, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", SelectionWarning)
        mine(BEST, atlas, 120, n_subsets=480, funnel=funnel)
    assert [row["round"] for row in funnel] == [1, 2, 3, 4, 5, 6]
    assert all(row["candidates"] >= MIN_RATIO * row["places"] for row in funnel)
    assert all(row["kept"] == row["places"] == 20 and row["drawn"] == 480 for row in funnel)


@pytest.mark.slow
def test_what_the_score_selects_is_nearer_the_truth_than_chance_selects_and_what_it_rejects_farther() -> None:
    found = {method: [] for method in METHODS}
    for seed in range(3):
        X, truth = planted(seed)
        for method in METHODS:
            D = mine(method, X, 96, random_state=seed, n_subsets=480, n_refinements=0)
            found[method].append(recovery_rate(D, truth))
    best, random, worst = (sum(found[method]) / 3 for method in METHODS)
    assert best > random + 0.1 and random > worst, (best, random, worst)


@pytest.mark.parametrize("rule", RULES)
def test_no_score_has_a_say_in_what_the_unscored_twin_keeps(rule, monkeypatch) -> None:
    """All that ranks becomes noise: the control keeps the same directions in the same order, the miner others."""
    X, _ = planted(1)
    options = {"n_directions": 60, "n_subsets": 360, "rule": rule}
    before = {method: mine(method, X, **options) for method in (BEST, RANDOM)}
    noise = torch.Generator().manual_seed(7)

    def shuffled(scores, *arguments):
        return choose(torch.rand(len(scores), generator=noise, dtype=torch.float64), *arguments)

    monkeypatch.setattr(search, "choose", shuffled)
    monkeypatch.setattr(search, "concentration", lambda X, U, *_: torch.rand(len(U), generator=noise).double())
    monkeypatch.setattr(
        search, "cover", lambda D, kept, rows, places, worst: torch.randperm(len(D), generator=noise)[:places]
    )
    assert torch.equal(mine(RANDOM, X, **options), before[RANDOM])
    after = mine(BEST, X, **options)
    assert len(after) != len(before[BEST]) or not torch.allclose(after, before[BEST])


def slow_cover(candidates: torch.Tensor, kept: torch.Tensor, rows: torch.Tensor, places: int) -> tuple[list, list]:
    """Greedy facility location as it is defined, one candidate after the other: what is chosen, and its gains."""
    chosen, gains = [], []
    for _ in range(places):
        have = torch.cat([kept, candidates[chosen], torch.zeros(1, rows.shape[1])])
        total = (have @ rows.T).clamp(min=0).square().amax(0).sum()
        gain = [
            -1.0 if i in chosen
            else float((torch.cat([have, candidates[[i]]]) @ rows.T).clamp(min=0).square().amax(0).sum() - total)
            for i in range(len(candidates))
        ]  # fmt: skip
        gains.append(max(gain))
        chosen.append(gain.index(max(gain)))
    return chosen, gains


@pytest.mark.parametrize("n_kept", [0, 3])
@pytest.mark.parametrize("clustered", [False, True], ids=["spread", "clustered"])
def test_cover_chooses_as_the_slow_greedy_search_does_and_gains_less_each_time(clustered, n_kept) -> None:
    """Where most candidates lie round one cluster of rows, one choice makes the gains of all of them small."""
    generator = torch.Generator().manual_seed(n_kept)
    rows, candidates, kept = (torch.randn(n, 12, generator=generator) for n in (80, 300, n_kept))
    if clustered:
        rows[:60, 0] += 20
        candidates[:250, 0] += 20
    rows, candidates, kept = (normalize(D, dim=1) for D in (rows, candidates, kept))
    chosen, gains = slow_cover(candidates, kept, rows, 12)
    assert cover(candidates, kept, rows, 12).tolist() == chosen
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(gains))


def test_cover_finds_clusters_that_scores_pass_over() -> None:
    """Eight directions round a large cluster score best; three small clusters have one candidate each, all tied."""
    E = torch.eye(12)
    candidates = torch.cat([normalize(E[0] + 0.6 * E[4:], dim=1), E[1:4]])
    rows = torch.cat([E[:1].expand(400, -1), E[1:4].repeat(40, 1)])
    scores = torch.cat([torch.arange(9.0, 1.0, -1.0), torch.ones(3)])
    chosen = {
        rule: choose(scores, candidates, SearchOptions(n_directions=4, rule=rule), 4, rows=rows)[0].tolist()
        for rule in ("separation", "cover")
    }
    assert chosen["separation"] == [0, 1, 2, 3]
    assert chosen["cover"][0] < 8 and sorted(chosen["cover"][1:]) == [8, 9, 10]


def test_what_every_ensemble_finds_again_has_more_votes_than_noise_of_better_score() -> None:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(3, 40, generator=generator), dim=1).repeat(N_ENSEMBLES, 1)
    near = normalize(features + 0.02 * torch.randn(features.shape, generator=generator), dim=1)
    noise = normalize(torch.randn(60, 40, generator=generator), dim=1)
    ensemble = torch.cat([torch.arange(N_ENSEMBLES).repeat_interleave(3), torch.arange(60) % N_ENSEMBLES])
    scores = torch.cat([torch.zeros(len(near)), 1 + torch.rand(60, generator=generator)])
    found = votes(torch.cat([near, noise]), ensemble, scores)
    assert found[: len(near)].min() >= N_ENSEMBLES - 1 and found[len(near) :].max() <= 1
    assert found[len(near) :].argsort().tolist() == scores[len(near) :].argsort().tolist(), "ties go by the score"


def test_near_copies_are_merged_into_the_first_drawn_and_share_one_score() -> None:
    D = torch.eye(4)[[0, 0, 1, 2, 2, 3]]
    scores = torch.tensor([0.0, 9.0, 4.0, 4.0, 8.0, 1.0])  # means: 4.5, 4, 6, 1
    options = SearchOptions(n_directions=2, n_stages=1)
    assert choose(scores, D, options, 2)[0].tolist() == [3, 0]
    assert choose(scores, D, options, 9) == (pytest.approx(torch.tensor([3, 0, 2, 5])), 4)
    kept = choose(scores, D, options, 9, 0, torch.eye(4)[[2]])
    assert kept[0].tolist() == [0, 2, 5] and kept[1] == 3, "what lies near a kept direction is no candidate"


def test_a_score_without_anything_to_select_from_is_told_with_the_numbers() -> None:
    X = torch.eye(3)[torch.arange(3000) % 3] + 0.01 * torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(SelectionWarning, match=r"round 1: \d+ for 2"):
        miner = RkCNNMiner(n_subsets=36, n_directions=12, null=None).fit(X)
    assert any(row["candidates"] < MIN_RATIO * row["places"] for row in miner.funnel_)


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "d", "p", "n", "least"), [(128, 32, 0.02, 192, 0.98), (40, 10, 0.05, 60, 0.8)])
@pytest.mark.filterwarnings("ignore::rkcnn_lib.probe.search.SelectionWarning")  # so few features are soon all found
def test_the_default_miner_recovers_features_in_superposition(n_features, d, p, n, least) -> None:
    model = ToyModel(n_features, d, p, random_state=0)
    model.train(800, progress=False)
    X = SyntheticSparseDataGenerator(n_features, p, random_state=100).sample(5_000) @ model.W
    truth = true_directions(model.W)
    default = RkCNNMiner(n_subsets=3 * n, n_directions=n, null=None).fit(X).directions_
    assert recovery_rate(default, truth) >= least
    assert recovery_rate(mine(BEST, X, n, n_subsets=3 * n), truth) >= least


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("with_labels", [True, False])
def test_with_labels_or_without_lift_all_rules_are_the_mean_score(rule, with_labels):
    X = np.random.default_rng(0).standard_normal((120, 9))
    y, lift = (np.arange(120) % 2, True) if with_labels else (None, False)
    options = {"n_subsets": 30, "n_directions": 5, "null": None, "lift": lift, "score": "kurtosis"}
    found, plain = (RkCNNMiner(rule=name, **options).fit(X, y).directions_ for name in (rule, "separation"))
    assert np.array_equal(found, plain) and len(found)
