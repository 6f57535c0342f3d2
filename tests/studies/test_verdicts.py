"""Planted differences between arms get the right word under every hypothesis, and nothing else does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rkcnn_lib.runs.params import resolve
from rkcnn_lib.studies.verdicts import Claim, claims, judge, judge_arms, strongest_others, verdict_title, widened
from rkcnn_lib.vocabulary import HYPOTHESES, MEASURES

P = resolve("04_sae_compare", {"model": "atlas"})
ALL = {"random": 0.5, "covariance": 0.5, "rkcnn_unscored": 0.5, "kmeans_refined": 0.5, "rkcnn": 0.5}


def metrics(n_seeds: int = 6, **means: dict[str, float]) -> pd.DataFrame:
    """Tidy metrics whose arms differ by exactly what their means differ by, on seeds that share their luck."""
    rng = np.random.default_rng(0)
    luck, own = rng.normal(0, 0.01, n_seeds), rng.normal(0, 0.0002, n_seeds)
    own -= own.mean()
    return pd.DataFrame([
        {"arm": arm, "seed": seed, "metric": metric, "value": mean + luck[seed] + (arm == "rkcnn") * own[seed]}
        for metric, arms in means.items() for arm, mean in arms.items() for seed in range(n_seeds)
    ])  # fmt: skip


def words(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    rows = judge_arms(table, P)
    return {(row["hypothesis"].split(":")[0], row["metric"]): row["verdict"] for row in rows}


def test_each_hypothesis_has_the_word_of_its_own_rival():
    ev = ALL | {"random": 0.4, "covariance": 0.45, "rkcnn_unscored": 0.5, "kmeans_refined": 0.6}
    assert words(metrics(explained_variance=ev)) == {
        ("H1", "explained_variance"): "better", ("H1c", "explained_variance"): "better",
        ("H2", "explained_variance"): "equivalent", ("H3", "explained_variance"): "worse",
    }  # fmt: skip


def test_where_less_is_better_less_is_better():
    found = words(metrics(dead=ALL | {"random": 0.6, "covariance": 0.4}))
    assert [found[name, "dead"] for name in ("H1", "H1c", "H2")] == ["better", "worse", "equivalent"]


@pytest.mark.parametrize("metric", MEASURES)
def test_every_measure_is_judged_by_its_own_margin_and_direction(metric):
    margin = getattr(P, MEASURES[metric].margin)
    sign = -1 if MEASURES[metric].lower_is_better else 1
    by = {"random": 2, "covariance": 1, "rkcnn_unscored": 0, "kmeans_refined": -2}
    arms = {"rkcnn": 1.0} | {rival: 1.0 - sign * steps * margin for rival, steps in by.items()}
    found = words(metrics(**{metric: arms}))
    assert [found[name, metric] for name in HYPOTHESES] == ["better", "undecided", "equivalent", "worse"]


def test_below_five_seeds_nothing_is_decided():
    assert set(words(metrics(4, explained_variance=ALL | {"random": 0.1})).values()) == {"undecided"}


def test_a_rival_that_was_not_run_leaves_its_hypothesis_without_a_row():
    table = metrics(explained_variance=ALL, delta_ce={"random": 1.0, "rkcnn": 0.9})
    table = table[table["arm"] != "rkcnn_unscored"]
    names = {(claim.hypothesis.split(":")[0], claim.metric) for claim in claims(table, P)}
    assert names == {("H1", "delta_ce"), *((name, "explained_variance") for name in ("H1", "H1c", "H3"))}


def test_seeds_are_paired_by_name_not_by_order_and_those_without_a_partner_are_left_out():
    claim = Claim("h", "rkcnn", "random", "explained_variance", 0.01)
    rival = {seed: 0.1 * seed for seed in range(6)}
    own = {seed: 0.1 * seed + 0.05 + 0.001 * (seed % 2) for seed in reversed(range(7))}
    (row,) = judge([claim], {"explained_variance": {"rkcnn": own, "random": rival}})
    assert row["n_seeds"] == 6 and row["difference"] == pytest.approx(0.0505) and row["verdict"] == "better"


def test_a_claim_says_how_much_room_its_rival_leaves():
    (row,) = [row for row in judge_arms(metrics(dead={"random": 0.004, "rkcnn": 0.0}), P)]
    assert row["room"] == pytest.approx(row["baseline"]) and row["room"] < row["delta"]
    assert row["verdict"] != "better", "no arm can be better by more than the margin"


def test_the_title_gathers_measures_of_one_word():
    table = pd.DataFrame(judge_arms(metrics(explained_variance=ALL | {"random": 0.4}, dead=ALL), P))
    told = verdict_title(table)
    assert told.startswith("H1 better on explained variance; equivalent on dead latents. H1c equivalent on all 2")


def test_the_best_of_the_other_arms_is_named_without_a_word():
    alone = {"rkcnn": 0.5}  # on a measure that no other arm has it is compared with nobody
    table = metrics(explained_variance=ALL | {"kmeans_refined": 0.7}, dead=ALL | {"covariance": 0.2}, pw_mcc=alone)
    best = strongest_others(table, P).set_index("metric")
    assert best["strongest"].to_dict() == {"explained_variance": "kmeans_refined", "dead": "covariance"}
    assert best["difference"].to_dict() == pytest.approx({"explained_variance": -0.2, "dead": -0.3})
    assert "verdict" not in best


def test_a_loss_that_hangs_on_the_text_is_decided_for_seeds_alone_no_longer():
    judged = judge_arms(metrics(delta_ce=ALL | {"random": 0.6}, dead=ALL | {"random": 0.6}), P)
    over = pd.DataFrame([("rkcnn - random", -0.2, 0.4), ("rkcnn - covariance", -1e-9, 1e-9)])
    wider = widened(judged, "delta_ce", over.set_axis(["contrast", "low", "high"], axis=1))
    changed = {(row["contrast"], row["metric"]) for row, was in zip(wider, judged, strict=True) if row != was}
    assert changed == {("rkcnn - random", "delta_ce")}
    (row,) = [row for row in wider if (row["contrast"], row["metric"]) == ("rkcnn - random", "delta_ce")]
    assert (row["verdict"], row["low"], row["high"]) == ("undecided", -0.2, 0.4)
    assert {row["verdict"] for row in judged if row["contrast"] == "rkcnn - random"} == {"better"}
