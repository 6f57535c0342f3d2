"""The study behind 02: do subsets with a high separation score hold a label better, on rows the score did not see?

Each task is a labelled cloud of activations, split by group (document) into a half on which subsets are scored
and probes are fitted and a half on which probes are judged. Every accuracy stands beside the same number under
labels permuted by group, from the whole pipeline run again. And beside two more: what subsets of other sizes hold, and
control tasks, in which each type has a random label: a probe may have memorised tokens, and its selectivity is the
accuracy on the label less that on the control task (Hewitt & Liang 2019, EMNLP, "Designing and Interpreting Probes with
Control Tasks").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe import RandomKCNNClassifier
from rkcnn_lib.probe.nulls import permute_labels, surrogate
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import Subsets, draw_subsets
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import NOT_DECIDING, ProbeValidation
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.cells import model_of
from rkcnn_lib.studies.toy import train_space
from rkcnn_lib.studies.verdicts import listed
from rkcnn_lib.tensors import chance_level
from rkcnn_lib.worlds import capture, model_facts
from rkcnn_lib.worlds.toy import represented

ROWS_PER_HALF = 500  # classes balanced; every chance level fits the probes again, so rows are kept few
TOY_LABELS = 2  # features whose activity is a label
GROUPS = ("top", "random", "bottom", "full", "ensemble")
PROBE = "logistic"  # that judges subsets of other sizes


@dataclass(frozen=True)
class Task:
    """Activations X (n, d) with labels y (n,), the group (document) of each row and its type (token) in one sense.

    Types are what a control task assigns its random labels to. ``truth`` (n_types, d) holds the direction of each type
    where it is known: unit rows, zero for a type that the toy model does not represent.
    """

    world: str
    label: str
    X: torch.Tensor
    y: np.ndarray
    groups: np.ndarray
    types: np.ndarray
    truth: torch.Tensor | None = None

    def halves(self, seed: int) -> tuple[Task, Task]:
        """Return both halves of the groups, ``ROWS_PER_HALF`` rows of each at most, classes as even as they come."""
        names, classes = np.random.default_rng(seed).permutation(np.unique(self.groups)), np.unique(self.y)
        halves = []
        for which in (0, 1):
            rng, inside = np.random.default_rng([seed, which]), np.isin(self.groups, names[which::2])
            of_class = [rng.permutation(np.flatnonzero(inside & (self.y == value))) for value in classes]
            rows = np.sort(np.concatenate([numbers[: ROWS_PER_HALF // len(classes)] for numbers in of_class]))
            halves.append(replace(self, **{name: getattr(self, name)[rows] for name in ("X", "y", "groups", "types")}))
        return tuple(halves)


def controlled(task: Task, control: str, seed: int) -> Task:
    """Return the task as it is, or its activations replaced by noise, or its labels and types permuted by group."""
    if control == "gaussian":
        return replace(task, X=surrogate(task.X, "gaussian", seed))
    if control == "permuted":
        y, types = (permute_labels(given, task.groups, seed) for given in (task.y, task.types))
        return replace(task, y=y, types=types)
    return task


def toy_tasks(p: ProbeValidation, seed: int) -> Iterator[Task]:
    """Yield "is feature j active?" for the best represented features of a trained toy model."""
    toy = train_space(p.n_features, p.n_hidden, p.n_active, p.toy_steps, seed)
    codes, X = toy.draw(p.n_samples, seed=seed + 1)
    norms = toy.W.norm(dim=1)
    groups, strongest = np.arange(len(X)), codes.argmax(1).numpy()
    truth = torch.where(represented(toy.W)[:, None], toy.W / norms[:, None], 0.0)
    for j in norms.argsort(descending=True)[:TOY_LABELS].tolist():
        active = (codes[:, j] > 0).numpy().astype(int)
        yield Task("toy", f"feature {j} active", X, active, groups, strongest, truth)


def atlas_tasks(p: ProbeValidation, seed: int) -> Iterator[Task]:
    """Yield the embedded language model's activations with the labels of each token; position 0 is left out."""
    from rkcnn_lib.worlds.atlas import labelled_contexts

    lm = model_of("atlas", None, "cpu")
    contexts = labelled_contexts(p.n_contexts, seed=seed)
    X = capture(lm, contexts.token_ids, layer=p.atlas_layer % lm.cfg.n_layers, hook=p.atlas_hook).float().cpu()
    n, length = contexts.token_ids.shape
    documents, tokens = np.asarray(contexts.document_ids).ravel(), np.asarray(contexts.token_ids).ravel()
    for label in p.atlas_labels:
        y = np.asarray(contexts.labels[label]).ravel()
        # 0 means "none" except where it is a side of a yes-or-no question
        rows = np.flatnonzero((np.arange(n * length) % length > 0) & ((y > 0) | label.startswith("in_")))
        yield Task("atlas", label, X[rows], y[rows], documents[rows], tokens[rows])


