"""Verdicts and tables behind the notebooks, on numbers whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from rkcnn_lib import figures
from rkcnn_lib.runs.params import resolve
from rkcnn_lib.studies import (
    causal,
    causal_subspaces,
    layers,
    sae_panels,
    sae_titles,
    verdicts,
)

SEEDS = range(6)


def values(**means):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.001, len(SEEDS))
    return {arm: {s: mean + noise[s] + rng.normal(0, 0.001) for s in SEEDS} for arm, mean in means.items()}


def judged(**means):
    rows = verdicts.judge(
        "h", values(**means), "rkcnn", ("random", "rkcnn_unscored"), metric="explained_variance", delta=0.005
    )
    return {row["verdict"] for row in rows}


def test_an_advantage_over_both_baselines_is_supported():
    assert judged(rkcnn=0.9, random=0.8, rkcnn_unscored=0.8) == {"supported"}


def test_beating_random_alone_is_not_enough():
    assert judged(rkcnn=0.9, random=0.8, rkcnn_unscored=0.9) == {"not supported"}


def test_a_declared_baseline_that_was_not_run_leaves_it_inconclusive():
    assert judged(rkcnn=0.9, random=0.8) == {"inconclusive"}


def layer_metrics(gain, n_layers=4, n_seeds=5):
    rng = np.random.default_rng(1)
    return pd.DataFrame([
        {"layer": la, "arm": arm, "seed": s, "metric": m, "value": rng.normal(0.8, 0.01) + gain * (arm == "rkcnn")}
        for la in range(n_layers)
        for arm in ("random", "covariance", "rkcnn_unscored", "rkcnn")
        for s in range(n_seeds)
        for m in ("explained_variance", "dead", "delta_ce")
    ])  # fmt: skip


def multilayer():
    return resolve("05_multilayer", {"model": "atlas", "n_seeds": 5})


def test_the_best_of_many_layers_of_noise_is_within_its_null():
    best = layers.best_of_layers(layer_metrics(0.0), multilayer())
    inside = (best["value"] <= best["chance_upper"] * 1.5).mean()
    assert inside >= 0.5 and (best["chance_upper"] > 0).all()
    strong = layers.best_of_layers(layer_metrics(0.1), multilayer()).query("metric == 'best explained_variance'")
    assert (strong["value"] >= strong["chance_upper"]).all()


def test_layer_differences_are_corrected_over_all_layers():
    table = layers.differences(layer_metrics(0.0), multilayer())
    assert len(table) == 4 * 3 * 3 and (table["verdict"] != "supported").all()
    one_layer = layers.differences(layer_metrics(0.0).query("layer == 0"), multilayer())
    same = table.query("layer == 0").merge(one_layer, on=["contrast", "metric"])
    assert (same["high_x"] - same["low_x"] >= same["high_y"] - same["low_y"] - 1e-12).all()


def test_figures_over_layers_show_first_what_their_titles_speak_of():
    table = layers.differences(layer_metrics(0.0), multilayer())
    fig = figures.layer_differences(table)
    assert layers.difference_title(table).startswith("Explained variance")
    shown = [trace for trace in fig.data if trace.visible in (True, None)]
    first = table[table["metric"] == "explained_variance"]
    assert {y for trace in shown if trace.customdata is not None for y in trace.y} == set(first["difference"])


def test_the_judged_rank_is_the_middle_one():
    p = resolve("06_causal_checks", {"ranks": [16, 2, 4, 8, 32]})
    assert causal.judged_rank(p) == 8


def test_the_supervised_ranking_puts_the_separating_direction_first():
    y = np.repeat([0, 1, 2], 30)
    X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    X[:, 3] += torch.as_tensor(y) * 10.0
    assert causal_subspaces.ranked_by_separation(torch.eye(5), X, y)[0].argmax() == 3


def test_what_dead_latents_and_agreement_must_be_read_with_is_counted_from_the_saes():
    def unit(density, n_mined):
        return SimpleNamespace(arrays={"density": torch.tensor(density)}, scalars={"n_mined": n_mined})

    units = {("rkcnn", 0): unit([0.1, 0.2, 0.0, 0.0], 2), ("rkcnn", 1): unit([0.1, 0.0, 0.0, 0.3], 2),
             ("random", 0): unit([0.0, 0.1, 0.1, 0.1], 0)}  # fmt: skip
    rows = [
        {"metric": metric, "arm": arm, "value": value, "chance_mean": chance}
        for arm, value, chance in (("rkcnn", 0.6, 0.59), ("random", 0.3, 0.62))
        for metric in ("PW-MCC after training", "PW-MCC, dead latents as 0 after training")
    ]
    told = sae_panels.remarks(SimpleNamespace(units=units), SimpleNamespace(table=pd.DataFrame(rows)))
    assert told["fewer dead latents"] == (
        "rkcnn starts 2 of its 4 latents from mined directions, the rest at random: 25% of the mined ones and 75% "
        "of the rest never fire; of random's latents 25%."
    )
    assert "rkcnn 0.60 (chance 0.59), random 0.30 (chance 0.62)." in told["seeds agree more"]
    counted = "as 0: rkcnn 0.60, random 0.30: +0.30 against random in place of +0.30."
    assert told["seeds agree more"].endswith(counted)


def both(**columns):
    """A table with the mined arm and the random one, whose numbers are a tenth of its."""
    table = pd.DataFrame(columns)
    rivals = table.assign(arm="random", value=table["value"] / 10)
    return pd.concat([table.assign(arm="rkcnn"), rivals], ignore_index=True)


def test_titles_say_what_the_figures_below_them_show():
    curve = {"step": [1, 50, 160], "value": [30.0, 9.0, 8.0]}
    told = sae_titles.history_title(both(**curve, metric="loss"))
    assert told == "Training loss at steps 1 and 160: rkcnn 30 and 8, random 3 and 0.8"
    along = both(**curve | {"value": [0.5, 0.6, 0.7]}, chance_mean=0.68)
    told = sae_titles.along_title(along)
    assert told.endswith("goes from 0.50 to 0.70 for rkcnn (chance 0.68), from 0.05 to 0.07 for random (chance 0.68)")
    dead = both(tokens=[1, 100, 1000], value=[0.9, 0.5, 0.4]).rename(columns={"value": "share"})
    told = sae_titles.dead_title(dead)
    assert told.endswith("after all of 1,000 tokens: rkcnn 50% and 40%, random 5% and 4%")
    told = sae_titles.density_title({"rkcnn": np.array([0.0, 0.0, 0.5]), "random": np.zeros(3)})
    assert told.endswith("rkcnn 50.00%, random nan%")
