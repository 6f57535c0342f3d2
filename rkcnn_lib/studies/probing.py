"""The study behind 02: do subsets with a high separation score hold a label better, on rows the score did not see?

Each task is a labelled cloud of activations, split by group (document) into a half on which subsets are scored
and probes are fitted and a half on which probes are judged. Every accuracy stands beside the same number under
labels permuted by group, from the whole pipeline run again: scoring, selecting, fitting, judging. And beside two
more: what subsets of other sizes hold, and control tasks, in which each type has a random label: a probe may have
memorised tokens, and its selectivity is the accuracy on the label less that on the control task (Hewitt & Liang 2019,
EMNLP, "Designing and Interpreting Probes with Control Tasks").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe import RandomKCNNClassifier
from rkcnn_lib.probe.nulls import permute_labels
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import Subsets, draw_subsets
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import ProbeValidation
from rkcnn_lib.studies.probe_tasks import Task, Tasks, choose, controlled, over_seeds, subset_size
from rkcnn_lib.tensors import chance_level

GROUPS = ("top", "random", "bottom", "full", "ensemble")
ENOUGH = 0.9  # share of what all dimensions have above chance that a subset must reach
PROBE = "logistic"  # that judges subsets of other sizes
SIZE = "coordinates_in_a_subset"


def probes(n_neighbours: int) -> dict[str, ClassifierMixin]:
    """Return the probes by name: what reads a label off a subset's coordinates."""
    return {
        "kNN": make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbours)),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3)),
    }


def judged(
    probe: ClassifierMixin, fit: Task, test: Task, subsets: Subsets | None = None, members: Iterable[int] = ()
) -> float:
    """Return the balanced accuracy on ``test`` of a probe of all coordinates, or the mean of one of each subset's."""
    seen = [(fit.X, test.X)] if subsets is None else [[subsets.restrict(t.X, i) for t in (fit, test)] for i in members]
    told = [probe.fit(X.numpy(), fit.y).predict(X_test.numpy()) for X, X_test in seen]
    return float(np.mean([balanced_accuracy_score(test.y, labels) for labels in told]))


def subsets_in_use(X: torch.Tensor, p: ProbeValidation, seed: int) -> Subsets:
    """Draw subsets of the coordinates of X (n, d), of the size that the search takes."""
    return draw_subsets(X.shape[1], subset_size(p, X.shape[1]), p.n_subsets, random_state=seed)


def chosen(fit: Task, subsets: Subsets, n: int, seed: int) -> dict[str, np.ndarray]:
    """Return which n subsets separate the labels best, which worst, and as many at random."""
    scores = subset_scores(fit.X, subsets, "separation", y=fit.y).cpu().numpy()
    return choose(scores, min(n, len(scores)), np.random.default_rng(seed))


