"""The study behind 02: do subsets with a high separation score hold a label better, on rows the score did not see?

Each task is a labelled cloud of activations, split by group (document) into a half on which subsets are scored
and probes are fitted and a half on which probes are judged. Every accuracy stands beside the same number under
labels permuted by group, from the whole pipeline run again: scoring, selecting, fitting, judging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
from rkcnn_lib.probe.nulls import permute_labels, surrogate
from rkcnn_lib.probe.scores import subset_scores
from rkcnn_lib.probe.subsets import Subsets, draw_subsets
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import NOT_DECIDING, ProbeValidation
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.toy import train_space
from rkcnn_lib.tensors import chance_level
from rkcnn_lib.worlds import model_facts

GROUPS = ("top", "random", "bottom", "full", "ensemble")
ROWS_PER_HALF = 500  # classes balanced; every chance level fits the probes again, so rows are kept few
TOY_LABELS = 2  # features whose activity is a label


@dataclass(frozen=True)
class Task:
    """Activations X (n, d) with labels y (n,), the group (document) of each row and its type (token) in one sense.

    Types are what a control task assigns its random labels to.
    """

    world: str
    label: str
    X: torch.Tensor
    y: np.ndarray
    groups: np.ndarray
    types: np.ndarray

    def rows(self, which: int, seed: int) -> np.ndarray:
        """Return the rows of one half of the groups, ``ROWS_PER_HALF`` at most, classes as even as they come."""
        rng = np.random.default_rng([seed, which])
        names = np.random.default_rng(seed).permutation(np.unique(self.groups))
        inside = np.flatnonzero(np.isin(self.groups, names[which::2]))
        classes = np.unique(self.y)
        each = ROWS_PER_HALF // len(classes)
        kept = [rng.permutation(inside[self.y[inside] == value])[:each] for value in classes]
        return np.sort(np.concatenate(kept))

    def half(self, which: int, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Return X, y and groups of `rows`."""
        rows = self.rows(which, seed)
        return self.X[rows], self.y[rows], self.groups[rows]


def controlled(task: Task, control: str, seed: int) -> Task:
    """Return the task as it is, or its activations replaced by noise, or its labels and types permuted by group."""
    if control == "gaussian":
        return replace(task, X=surrogate(task.X, "gaussian", seed))
    if control == "permuted":
        permuted = (permute_labels(given, task.groups, seed) for given in (task.y, task.types))
        return replace(task, **dict(zip(("y", "types"), permuted, strict=True)))
    return task


def toy_tasks(p: ProbeValidation, seed: int) -> Iterator[Task]:
    """Yield "is feature j active?" for the best represented features of a trained toy model."""
    toy = train_space(p.n_features, p.n_hidden, p.n_active, p.toy_steps, seed)
    codes, X = toy.draw(p.n_samples, seed=seed + 1)
    norms = toy.W.norm(dim=1)
    strongest = codes.argmax(1).numpy()
    for j in norms.argsort(descending=True)[:TOY_LABELS].tolist():
        yield Task("toy", f"feature {j} active", X, (codes[:, j] > 0).numpy().astype(int), np.arange(len(X)), strongest)


def atlas_tasks(p: ProbeValidation, seed: int) -> Iterator[Task]:
    """Yield the embedded language model's activations with the labels of each token; position 0 is left out."""
    from rkcnn_lib.worlds import capture, load_model
    from rkcnn_lib.worlds.atlas import labelled_contexts

    lm = load_model("atlas", device="cpu")
    found = labelled_contexts(p.n_contexts, seed=seed)
    X = capture(lm, found.token_ids, layer=p.atlas_layer % lm.cfg.n_layers, hook=p.atlas_hook).float().cpu()
    positions = np.tile(np.arange(found.token_ids.shape[1]), len(found.token_ids))
    documents, tokens = np.asarray(found.document_ids).ravel(), np.asarray(found.token_ids).ravel()
    for label in p.atlas_labels:
        y = np.asarray(found.labels[label]).ravel()
        # 0 means "none" except where it is a side of a yes-or-no question
        usable = (positions > 0) & ((y > 0) | label.startswith("in_"))
        rows = np.flatnonzero(usable)
        yield Task("atlas", label, X[rows], y[rows], documents[rows], tokens[rows])


def probes(n_neighbours: int) -> dict[str, Callable[[], ClassifierMixin]]:
    """Return the probes by name: what reads a label off a subset's coordinates."""
    return {
        "kNN": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbours)),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3)),
    }


