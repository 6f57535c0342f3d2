"""The score without labels, by which 04, 05 and 06 select, held to what the rows of a subset have in common.

With ``score="neighbours"`` each subset finds the rows nearest to its anchor, and is scored by how well they separate in
the other coordinates (`rkcnn_lib.probe.neighbours`); with a contrast, the rows farthest along its principal direction.
A subset's *purity* is the share of its rows that has the type of its anchor (the first of the rows, with a contrast):
on toy models the strongest feature, on the language model the token. No score sees types, so a high score means
something only if rows of the best subsets share theirs more than those of random ones; under permuted types none do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import NEIGHBOURS
from rkcnn_lib.probe.lift import skew_sign
from rkcnn_lib.probe.neighbours import draw_anchors, pseudo_classes, unit
from rkcnn_lib.probe.nulls import permute_labels
from rkcnn_lib.probe.scores import covariance, principal_directions, subset_scores
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import ProbeValidation
from rkcnn_lib.studies import probing
from rkcnn_lib.studies.probing import Task, Tasks, controlled, subset_size
from rkcnn_lib.tensors import chance_level, geometric_median

ENOUGH = 0.9  # share of what all dimensions have above chance that a subset must reach
SIZE = "coordinates_in_a_subset"
ROWS = 4000  # among which a subset looks for neighbours


class Looked(NamedTuple):
    """What h subsets found, and which of them are the best, the worst and a random choice by score."""

    rows: np.ndarray  # numbers (h, k)
    anchors: np.ndarray  # numbers (h,)
    directions: torch.Tensor  # (h, d), unit rows
    groups: dict[str, Any]


def look(X: torch.Tensor, p: ProbeValidation, size: int, seed: int, rng: np.random.RandomState) -> Looked:
    """Let ``n_subsets`` subsets of a size look at X (n, d) by the score that ``p`` names, labels unseen."""
    subsets = draw_subsets(X.shape[1], size, p.n_subsets, p.subsets, random_state=seed)
    centred = X - geometric_median(X)
    k = p.n_neighbours + 1  # the anchor is one of them
    if p.score == NEIGHBOURS:
        T = unit(centred)
        anchors = draw_anchors(T, len(subsets), rng)
        rows, means, scores = pseudo_classes(T, subsets, anchors, k)
        directions = normalize(means, dim=1)
    else:
        principal = principal_directions(covariance(X)[1], subsets)
        scores = subset_scores(X, subsets, p.score, principal=principal)
        directions = principal[0].to(X.dtype) * skew_sign(X, principal[0].to(X.dtype))
        rows = (directions @ centred.T).topk(k, dim=1).indices
        anchors = rows[:, 0]
    groups = probing.choose(scores, p.n_directions, seed)
    return Looked(rows.cpu().numpy(), anchors.cpu().numpy(), directions.cpu(), groups)


def study(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return value, the mean purity of each group (top, random, bottom), beside chance_mean and chance_upper.

    Further columns: world, label, seed, size, in_use (whether the size is the one that the search takes). Of all
    dimensions there are the rows nearest to random anchors: no coordinates are left to score by. Labels are not used.
    """
    return probing.over_seeds("neighbourhoods", neighbourhoods_of_task, run, tasks)


def sample(task: Task, p: ProbeValidation, seed: int) -> tuple[torch.Tensor, np.ndarray, np.random.RandomState]:
    """Return the rows (at most ROWS, d) that subsets look at, their types, and the generator for what follows."""
    rng = np.random.RandomState(seed)
    task = controlled(task, p.control, seed)
    rows = np.sort(rng.permutation(len(task.X))[:ROWS])
    return task.X[rows], task.types[rows], rng


