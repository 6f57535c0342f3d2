"""The studies behind 01 and 02, on worlds whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.runs.params import defaults, resolve
from rkcnn_lib.studies import neighbourhoods, planes, probing, toy


def test_halves_share_no_document_and_balance_classes():
    groups = np.repeat(np.arange(400), 5)
    y = np.tile([0, 0, 0, 0, 1], 400)
    task = probing.Task("toy", "x", torch.randn(2000, 3), y, groups, groups)
    a, b = task.halves(seed=1)
    assert not set(a.groups) & set(b.groups)
    assert np.bincount(a.y).tolist() == np.bincount(b.y).tolist() or abs(a.y.mean() - 0.4) < 0.2


SMALL_PROBING = {
    "n_permutations": 19, "n_subsets": 60, "n_directions": 20, "n_probed": 3, "n_probed_null": 3,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("control", ["gaussian", "permuted"])
def test_noise_does_not_pass_the_probing_gate(control, tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    p = resolve(
        "02_probe_validation",
        defaults("02_probe_validation") | {"control": control} | SMALL_PROBING,
    )
    y = np.repeat([0, 1], 150)
    X = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    X[:, :3] += torch.as_tensor(y)[:, None] * 3.0
    task = probing.Task("toy", "x", X, y, np.arange(300), np.arange(300))
    noise = pd.concat([probing.study_task(task, p, seed) for seed in range(2)])
    assert not all(check.passed for check in probing.checks(noise, "toy"))


def probe_parameters(**given):
    small = SMALL_PROBING | {"n_ensemble": 3, "curve_sizes": [2, 4]}
    return resolve("02_probe_validation", defaults("02_probe_validation") | small | given)


def test_a_chance_level_of_more_subsets_than_are_judged_is_refused():
    with pytest.raises(ValueError, match="n_probed_null = 4: at most n_probed = 3"):
        probe_parameters(n_probed_null=4)


def sizes_reached(X, y, p):
    task = probing.Task("toy", "x", X, y, np.arange(len(y)), np.arange(len(y)))
    sizes = pd.concat([probing.sizes_of_task(task, p, seed) for seed in range(2)])
    curve = neighbourhoods.labelled_curve(sizes, pd.concat([probing.study_task(task, p, seed) for seed in range(2)]))
    return neighbourhoods.enough(curve)["size"]


@pytest.mark.slow
def test_a_label_of_two_coordinates_is_found_by_small_subsets_and_one_of_all_is_not():
    y = np.tile([0, 1], 300)
    noise = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    few = noise.clone()
    few[:, :2] += torch.as_tensor(y)[:, None] * 4.0
    assert (sizes_reached(few, y, probe_parameters()) <= 4).all()
    # The sign of a sum whose terms all but cancel: each coordinate alone, and any few, know next to nothing.
    every = noise - noise.mean(1, keepdim=True) + (torch.as_tensor(y)[:, None] - 0.5) * 0.4
    assert (sizes_reached(every, y, probe_parameters()) == 8).all()
    assert (sizes_reached(noise, y, probe_parameters()) == 8).all()


def test_control_labels_depend_on_the_type_alone_and_memorising_earns_no_selectivity():
    types = np.repeat(np.arange(40), 30)
    y = np.tile(np.arange(40) % 2, 30)[np.argsort(np.tile(np.arange(40), 30), kind="stable")]
    labels = probing.random_labels(types, y, seed=3)
    assert all(len(set(labels[types == t])) == 1 for t in range(40)) and set(labels) == {0, 1}
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(types), 40).float()
    task = probing.Task("toy", "x", one_hot, y, np.tile(np.arange(30), 40), types)
    table = probing.controls_of_task(task, probe_parameters(subset_size=4), seed=0)
    full = table[(table["group"] == "full") & (table["probe"] == "logistic")]
    assert full["accuracy"].item() > 0.95 and abs(full["selectivity"].item()) < 0.05


@pytest.mark.slow
def test_mined_directions_meet_every_pentagon(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    p = resolve(
        "01_toy_superposition",
        defaults("01_toy_superposition") | {"plane_probabilities": [0.05, 0.02], "plane_instances": 4},
    )
    trained = planes.train_planes(p)
    mined = planes.mine_planes(trained, SimpleNamespace(p=p))
    pentagons = mined[mined["shape"] == "pentagon"]
    assert len(pentagons) >= 7 and pentagons["matched_cosine"].min() >= 0.99  # five random directions: 0.72, 95 % 0.91


def test_labels_with_chance_levels_of_their_own_are_shown_apart_with_the_classifier_beside_every_probe():
    rows = [
        {"label": label, "seed": 0, "group": group, "probe": probe, "value": 0.6, "chance_mean": c, "chance_upper": c}
        for label, c in (("topic", 0.2), ("number", 0.5))
        for group, probe in (("top", "kNN"), ("top", "logistic"), ("ensemble", "RkCNN"))
    ]
    shown = probing.for_figure(pd.DataFrame(rows), by_label=True)
    views = shown.groupby("probe")
    assert set(views.groups) == {"topic, kNN", "topic, logistic", "number, kNN", "number, logistic"}
    assert (views["chance_mean"].nunique() == 1).all() and all("ensemble" in set(v) for _, v in views["group"])
    assert set(probing.for_figure(pd.DataFrame(rows))["probe"]) == {"kNN", "logistic"}


def clustered_task(structure, seed=0):
    """Rows of ten types that lie on rays of their own, beside as many that lie anywhere; or noise alone."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 10, 3000)
    X = torch.tensor(rng.normal(size=(3000, 16)), dtype=torch.float32)
    if structure:
        rays = torch.tensor(rng.normal(size=(10, 16)) * 2, dtype=torch.float32)
        clear = torch.tensor(rng.random(3000) < 0.5)
        X = torch.where(clear[:, None], rays[types] + 0.3 * X, X)
    return probing.Task("planted", "any", X, np.zeros(3000, int), np.arange(3000), types)


