"""What a sweep says: nothing where nothing is, a planted effect where one is, the best of many beside its null."""

import json

import numpy as np
import pandas as pd
import pytest

from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.runs.published import SweepTables, read_tables
from rkcnn_lib.studies import layers
from rkcnn_lib.studies.verdicts import best_of, sign_flips

ARMS, SEEDS, N_LAYERS = ("random", "covariance", "rkcnn_unscored", "rkcnn"), range(5), 12
P = resolve("05_multilayer", {"model": "atlas"})
SETTINGS = pd.MultiIndex.from_product([range(3), range(3), range(6)], names=["k", "lr", "score"]).to_frame(index=False)


CELLS = (
    pd.MultiIndex.from_product(
        [range(len(SETTINGS)), range(N_LAYERS), ARMS, SEEDS], names=["setting", "layer", "arm", "seed"]
    )
    .to_frame(index=False)
    .merge(SETTINGS, left_on="setting", right_index=True)
    .assign(metric="explained_variance", steps=100, hook="mlp_out")
)


def simulated(seed, gain=0.0, noise=0.01):
    """12 layers x 54 settings x 5 seeds in which a seed, an arm of it and a layer share luck, as they do in earnest."""
    rng = np.random.default_rng(seed)
    shape = (len(SETTINGS), N_LAYERS, len(ARMS), len(SEEDS))
    value = rng.normal(0.8, noise, shape) + rng.normal(0, noise, (1, N_LAYERS, 1, 1))
    value = value + rng.normal(0, noise, (1, 1, 1, len(SEEDS))) + rng.normal(0, noise, (1, 1, len(ARMS), len(SEEDS)))
    value[:, :, ARMS.index("rkcnn")] += gain
    return CELLS.assign(value=value.ravel())


def tables(metrics):
    return SweepTables(metrics, ["k", "lr", "score"], len(SETTINGS), 0)


@pytest.mark.slow
def test_a_sweep_without_an_effect_is_called_better_in_at_most_one_simulation_of_twenty():
    better, best_beats_null, n = 0, 0, 200
    for seed in range(n):
        metrics = simulated(seed)
        found = layers.verdicts(metrics, P)
        judged = {row["verdict"] for row in found}
        assert judged <= {"better", "equivalent", "worse", "undecided"} and len(found) == 3
        better += "better" in judged
        if seed < 30:  # the slower table
            best = layers.best_of_layers(metrics, P)
            best_beats_null += (best["value"] > best["chance_upper"]).iloc[0]
    assert better <= 0.05 * n
    assert best_beats_null <= 5, "5 % of 30, with room for chance: P(more than 5) < 0.01"


def test_a_planted_effect_is_found_in_the_verdict_and_beyond_the_null_of_the_best():
    metrics = simulated(0, gain=0.1)
    assert {row["verdict"] for row in layers.verdicts(metrics, P)} == {"better"}
    best = layers.best_of_sweep(tables(metrics), P)
    assert (best["value"] > best["chance_upper"]).all() and (best["best_of"] == 54 * 12).all()
    assert (best["p"] == 1 / 32).all(), "five seeds cannot say more"


def test_the_best_of_more_is_better_by_chance_alone():
    found = pd.DataFrame(np.random.default_rng(0).normal(size=(600, 6)))
    few, many = best_of(found.iloc[:5]), best_of(found)
    assert many["chance_upper"] > few["chance_upper"] > 0


def test_sign_flips_are_all_patterns_with_the_observed_one_first():
    d = pd.DataFrame([[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]])
    found = sign_flips(d)
    assert found.shape == (8, 2) and found[0].tolist() == pytest.approx([7 / 3, -7 / 3])
    assert sorted(np.round(3 * found[:, 0])) == [-7, -5, -3, -1, 1, 3, 5, 7]
    assert (found[:, 0] == -found[:, 1]).all(), "rows of a seed turn together"
    assert sign_flips(pd.DataFrame(np.ones((1, 30))))[0] == 1


