"""What 02's accuracies are held against besides permuted labels: the subset's size, and control tasks.

A separation score that is reached only with all dimensions says nothing about subsets. And a probe that learns a
label could as well have memorised tokens: a control task gives each type a random label, and selectivity is the
accuracy on the label less that on the control task (Hewitt & Liang 2019, EMNLP, "Designing and Interpreting Probes
with Control Tasks").
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import ProbeValidation
from rkcnn_lib.studies.probing import Task, Tasks, choose, controlled, over_seeds, probes, seed_unit

ENOUGH = 0.9  # share of what all dimensions have above chance that a subset must reach
PROBE = "logistic"


def by_size(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return label, seed, size, d, group (top, random), value: held-out accuracy of subsets of every size up to d."""
    return over_seeds(_sizes_of_seed, run, tasks)


def _sizes_of_seed(p: ProbeValidation, tasks: Tasks, seed: int) -> pd.DataFrame:
    return seed_unit("probing_sizes", _sizes_of_task, p, tasks, seed)


def _sizes_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    task = controlled(task, p.control, seed)
    (fit_X, fit_y, _), (test_X, test_y, _) = task.half(0, seed), task.half(1, seed)
    d, rows = fit_X.shape[1], []
    make = probes(p.n_neighbours)[PROBE]
    for size in sorted({min(size, d) for size in [*p.curve_sizes, d]}):
        subsets = draw_subsets(d, size, p.n_subsets if size < d else 1, random_state=seed)
        scores = subset_scores(fit_X, subsets, "separation", y=fit_y).cpu().numpy()
        chosen = choose(scores, min(p.n_probed, len(scores)), np.random.default_rng(seed))
        for group in ("top", "random"):
            found = []
            for i in chosen[group]:
                fitted = make().fit(subsets.restrict(fit_X, i).numpy(), fit_y)
                found.append(balanced_accuracy_score(test_y, fitted.predict(subsets.restrict(test_X, i).numpy())))
            rows.append({"label": task.label, "seed": seed, "size": size, "d": d, "group": group,
                         "value": float(np.mean(found))})  # fmt: skip
    return pd.DataFrame(rows)


def control_tasks(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return label, seed, probe, group (top, full), accuracy, control, selectivity."""
    return over_seeds(_controls_of_seed, run, tasks)


def _controls_of_seed(p: ProbeValidation, tasks: Tasks, seed: int) -> pd.DataFrame:
    return seed_unit("probing_controls", _controls_of_task, p, tasks, seed)


def random_labels(types: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return a label for each row that depends on its type only; every type has each of the classes as likely."""
    names, type_of_row = np.unique(types, return_inverse=True)
    return np.random.default_rng(seed).choice(np.unique(y), len(names))[type_of_row]


def _controls_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    task = controlled(task, p.control, seed)
    control = replace(task, y=random_labels(task.types, task.y, seed))
    rows = []
    for name, make in probes(p.n_neighbours).items():
        for group in ("top", "full"):
            found = {}
            for kind, given in (("accuracy", task), ("control", control)):
                fit, test = given.rows(0, seed), given.rows(1, seed)  # classes as even in the one as in the other
                columns = _columns(given, p, fit, seed) if group == "top" else np.arange(given.X.shape[1])
                fitted = make().fit(given.X[fit][:, columns].numpy(), given.y[fit])
                guessed = fitted.predict(given.X[test][:, columns].numpy())
                found[kind] = balanced_accuracy_score(given.y[test], guessed)
            rows.append({"label": task.label, "seed": seed, "probe": name, "group": group, **found,
                         "selectivity": found["accuracy"] - found["control"]})  # fmt: skip
    return pd.DataFrame(rows)


def _columns(task: Task, p: ProbeValidation, rows: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates of the subset that separates the labels of these rows best."""
    d = task.X.shape[1]
    subsets = draw_subsets(d, p.subset_size or round(d**0.5), p.n_subsets, random_state=seed)
    scores = subset_scores(task.X[rows], subsets, "separation", y=task.y[rows])
    return subsets.indices[: subsets.n_coordinate][int(scores[: subsets.n_coordinate].argmax())].numpy()


def for_curve(sizes: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that the curve takes; chance is that of all dimensions under permuted labels."""
    full = accuracies[(accuracies["group"] == "full") & (accuracies["probe"] == PROBE)]
    chance = full.groupby("seed")[["chance_mean", "chance_upper"]].mean().reset_index()
    rows = sizes.groupby(["seed", "size", "group"], sort=False)["value"].mean().reset_index()
    return (
        rows.merge(chance, on="seed")
        .assign(metric="balanced_accuracy")
        .rename(columns={"size": "coordinates_in_a_subset", "group": "miner"})
    )


def enough(sizes: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return seed, size, d: the smallest size at which top subsets reach ENOUGH of the full accuracy above chance.

    Where all dimensions together do not beat chance's 95 % point there is nothing to reach, and size is d.
    """
    rows = []
    for seed, part in for_curve(sizes, accuracies).query("miner == 'top'").groupby("seed"):
        part = part.sort_values("coordinates_in_a_subset")
        full, chance = part["value"].iloc[-1], part["chance_mean"].iloc[0]
        reached = part["coordinates_in_a_subset"][part["value"] >= chance + ENOUGH * (full - chance)]
        d = int(part["coordinates_in_a_subset"].iloc[-1])
        beats = full > part["chance_upper"].iloc[0]
        rows.append({"seed": seed, "size": int(reached.iloc[0]) if beats else d, "d": d})
    return pd.DataFrame(rows)


def title(sizes: pd.DataFrame, accuracies: pd.DataFrame) -> str:
    """Return the finding of the curve over sizes."""
    found = enough(sizes, accuracies)
    return f"Top subsets of {found['size'].median():.0f} of {found['d'].iloc[0]} coordinates hold {ENOUGH:.0%} of what all hold above chance"  # noqa: E501


def check(sizes: pd.DataFrame, accuracies: pd.DataFrame, world: str) -> Check:
    """Return the part of 02's gate that fails where only all dimensions together hold the label."""
    found = enough(sizes, accuracies)
    fewer = int((found["size"] < found["d"]).sum())
    return Check(
        f"{world}: seeds in which a subset short of all dimensions reaches {ENOUGH:.0%} of what they hold above chance",
        fewer, f"= {len(found)} (all)", fewer == len(found), chance=f"{0.05 * len(found):.2f}",
    )  # fmt: skip


def control_table(controls: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy, control accuracy and selectivity by label, group and probe."""
    columns = ["accuracy", "control", "selectivity"]
    return controls.groupby(["label", "group", "probe"])[columns].mean().round(3).reset_index()