def purities(structure, n_seeds=5):
    p = resolve("02_probe_validation", {"n_subsets": 300, "n_directions": 30, "n_permutations": 19, "n_neighbours": 5})
    found = [neighbourhoods.neighbourhoods_of_task(clustered_task(structure, seed), p, seed) for seed in range(n_seeds)]
    return pd.concat(found)


def test_the_score_that_04_uses_finds_rows_of_one_type_where_there_are_such_and_chance_in_noise():
    real, noise = purities(True), purities(False)
    groups = neighbourhoods.in_use(real).groupby("group")["value"].mean()
    assert groups["top"] > 0.9 > groups["random"] + 0.2 and groups["random"] > groups["bottom"]
    assert real["chance_mean"].mean() == pytest.approx(0.1, abs=0.02)
    assert all(check.passed for check in neighbourhoods.checks(real, "planted"))
    assert neighbourhoods.in_use(noise).groupby("group")["value"].mean()["top"] == pytest.approx(0.1, abs=0.03)
    assert not all(check.passed for check in neighbourhoods.checks(noise, "noise")), "noise must not pass 02's gate"


def test_purity_leaves_the_anchor_out():
    types = np.array([0, 0, 1, 1, 0])
    rows, anchors = np.array([[0, 1, 2], [3, 2, 4]]), np.array([0, 3])
    assert neighbourhoods.purity(types, rows, anchors).tolist() == [0.5, 0.5]


def parity_task(seed, d=10):
    """Rows near the corners of a cube, their type the parity of the signs: any d - 1 coordinates know nothing of it."""
    rng = np.random.default_rng(seed)
    corners = rng.choice([-1.0, 1.0], (4000, d))
    X = torch.tensor(corners + rng.normal(0, 0.1, corners.shape), dtype=torch.float32)
    return probing.Task("planted", "any", X, np.zeros(4000, int), np.arange(4000), (corners.prod(1) > 0).astype(int))


def test_the_gate_fails_where_a_type_shows_in_all_dimensions_only():
    p = probe_parameters(n_subsets=100, n_directions=30, n_neighbours=2, curve_sizes=[3, 5, 7])
    table = pd.concat([neighbourhoods.neighbourhoods_of_task(parity_task(seed), p, seed) for seed in range(2)])
    full = table[table["size"] == 10]
    assert (full["value"] > 0.9).all(), "all dimensions together know the type"
    assert (neighbourhoods.enough(neighbourhoods.purity_curve(table))["size"] == 10).all()
    assert not neighbourhoods.checks(table, "planted")[-1].passed


