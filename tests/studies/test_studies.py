"""Verdicts and tables behind the notebooks, on numbers whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from rkcnn_lib import figures
from rkcnn_lib.runs.params import resolve
from rkcnn_lib.studies import causal, causal_subspaces, front, layers, sae_panels


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
    assert len(table) == 4 * 3 * 3 and (table["verdict"] != "better").all()
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


def test_dead_latents_are_told_apart_by_where_they_started():
    def unit(n_mined, **shares):
        kinds = ("untrained_dead", "died", "revived", "dead")
        scalars = {f"{kind}{part}": share for part, share in shares.items() for kind in kinds}
        return SimpleNamespace(arrays={"density": torch.zeros(4)}, scalars=scalars | {"n_mined": n_mined})

    units = {("rkcnn", 0): unit(3, _mined=0.2, _fill=1.0), ("rkcnn", 1): unit(3, _mined=0.4, _fill=0.5),
             ("kmeans", 0): unit(4, _mined=0.1), ("random", 0): unit(0, **{"": 0.7})}  # fmt: skip
    table = sae_panels.dead_by_origin(SimpleNamespace(units=units))
    assert table["dead at the end"].to_dict() == {
        ("rkcnn", "own"): 0.3, ("rkcnn", "fill"): 0.75, ("kmeans", "own"): 0.1, ("random", "own"): 0.7
    }  # fmt: skip
    assert table["latents"].tolist() == [3, 1, 4, 4]


def both(**columns):
    """A table with the mined arm and the random one, whose numbers are a tenth of its."""
    table = pd.DataFrame(columns)
    rivals = table.assign(arm="random", value=table["value"] / 10)
    return pd.concat([table.assign(arm="rkcnn"), rivals], ignore_index=True)


def test_titles_say_what_the_figures_below_them_show():
    ev = both(metric="explained_variance", tokens=[100, 200, 400], value=[0.5, 0.6, 0.7])
    assert front.budget_title(ev) == "From 200 to 400 tokens random still gains 0.0100"
    assert "not known" in front.budget_title(ev[ev["tokens"] == 400])
    ahead = ev.query("arm == 'random'").assign(arm="covariance")
    assert front.advantage_title(ahead).endswith("from +0.0500 to +0.0700 over covariance")
    frozen = both(k=[8, 32], value=[0.5, 0.9], stage="before training")
    assert sae_panels.frozen_title(frozen) == (
        "Before training, explained variance at k = 8: rkcnn 0.500, random 0.050"
    )
    told = sae_panels.density_title({"rkcnn": np.array([0.0, 0.0, 0.5]), "random": np.zeros(3)})
    assert told.endswith("rkcnn 50.00%, random nan%")