def choose(scores: torch.Tensor, n: int, seed: int) -> dict[str, np.ndarray]:
    """Return which subsets are the top, the bottom and a random choice of n by score."""
    order, rng = np.argsort(scores.cpu().numpy()), np.random.default_rng(seed)
    return {"top": order[::-1][:n], "random": rng.choice(len(order), n, replace=False), "bottom": order[:n]}


def subset_size(p: ProbeValidation, d: int) -> int:
    """Return how many of d coordinates are in a subset."""
    return p.subset_size or round(d**0.5)


Tasks = Callable[[ProbeValidation, int], Iterator[Task]]
OfTask = Callable[[Task, ProbeValidation, int], pd.DataFrame]


def over_seeds(kind: str, of_task: OfTask, run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return ``of_task(task, p, seed)`` over all tasks of every seed, a process and a cached unit a seed."""
    cells = [(kind, of_task, run.p, tasks, seed) for seed in range(run.p.n_seeds)]
    n_jobs = process_count(run.p.n_jobs, run.device)
    return pd.concat(run_cells(_of_seed, cells, n_jobs, f"{tasks.__name__}, seeds"), ignore_index=True)


def _of_seed(kind: str, of_task: OfTask, p: ProbeValidation, tasks: Tasks, seed: int) -> pd.DataFrame:
    decides = p.model_dump(exclude=NOT_DECIDING | {"profile", "n_seeds"})
    given = decides | {"tasks": tasks.__name__, "seed": seed, "atlas": model_facts("atlas").identity}

    def compute(scratch: Path) -> Unit:
        parts = [of_task(task, p, seed) for task in tasks(p, seed)]
        return Unit(tables={"found": pd.concat(parts, ignore_index=True)})

    return cached_unit(kind, given, compute).tables["found"]


# ---------------------------------------------------------------- with labels


def probes(n_neighbours: int) -> dict[str, ClassifierMixin]:
    """Return the probes by name: what reads a label off a subset's coordinates, of `standardised` halves."""
    logistic = LogisticRegression(tol=1e-3, solver="newton-cg")  # a tenth of lbfgs' time, and nearer to the optimum
    return {"kNN": KNeighborsClassifier(n_neighbours), "logistic": logistic}


def standardised(fit: Task, test: Task) -> tuple[Task, Task]:
    """Return both halves with the columns' means and standard deviations in the first taken out."""
    scaler = StandardScaler().fit(fit.X)
    fit, test = (replace(half, X=torch.from_numpy(scaler.transform(half.X.numpy()))) for half in (fit, test))
    return fit, test


def judged(probe: ClassifierMixin, fit: Task, test: Task, subsets: Subsets | None = None, of: Iterable = ()) -> float:
    """Return the balanced accuracy on ``test`` of a probe of all coordinates, or its mean over probes of subsets."""
    seen = [(fit.X, test.X)] if subsets is None else [[subsets.restrict(t.X, i) for t in (fit, test)] for i in of]
    told = np.stack([probe.fit(X.numpy(), fit.y).predict(X_test.numpy()) for X, X_test in seen])
    return float(np.mean([(told[:, test.y == label] == label).mean() for label in np.unique(test.y)]))


def subsets_in_use(X: torch.Tensor, p: ProbeValidation, seed: int) -> Subsets:
    """Draw subsets of the coordinates of X (n, d), of the size that the search takes."""
    return draw_subsets(X.shape[1], subset_size(p, X.shape[1]), p.n_subsets, random_state=seed)


def chosen(fit: Task, subsets: Subsets, n: int, seed: int) -> dict[str, np.ndarray]:
    """Return which n subsets separate the labels best, which worst, and as many at random."""
    return choose(subset_scores(fit.X, subsets, "separation", y=fit.y), min(n, len(subsets)), seed)


def accuracies(task: Task, p: ProbeValidation, seed: int, subsets: Subsets, n_probed: int) -> dict[tuple, float]:
    """Return balanced accuracy by (group of n_probed subsets, probe): scored and fitted on half A, judged on B."""
    fit, test = task.halves(seed)
    seen, groups, by_cell = standardised(fit, test), chosen(fit, subsets, n_probed, seed), {}
    for name, probe in probes(p.n_neighbours).items():
        for group, members in groups.items():
            by_cell[group, name] = judged(probe, *seen, subsets, members)
        by_cell["full", name] = judged(probe, *seen)
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
    rows = [(*cell, value, *chance_level([draw[cell] for draw in null])) for cell, value in real.items()]
    table = pd.DataFrame(rows, columns=["group", "probe", "value", "chance_mean", "chance_upper"])
    return table.assign(world=task.world, label=task.label, seed=seed)


def sizes_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return label, seed, size, group (top, random), value: held-out accuracy of subsets of every size up to d."""
    fit, test = controlled(task, p.control, seed).halves(seed)
    d, seen, rows = fit.X.shape[1], standardised(fit, test), []
    for size in sorted({min(size, d) for size in [*p.curve_sizes, d]}):
        subsets = draw_subsets(d, size, p.n_subsets if size < d else 1, random_state=seed)
        groups = chosen(fit, subsets, p.n_probed, seed)
        for group in ("top", "random"):
            value = judged(probes(p.n_neighbours)[PROBE], *seen, subsets, groups[group])
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
    seen, rows = {kind: standardised(*pair) for kind, pair in halves.items()}, []
    for name, probe in probes(p.n_neighbours).items():
        for group in ("top", "full"):
            within = {kind: (subsets, best[kind]) if group == "top" else () for kind in halves}
            values = {kind: judged(probe, *pair, *within[kind]) for kind, pair in seen.items()}
            rows.append({"label": task.label, "seed": seed, "probe": name, "group": group} | values)
    return pd.DataFrame(rows).eval("selectivity = accuracy - control")


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


def title(table: pd.DataFrame) -> str:
    """Return mean accuracy by group of subsets, beside the top one's under permuted labels."""
    names = {"top": "top subsets", "full": "all dimensions", "ensemble": "RkCNN classifier"}
    told = listed(table.groupby("group")["value"].mean()[list(GROUPS)].rename(names), ".2f")
    null = table[table["group"] == "top"]["chance_mean"].mean()
    return f"Held-out balanced accuracy: {told} (permuted labels {null:.2f})"


def headline(toy: pd.DataFrame, atlas: pd.DataFrame) -> str:
    """Return one sentence that answers 02's question for scores that see labels."""
    by_group = [table.groupby("group")["value"].mean() for table in (toy, atlas)]
    on_toy, on_atlas = (f"{mean['top'] - mean['random']:+.2f}" for mean in by_group)
    ahead = "Balanced accuracy of the best-scoring less random subsets"
    return f"{ahead}: {on_toy} on toy models, {on_atlas} on the embedded language model."


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