def choose(scores: np.ndarray, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return which subsets are the top, the bottom and a random choice of n by score."""
    order = np.argsort(scores)
    return {"top": order[::-1][:n], "random": rng.choice(len(scores), n, replace=False), "bottom": order[:n]}


def accuracies(
    task: Task, y: np.ndarray, p: ProbeValidation, seed: int, subsets: Subsets, n_probed: int
) -> dict[tuple[str, str], float]:
    """Return balanced accuracy by (group of n_probed subsets, probe): scored and fitted on half A, judged on B."""
    labelled = replace(task, y=y)
    (fit_X, fit_y, _), (test_X, test_y, _) = labelled.half(0, seed), labelled.half(1, seed)
    scores = subset_scores(fit_X, subsets, "separation", y=fit_y).cpu().numpy()
    chosen = choose(scores, n_probed, np.random.default_rng(seed))
    found = {}
    for name, make in probes(p.n_neighbours).items():

        def judged(restrict: Callable[[torch.Tensor], torch.Tensor], make: Callable = make) -> float:
            fitted = make().fit(restrict(fit_X).numpy(), fit_y)
            return balanced_accuracy_score(test_y, fitted.predict(restrict(test_X).numpy()))

        for group, members in chosen.items():
            found[group, name] = float(np.mean([judged(lambda X, i=i: subsets.restrict(X, i)) for i in members]))
        found["full", name] = judged(lambda X: X)
    ensemble = RandomKCNNClassifier(
        p.n_subsets, min(p.n_ensemble, p.n_subsets // 3), subsets.size, p.n_neighbours, random_state=seed
    ).fit(fit_X.numpy(), fit_y)
    found["ensemble", "RkCNN"] = balanced_accuracy_score(test_y, ensemble.predict(test_X.numpy()))
    return found


def study_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return world, label, seed, group, probe, value, chance_mean, chance_upper for one task."""
    task = controlled(task, p.control, seed)
    d = task.X.shape[1]
    size = p.subset_size or round(d**0.5)
    subsets = draw_subsets(d, size, p.n_subsets, random_state=seed)
    real = accuracies(task, task.y, p, seed, subsets, p.n_probed)
    rng = np.random.RandomState(seed)
    # the mean of fewer subsets varies more: that moves chance's 95 % point up, never down
    null = [
        accuracies(task, permute_labels(task.y, task.groups, rng), p, seed, subsets, p.n_probed_null)
        for _ in range(p.n_permutations)
    ]
    chance = {cell: chance_level([draw[cell] for draw in null]) for cell in real}
    return pd.DataFrame([
        {"world": task.world, "label": task.label, "seed": seed, "group": group, "probe": probe, "value": value,
         "chance_mean": float(chance[group, probe][0]), "chance_upper": float(chance[group, probe][1])}
        for (group, probe), value in real.items()
    ])  # fmt: skip


Tasks = Callable[[ProbeValidation, int], Iterator[Task]]


def study(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Run every task of every seed, a process a seed, each a cached unit."""
    return over_seeds(_one_seed, run, tasks)


def over_seeds(function: Callable[..., pd.DataFrame], run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return ``function(p, tasks, seed)`` for every seed, one process each."""
    cells = [(run.p, tasks, seed) for seed in range(run.p.n_seeds)]
    n_jobs = process_count(run.p.n_jobs, run.device)
    return pd.concat(run_cells(function, cells, n_jobs, f"{tasks.__name__}, seeds"), ignore_index=True)


def _one_seed(p: ProbeValidation, tasks: Tasks, seed: int) -> pd.DataFrame:
    return seed_unit("probing", study_task, p, tasks, seed)


def seed_unit(
    kind: str, function: Callable[..., pd.DataFrame], p: ProbeValidation, tasks: Tasks, seed: int
) -> pd.DataFrame:
    """Return ``function(task, p, seed)`` over all tasks of a seed, as one cached unit."""
    decides = p.model_dump(exclude=NOT_DECIDING | {"profile", "n_seeds"})
    given = decides | {"tasks": tasks.__name__, "seed": seed, "atlas": model_facts("atlas").identity}

    def compute(scratch: Path) -> Unit:
        parts = [function(task, p, seed) for task in tasks(p, seed)]
        return Unit(tables={"found": pd.concat(parts, ignore_index=True)})

    return cached_unit(kind, given, compute).tables["found"]


def separation_scores(run: Run, tasks: Tasks) -> dict[str, np.ndarray]:
    """Return all subsets' separation scores for the first task of seed 0, with its labels and permuted ones."""
    p = run.p
    task = controlled(next(iter(tasks(p, 0))), p.control, 0)
    X, y, groups = task.half(0, 0)
    subsets = draw_subsets(X.shape[1], p.subset_size or round(X.shape[1] ** 0.5), p.n_subsets, random_state=0)
    labels = {"labels": y, "permuted labels": permute_labels(y, groups, 0)}
    return {name: subset_scores(X, subsets, "separation", y=given).cpu().numpy() for name, given in labels.items()}


def scores_title(task: str, scores: dict[str, np.ndarray]) -> str:
    """Return how many subsets score above what permuted labels allow one in twenty."""
    labels, permuted = scores.values()
    above = (labels > np.quantile(permuted, 0.95)).mean()
    return f"{task}: {above:.0%} of subsets score above the 95 % point of permuted labels (by chance 5 %)"


def for_figure(table: pd.DataFrame, by_label: bool = False) -> pd.DataFrame:
    """Return the columns that the selectivity figure takes: a view a probe, the RkCNN classifier beside each.

    With ``by_label`` each label has views of its own, as it must where labels have different chance levels.
    """
    ensemble = table["group"] == "ensemble"
    views = [*table.loc[~ensemble, "probe"].drop_duplicates()]
    rows = pd.concat([table[~ensemble], *(table[ensemble].assign(probe=probe) for probe in views)], ignore_index=True)
    if by_label:
        rows["probe"] = rows["label"] + ", " + rows["probe"]
    return rows


def advantage(table: pd.DataFrame, group: str = "top", against: str = "random") -> pd.DataFrame:
    """Return value = accuracy of one group minus another's, per seed, averaged over labels and probes."""
    wide = table.pivot_table(index="seed", columns="group", values="value", aggfunc="mean")
    return (wide[group] - wide[against]).rename("value").reset_index()


def title(table: pd.DataFrame) -> str:
    """Return the finding of the selectivity figure."""
    means = table.groupby("group")["value"].mean()
    null = table[table["group"] == "top"]["chance_mean"].mean()
    return (
        f"Held-out balanced accuracy: top subsets {means['top']:.2f}, random {means['random']:.2f}, bottom "
        f"{means['bottom']:.2f}, all dimensions {means['full']:.2f}, RkCNN classifier {means['ensemble']:.2f} "
        f"(permuted labels {null:.2f})"
    )


def checks(table: pd.DataFrame, world: str) -> list[Check]:
    """Return one world's part of 02's gate: top subsets beat permuted labels in every seed, and random subsets."""
    top = table[table["group"] == "top"].groupby("seed")[["value", "chance_upper"]].mean()
    beats_null = int((top["value"] > top["chance_upper"]).sum())
    _, low, _ = mean_interval(advantage(table)["value"].to_numpy())
    null = f"{table[table['group'] == 'top']['chance_mean'].mean():.3f} (permuted labels)"
    return [
        Check(f"{world}: seeds in which top subsets beat the permuted labels' 95 % point", beats_null,
              f"= {len(top)} (all)", beats_null == len(top), chance=f"{0.05 * len(top):.2f}"),
        Check(f"{world}: accuracy of top minus random subsets, lower end of the 95 % interval", low, "> 0", low > 0,
              chance=null),
    ]  # fmt: skip


def headline(toy: pd.DataFrame, atlas: pd.DataFrame) -> str:
    """Return one sentence that answers 02's question."""
    said = []
    for table in (toy, atlas):
        means = table.groupby("group")["value"].mean()
        null = table[table["group"] == "top"]["chance_mean"].mean()
        said.append(
            f"{means['top']:.2f} from the best-scoring subsets, {means['random']:.2f} from random ones, "
            f"{means['full']:.2f} from all dimensions (permuted labels {null:.2f})"
        )
    return (
        f"Balanced accuracy on new rows: on toy models {said[0]}; on the embedded language model {said[1]}; means over "
        "labels, whose chance levels differ with their numbers of classes."
    )


def by_label(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy by label and group of subsets, beside the mean under permuted labels."""
    wide = table.pivot_table(index="label", columns="group", values="value")[list(GROUPS)]
    return wide.assign(permuted=table.groupby("label")["chance_mean"].mean()).round(3)
