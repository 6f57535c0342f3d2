"""What 02 probes: labelled activations of toy models and of the embedded language model, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.probe.nulls import permute_labels, surrogate
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import NOT_DECIDING, ProbeValidation
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.studies.toy import train_space
from rkcnn_lib.worlds import model_facts
from rkcnn_lib.worlds.toy import represented

ROWS_PER_HALF = 500  # classes balanced; every chance level fits the probes again, so rows are kept few
TOY_LABELS = 2  # features whose activity is a label


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
        names = np.random.default_rng(seed).permutation(np.unique(self.groups))
        classes = np.unique(self.y)
        halves = []
        for which in (0, 1):
            rng, inside = np.random.default_rng([seed, which]), np.isin(self.groups, names[which::2])
            kept = [
                rng.permutation(np.flatnonzero(inside & (self.y == value)))[: ROWS_PER_HALF // len(classes)]
                for value in classes
            ]
            rows = np.sort(np.concatenate(kept))
            parts = {name: getattr(self, name)[rows] for name in ("X", "y", "groups", "types")}
            halves.append(replace(self, **parts))
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
    from rkcnn_lib.worlds import capture, load_model
    from rkcnn_lib.worlds.atlas import labelled_contexts

    lm = load_model("atlas", device="cpu")
    contexts = labelled_contexts(p.n_contexts, seed=seed)
    X = capture(lm, contexts.token_ids, layer=p.atlas_layer % lm.cfg.n_layers, hook=p.atlas_hook).float().cpu()
    n, length = contexts.token_ids.shape
    documents, tokens = np.asarray(contexts.document_ids).ravel(), np.asarray(contexts.token_ids).ravel()
    for label in p.atlas_labels:
        y = np.asarray(contexts.labels[label]).ravel()
        # 0 means "none" except where it is a side of a yes-or-no question
        rows = np.flatnonzero((np.arange(n * length) % length > 0) & ((y > 0) | label.startswith("in_")))
        yield Task("atlas", label, X[rows], y[rows], documents[rows], tokens[rows])


def choose(scores: np.ndarray, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return which subsets are the top, the bottom and a random choice of n by score."""
    order = np.argsort(scores)
    return {"top": order[::-1][:n], "random": rng.choice(len(scores), n, replace=False), "bottom": order[:n]}


def subset_size(p: ProbeValidation, d: int) -> int:
    """Return how many of d coordinates are in a subset."""
    return p.subset_size or round(d**0.5)


Tasks = Callable[[ProbeValidation, int], Iterator[Task]]


def over_seeds(kind: str, of_task: Callable[..., pd.DataFrame], run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return ``of_task(task, p, seed)`` over all tasks of every seed, a process and a cached unit a seed."""
    cells = [(kind, of_task, run.p, tasks, seed) for seed in range(run.p.n_seeds)]
    n_jobs = process_count(run.p.n_jobs, run.device)
    return pd.concat(run_cells(_of_seed, cells, n_jobs, f"{tasks.__name__}, seeds"), ignore_index=True)


def _of_seed(
    kind: str, of_task: Callable[..., pd.DataFrame], p: ProbeValidation, tasks: Tasks, seed: int
) -> pd.DataFrame:
    decides = p.model_dump(exclude=NOT_DECIDING | {"profile", "n_seeds"})
    given = decides | {"tasks": tasks.__name__, "seed": seed, "atlas": model_facts("atlas").identity}

    def compute(scratch: Path) -> Unit:
        parts = [of_task(task, p, seed) for task in tasks(p, seed)]
        return Unit(tables={"found": pd.concat(parts, ignore_index=True)})

    return cached_unit(kind, given, compute).tables["found"]
