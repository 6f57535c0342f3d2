"""The score without labels, which 04, 05 and 06 select by, held to what the rows that a subset finds have in common.

Each subset finds the rows nearest to its anchor, and is scored by how well they separate in the other coordinates
(`rkcnn_lib.probe.neighbours`). Its *purity* is the share of them that has the anchor's type: on toy models the
strongest feature, on the language model the token. The score never sees types, so a high score means something only if
the rows of the best subsets share theirs more than those of random ones; under permuted types no subset's do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe.neighbours import draw_anchors, pseudo_classes, unit
from rkcnn_lib.probe.nulls import permute_labels
from rkcnn_lib.probe.subsets import draw_subsets
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import ProbeValidation
from rkcnn_lib.studies.probing import Task, Tasks, choose, controlled, over_seeds, seed_unit
from rkcnn_lib.tensors import chance_level, geometric_median

ROWS = 4000  # among which a subset looks for neighbours


def study(run: Run, tasks: Tasks) -> pd.DataFrame:
    """Return world, label, seed, group (top, random, bottom), value (mean purity), chance_mean, chance_upper.

    Labels are not used: tasks of a seed differ in the rows that have one.
    """
    return over_seeds(_neighbourhoods_of_seed, run, tasks)


def _neighbourhoods_of_seed(p: ProbeValidation, tasks: Tasks, seed: int) -> pd.DataFrame:
    return seed_unit("neighbourhoods", _neighbourhoods_of_task, p, tasks, seed)


def _neighbourhoods_of_task(task: Task, p: ProbeValidation, seed: int) -> pd.DataFrame:
    rng = np.random.RandomState(seed)
    task = controlled(task, p.control, seed)
    rows = np.sort(rng.permutation(len(task.X))[:ROWS])
    types, T = task.types[rows], unit(task.X[rows] - geometric_median(task.X[rows]))
    d = T.shape[1]
    subsets = draw_subsets(d, p.subset_size or round(d**0.5), p.n_subsets, random_state=seed)
    anchors = draw_anchors(T, len(subsets), rng)
    found = pseudo_classes(T, subsets, anchors, p.n_neighbours + 1)  # the anchor is one of them
    chosen = choose(found.scores.cpu().numpy(), p.n_directions, np.random.default_rng(seed))
    rows_of, anchors = found.rows.cpu().numpy(), anchors.cpu().numpy()
    null = [purity(permute_labels(types, random_state=rng), rows_of, anchors) for _ in range(p.n_permutations)]
    real = purity(types, rows_of, anchors)
    chance = {group: chance_level([draw[members].mean() for draw in null]) for group, members in chosen.items()}
    return pd.DataFrame([
        {"world": task.world, "label": task.label, "seed": seed, "group": group, "value": float(real[members].mean()),
         "chance_mean": float(chance[group][0]), "chance_upper": float(chance[group][1])}
        for group, members in chosen.items()
    ])  # fmt: skip


def purity(types: np.ndarray, rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return the share of each subset's rows (h, k), its anchor (h,) left out, whose type (n,) is the anchor's."""
    others = rows != anchors[:, None]
    return ((types[rows] == types[anchors][:, None]) & others).sum(1) / others.sum(1)


def title(table: pd.DataFrame) -> str:
    """Return what the rows of the best, random and worst subsets have in common."""
    means = table.groupby("group")["value"].mean()
    return (
        f"Rows of a subset that share their anchor's type: {means['top']:.0%} where the score is highest, "
        f"{means['random']:.0%} at random, {means['bottom']:.0%} where it is lowest "
        f"(permuted types {table['chance_mean'].mean():.0%})"
    )


def headline(toy: pd.DataFrame, atlas: pd.DataFrame) -> str:
    """Return one sentence on the score that 04 selects by."""
    said = []
    for table, what in ((toy, "strongest feature"), (atlas, "token")):
        means = table.groupby("group")["value"].mean()
        said.append(
            f"the {what} in {means['top']:.0%} of rows by the best subsets, {means['random']:.0%} by random ones "
            f"(permuted {table['chance_mean'].mean():.0%})"
        )
    toy_said, atlas_said = said
    return (
        f"The score by which 04 selects sees no labels; rows share {toy_said} and, on the language model, {atlas_said}."
    )


def checks(table: pd.DataFrame, world: str) -> list[Check]:
    """Return one world's part of 02's gate: rows of the best subsets share more than chance, and than random ones'."""
    top = table[table["group"] == "top"].groupby("seed")[["value", "chance_mean", "chance_upper"]].mean()
    beats_null = int((top["value"] > top["chance_upper"]).sum())
    wide = table.pivot_table(index="seed", columns="group", values="value")
    _, low, _ = mean_interval((wide["top"] - wide["random"]).to_numpy())
    chance = f"{top['chance_mean'].mean():.3f} (permuted types)"
    return [
        Check(f"{world}: seeds in which rows of the best subsets by 04's score share their type beyond permuted types",
              beats_null, f"= {len(top)} (all)", beats_null == len(top), chance=f"{0.05 * len(top):.2f}"),
        Check(f"{world}: share of one type, best by 04's score minus random subsets, lower end of the 95 % interval",
              low, "> 0", low > 0, chance=chance),
    ]  # fmt: skip