def signs_over_layers(differences):
    """The sign test of differences (12 layers, 5 seeds) between two arms."""
    rows = [
        {"layer": la, "arm": arm, "seed": s, "metric": "explained_variance",
         "value": differences[la, s] * (arm == "rkcnn")}
        for la in range(12)
        for arm in ("random", "rkcnn")
        for s in SEEDS
    ]  # fmt: skip
    found = layers.sign_over_layers(pd.DataFrame(rows), resolve("05_multilayer", {"arms": ["random", "rkcnn"]}))
    return found.iloc[0]


def test_the_sign_test_over_layers_does_not_count_layers_that_share_their_seeds_as_new():
    shared = np.tile([0.03, 0.02, 0.02, 0.01, -0.01], (12, 1))  # one draw a seed, the same at all layers
    found = signs_over_layers(shared)
    assert found["layers_ahead"] == 12 and found["p_layers"] < 0.001
    assert found["cells_ahead"] == 48 and found["p_seeds"] == 12 / 32, "four of five coins on one side"


@pytest.mark.parametrize("sign", [1, -1])
def test_an_advantage_of_every_seed_at_every_layer_has_the_smallest_p_that_its_seeds_allow(sign):
    found = signs_over_layers(sign * np.random.default_rng(0).uniform(0.01, 0.02, (12, 5)))
    assert found["p_seeds"] == 2 / 32


@pytest.mark.slow
def test_the_sign_test_over_layers_gives_noise_that_seeds_share_its_due():
    rng = np.random.default_rng(0)
    p = np.array(
        [signs_over_layers(rng.normal(size=5) + 0.3 * rng.normal(size=(12, 5)))["p_seeds"] for _ in range(200)]
    )
    assert 0.02 < (p <= 2 / 32).mean() < 0.11 and (p <= 0.5).mean() < 0.6


def test_an_advantage_that_follows_gamma_is_told_and_too_few_layers_are_not_judged():
    profile = pd.DataFrame({"layer": range(8), "gamma": np.linspace(0.5, 4, 8)})
    per_layer = pd.DataFrame({
        "layer": range(8), "contrast": "rkcnn - random", "metric": "explained_variance",
        "difference": np.linspace(0, 0.1, 8) ** 2,
    })  # fmt: skip
    along = per_layer.merge(profile, on="layer")
    title = layers.gamma_title(along)
    assert "rank correlation 1.00" in title and "p 0.00" in title
    assert "too few" in layers.gamma_title(along.iloc[:3])


def test_sensitivity_finds_the_axis_that_matters_and_keeps_none_as_a_value():
    metrics = simulated(0, noise=0.001)
    metrics.loc[(metrics["arm"] == "rkcnn") & (metrics["lr"] == 2), "value"] += 0.05
    metrics["lr"] = metrics["lr"].astype("Int64").replace(0, pd.NA)
    found = layers.sensitivity(tables(metrics))
    assert "along lr: from" in layers.sensitivity_title(found)
    assert set(found.query("axis == 'lr'")["x"]) == {"none", 1, 2}
    slow = metrics.query("arm == 'random' and seed == 3 and k == 2")["value"].mean()
    assert found.query("axis == 'k' and x == 2 and arm == 'random' and seed == 3")["value"].item() == pytest.approx(
        slow
    )


def test_the_published_sweep_is_no_better_than_coins():
    told = layers.published_sweep().iloc[0]
    assert told["settings"] == 54 and told["best"] == pytest.approx(0.119, abs=5e-4)
    assert told["low"] < 0 < told["high"] and told["coins_that_do_as_well"] > 0.5 and -told["worst"] > told["best"]


def test_a_folder_without_a_finished_sweep_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no finished sweep"):
        read_tables(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"status": "running"}), encoding="utf-8")
    with pytest.raises(ParameterError, match="no finished sweep"):
        read_tables(tmp_path)