def accuracies(
    task: Task, p: ProbeValidation, seed: int, subsets: Subsets, n_probed: int
) -> dict[tuple[str, str], float]:
    """Return balanced accuracy by (group of n_probed subsets, probe): scored and fitted on half A, judged on B."""
    fit, test = task.halves(seed)
    by_cell = {}
    for name, probe in probes(p.n_neighbours).items():
        for group, members in chosen(fit, subsets, n_probed, seed).items():
            by_cell[group, name] = judged(probe, fit, test, subsets, members)
        by_cell["full", name] = judged(probe, fit, test)
    n_best = min(p.n_ensemble, p.n_subsets // 3)
    ensemble = RandomKCNNClassifier(p.n_subsets, n_best, subsets.size, p.n_neighbours, random_state=seed)
    by_cell["ensemble", "RkCNN"] = judged(ensemble, fit, test)
    return by_cell


def study_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return world, label, seed, group, probe, value, chance_mean, chance_upper for one task."""
    task = controlled(task, p.control, seed)
    subsets = subsets_in_use(task.X, p, seed)
    real = accuracies(task, p, seed, subsets, p.n_probed)
    rng = np.random.RandomState(seed)
    permuted = (replace(task, y=permute_labels(task.y, task.groups, rng)) for _ in range(p.n_permutations))
    # the mean of fewer subsets varies more: that moves chance's 95 % point up, never down
    null = [accuracies(other, p, seed, subsets, p.n_probed_null) for other in permuted]
    chance = {cell: chance_level([draw[cell] for draw in null]) for cell in real}
    return pd.DataFrame([
        {"world": task.world, "label": task.label, "seed": seed, "group": cell[0], "probe": cell[1], "value": value,
         "chance_mean": float(chance[cell][0]), "chance_upper": float(chance[cell][1])}
        for cell, value in real.items()
    ])  # fmt: skip


def sizes_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return label, seed, size, group (top, random), value: held-out accuracy of subsets of every size up to d."""
    fit, test = controlled(task, p.control, seed).halves(seed)
    d, rows = fit.X.shape[1], []
    for size in sorted({min(size, d) for size in [*p.curve_sizes, d]}):
        subsets = draw_subsets(d, size, p.n_subsets if size < d else 1, random_state=seed)
        groups = chosen(fit, subsets, p.n_probed, seed)
        for group in ("top", "random"):
            value = judged(probes(p.n_neighbours)[PROBE], fit, test, subsets, groups[group])
            rows.append({"label": task.label, "seed": seed, "size": size, "group": group, "value": value})
    return pd.DataFrame(rows)


def random_labels(types: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return a label for each row that depends on its type only; every type has each of the classes as likely."""
    names, type_of_row = np.unique(types, return_inverse=True)
    return np.random.default_rng(seed).choice(np.unique(y), len(names))[type_of_row]


def controls_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return label, seed, probe, group (top, full), accuracy, control, selectivity."""
    task = controlled(task, p.control, seed)
    subsets = subsets_in_use(task.X, p, seed)
    control = replace(task, y=random_labels(task.types, task.y, seed))
    halves = {"accuracy": task.halves(seed), "control": control.halves(seed)}  # classes as even in both
    best = {kind: chosen(fit, subsets, 1, seed)["top"] for kind, (fit, _) in halves.items()}
    rows = []
    for name, probe in probes(p.n_neighbours).items():
        for group in ("top", "full"):
            within = {kind: (subsets, best[kind]) if group == "top" else () for kind in halves}
            values = {kind: judged(probe, *pair, *within[kind]) for kind, pair in halves.items()}
            rows.append({"label": task.label, "seed": seed, "probe": name, "group": group} | values)
    table = pd.DataFrame(rows)
    return table.assign(selectivity=table["accuracy"] - table["control"])


STUDIES = {"probing": study_task, "probing_sizes": sizes_of_task, "probing_controls": controls_of_task}


def study(run: Run, tasks: Tasks, kind: str = "probing") -> pd.DataFrame:
    """Run one of STUDIES on every task of every seed: a process a seed, each a cached unit."""
    return over_seeds(kind, STUDIES[kind], run, tasks)


def separation_scores(run: Run, tasks: Tasks) -> dict[str, np.ndarray]:
    """Return all subsets' separation scores for the first task of seed 0, with its labels and permuted ones."""
    p = run.p
    half, _ = controlled(next(iter(tasks(p, 0))), p.control, 0).halves(0)
    subsets = subsets_in_use(half.X, p, 0)
    labels = {"labels": half.y, "permuted labels": permute_labels(half.y, half.groups, 0)}
    return {name: subset_scores(half.X, subsets, "separation", y=y).cpu().numpy() for name, y in labels.items()}


def scores_title(task: str, scores: dict[str, np.ndarray]) -> str:
    """Return how many subsets score above what permuted labels allow one in twenty."""
    labels, permuted = scores.values()
    above = (labels > chance_level(permuted)[1]).mean()
    return f"{task}: {above:.0%} of subsets score above the 95 % point of permuted labels (by chance 5 %)"


def for_figure(table: pd.DataFrame, by_label: bool = False) -> pd.DataFrame:
    """Return the columns that the selectivity figure takes: a view a probe, the RkCNN classifier beside each.

    With ``by_label`` each label has views of its own, as it must where labels have different chance levels.
    """
    ensemble = table["group"] == "ensemble"
    beside = [table[ensemble].assign(probe=probe) for probe in table.loc[~ensemble, "probe"].unique()]
    rows = pd.concat([table[~ensemble], *beside], ignore_index=True)
    return rows.assign(probe=rows["label"] + ", " + rows["probe"]) if by_label else rows


def _means(table: pd.DataFrame) -> tuple[pd.Series, float]:
    """Return mean accuracy by group of subsets, and the top one's under permuted labels."""
    return table.groupby("group")["value"].mean(), table[table["group"] == "top"]["chance_mean"].mean()


def title(table: pd.DataFrame) -> str:
    """Return the finding of the selectivity figure."""
    means, null = _means(table)
    return (
        f"Held-out balanced accuracy: top subsets {means['top']:.2f}, random {means['random']:.2f}, bottom "
        f"{means['bottom']:.2f}, all dimensions {means['full']:.2f}, RkCNN classifier {means['ensemble']:.2f} "
        f"(permuted labels {null:.2f})"
    )


def headline(toy: pd.DataFrame, atlas: pd.DataFrame) -> str:
    """Return one sentence that answers 02's question for scores that see labels."""
    ahead = [means["top"] - means["random"] for means, _ in map(_means, (toy, atlas))]
    return (
        f"Balanced accuracy of the best-scoring less random subsets: {ahead[0]:+.2f} on toy models, {ahead[1]:+.2f} on "
        "the embedded language model."
    )


def top_beats_chance_and_random(table: pd.DataFrame, beyond: str, above: str, null: str) -> list[Check]:
    """Return the checks ``beyond``, top subsets exceed chance in every seed, and ``above``, they exceed random ones."""
    top = table[table["group"] == "top"].groupby("seed")[["value", "chance_mean", "chance_upper"]].mean()
    n_beyond = int((top["value"] > top["chance_upper"]).sum())
    wide = table.pivot_table(index="seed", columns="group", values="value")
    _, low, _ = mean_interval((wide["top"] - wide["random"]).to_numpy())
    every, chance = f"= {len(top)} (all)", f"{top['chance_mean'].mean():.3f} ({null})"
    return [
        Check(beyond, n_beyond, every, n_beyond == len(top), chance=f"{0.05 * len(top):.2f}"),
        Check(f"{above}, lower end of the 95 % interval", low, "> 0", low > 0, chance=chance),
    ]


def checks(table: pd.DataFrame, world: str) -> list[Check]:
    """Return the labelled part of 02's gate in one world."""
    beyond = f"{world}: seeds in which top subsets beat the permuted labels' 95 % point"
    above = f"{world}: accuracy of top minus random subsets"
    return top_beats_chance_and_random(table, beyond, above, "permuted labels")


def by_label(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy by label and group of subsets, beside the mean under permuted labels."""
    wide = table.pivot_table(index="label", columns="group", values="value")[list(GROUPS)]
    return wide.assign(permuted=table.groupby("label")["chance_mean"].mean()).round(3)


def curve(sizes: pd.DataFrame, full: pd.DataFrame, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Return the rows that the curve over sizes takes; chance is that of ``full``, the rows of all dimensions."""
    chance = full.groupby("seed")[["chance_mean", "chance_upper"]].mean().reset_index()
    rows = sizes.groupby(["seed", "size", "group"], sort=False)["value"].mean().reset_index().merge(chance, on="seed")
    return rows.assign(metric=metric).rename(columns={"size": SIZE, "group": "miner"})


def labelled_curve(sizes: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return the curve of held-out accuracy over sizes, beside all dimensions under permuted labels."""
    return curve(sizes, accuracies[(accuracies["group"] == "full") & (accuracies["probe"] == PROBE)])


def enough(curve: pd.DataFrame) -> pd.DataFrame:
    """Return seed, size, d: the smallest size at which top subsets reach ENOUGH of what all d hold above chance.

    Where all dimensions together do not beat chance's 95 % point there is nothing to reach, and size is d.
    """
    rows = []
    for seed, part in curve.query("miner == 'top'").sort_values(SIZE).groupby("seed"):
        whole, d = part.iloc[-1], int(part[SIZE].iloc[-1])
        reached = part[SIZE][part["value"] >= whole["chance_mean"] + ENOUGH * (whole["value"] - whole["chance_mean"])]
        size = int(reached.iloc[0]) if whole["value"] > whole["chance_upper"] else d
        rows.append({"seed": seed, "size": size, "d": d})
    return pd.DataFrame(rows)


def curve_title(curve: pd.DataFrame, what: str = "of what all hold above chance") -> str:
    """Return the finding of the curve over sizes."""
    size, d = enough(curve)[["size", "d"]].median()
    return f"Top subsets of {size:.0f} of {d:.0f} coordinates hold {ENOUGH:.0%} {what}"


def control_table(controls: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy, control accuracy and selectivity by label, group and probe."""
    means = controls.drop(columns="seed").groupby(["label", "group", "probe"]).mean()
    return means.round(3).reset_index()