def rising(share_by_size, d=10):
    """Purities as `neighbourhoods.study` returns them: winners' share grows with size, random ones' is half of it."""
    rows = [
        {"seed": seed, "size": size, "in_use": size == 4, "group": group, "value": share * factor + 0.01 * seed,
         "chance_mean": 0.1, "chance_upper": 0.15}
        for seed in range(3) for size, share in share_by_size.items()
        for group, factor in (("top", 1.0), ("random", 1.0 if size == d else 0.5))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_winners_that_beat_chance_and_random_ones_do_not_pass_where_nearly_all_dimensions_are_needed():
    late = neighbourhoods.checks(rising({4: 0.5, 5: 0.55, 9: 0.9, 10: 0.9}), "planted")
    assert [check.passed for check in late] == [True, True, False]
    assert all(check.passed for check in neighbourhoods.checks(rising({4: 0.5, 5: 0.85, 9: 0.9, 10: 0.9}), "planted"))


@pytest.mark.parametrize("score", ["kurtosis", "skew"])
def test_02_judges_the_score_and_the_subsets_that_its_parameters_name(score):
    task, shared = clustered_task(True), {}
    for options in ({}, {"score": score}, {"subsets": "rotated"}):
        table = neighbourhoods.neighbourhoods_of_task(task, probe_parameters(curve_sizes=[], **options), seed=0)
        shared[str(options)] = neighbourhoods.in_use(table)["value"].tolist()
    assert len({tuple(values) for values in shared.values()}) == 3


def test_winning_subsets_point_at_their_anchor_s_feature_and_those_of_noise_do_not():
    truth = torch.nn.functional.normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    types = np.random.default_rng(0).integers(0, 10, 3000)
    noise = torch.randn(3000, 16, generator=torch.Generator().manual_seed(2))
    clear = 4 * truth[types] * (torch.arange(3000) % 2)[:, None] + 0.3 * noise  # every other row lies on a ray

    def pointed(X):
        def tasks(p, seed):
            yield probing.Task("planted", "any", X, np.zeros(3000, int), np.arange(3000), types, truth)

        return neighbourhoods.winners(SimpleNamespace(p=probe_parameters(n_subsets=300)), tasks)

    real, random = pointed(clear), pointed(noise)
    means = real.groupby("group")["value"].mean()
    assert means["top"] > 0.9 and means["top"] > means["bottom"] and means["top"] > real["chance_upper"].iloc[0] + 0.5
    assert abs(random[random["group"] == "top"]["value"].mean()) < 0.3
    for _, arrows in neighbourhoods.angles(real).values():
        np.testing.assert_allclose(np.linalg.norm(arrows, axis=1), 1, atol=1e-6)


def planted_space():
    """Twelve one-sided features in six dimensions, two active at a time."""
    W = torch.nn.functional.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    return toy.Space(W, 2)


def test_scores_of_the_first_implementation_lie_beyond_their_null_where_features_are_and_at_it_in_their_controls():
    def beyond(control):
        p = resolve("01_toy_superposition", {"control": control, "n_hidden": 6})
        return pd.concat([toy.scores_of_space(planted_space(), p, seed) for seed in range(3)])

    tables = {control: beyond(control) for control in ("none", "permuted", "gaussian")}
    shares = {control: table.groupby("miner")["value"].mean() for control, table in tables.items()}
    assert (shares["none"][["separation", "knn_label_consistency"]] > 0.5).all()
    assert (shares["permuted"][["separation", "knn_label_consistency"]] < 0.25).all()
    assert (shares["gaussian"][["kurtosis", "coordinate_kurtosis"]] < 0.25).all()
    shown = toy.seed_score_table(tables["none"])
    assert list(shown.index.get_level_values("score")) == list(toy.SEED_SCORES) and (shown["spread"] > 0).all()
    assert np.allclose(tables["none"]["chance_mean"], 0.05, atol=0.01), "the null held against itself"
    assert "chance 5 %" in toy.seed_score_title(tables["none"])


def test_titles_of_01_and_02_say_what_the_figures_below_them_show():
    scores = {"labels": np.arange(100.0) + 50, "permuted labels": np.arange(100.0)}
    assert probing.scores_title("Toy", scores).startswith("Toy: 55% of subsets")
    frames = {str(n): (np.zeros((19, 2)), np.zeros((n, 2))) for n in (0, 3, 24)}
    assert "keeps 0 directions of pure noise and 24 of hidden states with 19 features" in toy.noise_title(frames)