def neighbourhoods_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    """Return the rows of `study` for one task."""
    X, types, rng = sample(task, p, seed)
    d, table = X.shape[1], []
    in_use = subset_size(p, d)
    sizes = sorted({size for size in p.curve_sizes if size < d} | {d // 2})  # half of them is what the gate allows
    for size in dict.fromkeys([in_use, *sizes]):
        table += _purities(look(X, p, size, seed, rng), types, p, rng, size=size, in_use=size == in_use)
    T = unit(X - geometric_median(X))
    anchors = draw_anchors(T, p.n_directions, rng)
    nearest = torch.cdist(T[anchors], T).topk(p.n_neighbours + 1, largest=False).indices
    every = dict.fromkeys(("top", "random"), slice(None))
    looked = Looked(nearest.cpu().numpy(), anchors.cpu().numpy(), T[anchors], every)
    table += _purities(looked, types, p, rng, size=d, in_use=False)
    return pd.DataFrame(table).assign(world=task.world, label=task.label, seed=seed)


def _purities(looked: Looked, types: np.ndarray, p: ProbeValidation, rng: Any, **about: object) -> list[dict]:
    """Return a row a group: its subsets' mean purity, beside that under permuted types."""
    permuted = (permute_labels(types, random_state=rng) for _ in range(p.n_permutations))
    null = [purity(other, looked.rows, looked.anchors) for other in permuted]
    real = purity(types, looked.rows, looked.anchors)
    rows = []
    for group, members in looked.groups.items():
        mean, upper = chance_level([draw[members].mean() for draw in null])
        rows.append(about | {"group": group, "value": real[members].mean(), "chance_mean": mean, "chance_upper": upper})
    return rows


def purity(types: np.ndarray, rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the share of each subset's rows (h, k), its anchor (h,) left out, whose type (n,) is the anchor's."""
    others = rows != anchors[:, None]
    return ((types[rows] == types[anchors][:, None]) & others).sum(1) / others.sum(1)


def in_use(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the size that the search takes."""
    return table[table["in_use"]].drop(columns="in_use")


def purity_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Return the curve of purity over sizes, beside all dimensions under permuted types."""
    shown = table[table["group"] != "bottom"].drop(columns=["chance_mean", "chance_upper"])
    return curve(shown, table[table["size"] == table["size"].max()], "purity")


def winners(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return world, group, seed and value: the cosine of each best, random and worst subset with a true direction.

    In the first task of seed 0. A subset's direction is the mean of its rows (with a contrast: its principal
    direction) before any lift, the true one that of its anchor's type, if the model represents it. chance_mean and
    chance_upper: mean cosine of top subsets, types permuted.
    """
    p, task = run.p, next(iter(tasks(run.p, 0)))
    X, types, rng = sample(task, p, seed=0)
    looked = look(X, p, subset_size(p, X.shape[1]), 0, rng)

    def cosines(types: np.ndarray, members: np.ndarray) -> np.ndarray:
        truth = task.truth[types[looked.anchors[members]]]
        return (looked.directions[members.copy()] * truth).sum(1)[truth.any(1)].numpy()

    permuted = (permute_labels(types, random_state=rng) for _ in range(p.n_permutations))
    mean, upper = chance_level([cosines(other, looked.groups["top"]).mean() for other in permuted])
    parts = [pd.DataFrame({"group": group, "value": cosines(types, n)}) for group, n in looked.groups.items()]
    return pd.concat(parts, ignore_index=True).assign(world=task.world, seed=0, chance_mean=mean, chance_upper=upper)


def angles(winners: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by group, worst first, the feature's direction at (1, 0) and each subset's at its angle to it."""
    frames = {}
    for group in ("bottom", "random", "top"):
        c = winners["value"][winners["group"] == group].to_numpy().clip(-1, 1)
        frames[f"{group}: {len(c)} subsets"] = np.array([[1.0, 0.0]]), np.stack([c, np.sqrt(1 - c**2)], axis=1)
    return frames


def winners_title(winners: pd.DataFrame) -> str:
    """Return the mean cosine of the best, random and worst subsets with their feature."""
    chance, upper = winners[["chance_mean", "chance_upper"]].iloc[0]
    told, by_chance = _by_score(winners, ".2f"), f"permuted features {chance:.2f}, 95 % point {upper:.2f}"
    return f"Cosine of a subset's direction with its feature: {told} ({by_chance})"


def _by_score(table: pd.DataFrame, written: str) -> str:
    """Return the mean of each group of subsets in words."""
    top, random, bottom = (
        f"{x:{written}}" for x in table.groupby("group")["value"].mean()[["top", "random", "bottom"]]
    )
    return f"{top} where the score is highest, {random} at random, {bottom} where it is lowest"


def title(table: pd.DataFrame) -> str:
    """Return what the rows of the best, random and worst subsets have in common, at the size in use."""
    used = in_use(table)
    chance = f"permuted types {used['chance_mean'].mean():.0%}"
    return f"Rows of a subset that share their anchor's type: {_by_score(used, '.0%')} ({chance})"


def headline(atlas: pd.DataFrame) -> str:
    """Return one sentence on the score that 04 selects by."""
    mean = in_use(atlas).groupby("group")["value"].mean()
    ahead = f"{mean['top'] - mean['random']:+.0%} of a subset's rows have their token in common"
    return f"By 04's own score, which sees no labels, {ahead}, best less random subsets."


def checks(table: pd.DataFrame, world: str) -> list[Check]:
    """Return one world's part of 02's gate: the best subsets beat chance, beat random ones, and need few dimensions."""
    reached = enough(purity_curve(table))
    few, n = int((reached["size"] <= reached["d"] / 2).sum()), len(reached)
    beyond = f"{world}: seeds in which rows of the best subsets by 04's score share their type beyond permuted types"
    above = f"{world}: share of one type, best by 04's score minus random subsets"
    half = f"{world}: seeds in which best subsets of half of the dimensions or fewer share {ENOUGH:.0%} of what all do"
    return [
        *probing.top_beats_chance_and_random(in_use(table), beyond, above, "permuted types"),
        Check(f"{half} above chance", few, f"= {n} (all)", few == n, chance=f"{0.05 * n:.2f}"),
    ]


# ---------------------------------------------------------------- how small may a subset be?


def curve(sizes: pd.DataFrame, full: pd.DataFrame, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Return the rows that the curve over sizes takes; chance is that of ``full``, the rows of all dimensions."""
    chance = full.groupby("seed")[["chance_mean", "chance_upper"]].mean().reset_index()
    rows = sizes.groupby(["seed", "size", "group"], sort=False)["value"].mean().reset_index().merge(chance, on="seed")
    return rows.assign(metric=metric).rename(columns={"size": SIZE, "group": "miner"})


def labelled_curve(sizes: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return the curve of held-out accuracy over sizes, beside all dimensions under permuted labels."""
    return curve(sizes, accuracies[(accuracies["group"] == "full") & (accuracies["probe"] == probing.PROBE)])


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
    """Return the size of subsets that is enough, in the median over seeds."""
    size, d = enough(curve)[["size", "d"]].median()
    return f"Top subsets of {size:.0f} of {d:.0f} coordinates hold {ENOUGH:.0%} {what}"
