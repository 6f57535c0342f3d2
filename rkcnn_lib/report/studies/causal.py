"""The study behind 06: subspaces of one layer, kept or ablated by resampling, judged on held-out fact prompts.

Which directions make a subspace is chosen on *selection* prompts (other templates, or other words for the same
question); what the subspace does is measured on *evaluation* prompts. Every subspace is compared at equal rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure.causal import (
    PromptPairs,
    clean_logits,
    effects,
    orthonormal_basis,
    patched_logits,
    read_activations,
    recovered_share,
)
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe.scores import separation_score
from rkcnn_lib.report.params import CausalChecks
from rkcnn_lib.report.studies.cells import directions_unit
from rkcnn_lib.report.studies.verdicts import judge
from rkcnn_lib.worlds.facts import Fact, fact_prompts, pair_up, screen

MINED, CHANCE, VARIANCE = "mined", "random", "pca"
BASELINES = (CHANCE, VARIANCE)  # the contrasts declared beforehand: mined minus each of these


@dataclass(frozen=True)
class Prompts:
    """Facts the model knows: those A is chosen on, and the pairs on which it is judged."""

    selection: list[Fact]
    evaluation: list[Fact]
    pairs: PromptPairs
    asked: int  # evaluation prompts before screening


def known_facts(lm: Any, p: CausalChecks) -> Prompts:
    """Screen a relation's prompts by the model's own answers and pair them up.

    Raises
    ------
    ValueError
        If fewer than four evaluation prompts are answered correctly: there is nothing to explain then.
    """
    selection = fact_prompts(p.model, lm.tokenizer, p.relation, held_out=False)
    asked = fact_prompts(p.model, lm.tokenizer, p.relation, held_out=True)
    evaluation = screen(lm, asked)
    if len(evaluation) < 4:
        raise ValueError(
            f"relation = {p.relation!r}: {p.model} answers {len(evaluation)} of {len(asked)} prompts correctly, "
            "too few to study; choose another relation or model"
        )
    if {fact.prompt for fact in selection} & {fact.prompt for fact in evaluation}:
        raise ValueError("selection and evaluation prompts overlap")
    drawn = pair_up(evaluation, p.n_pairs, seed=0)
    length = max({len(base.ids) for base, _ in drawn}, key=lambda n: sum(len(b.ids) == n for b, _ in drawn))
    drawn = [pair for pair in drawn if len(pair[0].ids) == length]  # one token length a batch
    device = next(lm.parameters()).device

    def column(which: int, name: str) -> torch.Tensor:
        return torch.tensor([getattr(pair[which], name) for pair in drawn], device=device)

    pairs = PromptPairs(column(0, "ids"), column(1, "ids"), column(0, "answer_id"), column(1, "answer_id"))
    return Prompts(selection, evaluation, pairs, len(asked))


def selection_activations(lm: Any, facts: list[Fact], hook_name: str) -> tuple[torch.Tensor, np.ndarray]:
    """Return the last-token activations (n, d) of the selection prompts and their answers (n,)."""
    device = next(lm.parameters()).device
    with torch.no_grad():
        rows = [read_activations(lm, torch.tensor([f.ids], device=device), hook_name) for f in facts]
    return torch.cat(rows).cpu(), np.array([f.answer_id for f in facts])


def ranked_by_separation(directions: torch.Tensor, X: torch.Tensor, y: np.ndarray) -> torch.Tensor:
    """Order directions by how well the projection on each separates the answers, best first."""
    projections = X @ directions.T
    scores = [float(separation_score(projections[:, [j]], y)) for j in range(len(directions))]
    return directions[np.argsort(scores)[::-1].copy()]


def subspaces(store: Any, p: CausalChecks, X: torch.Tensor, y: np.ndarray, seed: int, device: str) -> dict:
    """Return for one seed the rows whose leading ones span each subspace: mined, class means, PCA, random."""
    d = X.shape[1]
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([X[y == answer].mean(0) for answer in np.unique(y)])
    _, _, principal = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    _, _, between = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    mined = directions_unit(store, p, "rkcnn_lift", p.n_directions, seed, device).arrays["directions"]
    return {
        MINED: ranked_by_separation(mined, X, y),
        "class_means": between,  # supervised: the labels are given to it, so it is a ceiling for its rank
        VARIANCE: principal,
        CHANCE: torch.randn(d, d, generator=generator),
    }


def measure_subspaces(lm: Any, store: Any, p: CausalChecks, prompts: Prompts, device: str) -> pd.DataFrame:
    """Keep and ablate every subspace at every rank and seed.

    Returns
    -------
    Tidy table: subspace, rank, seed, intervention, metric, value, low, high (95 % t interval over pairs; value
    itself is the mean over pairs).

    Raises
    ------
    ValueError
        If a rank exceeds what a miner supplies or the width of the activations.
    """
    hook_name = store.manifest["hook_name"]
    X, y = selection_activations(lm, prompts.selection, hook_name)
    clean = clean_logits(lm, prompts.pairs.base)
    rows = []
    for seed in range(p.n_seeds):
        for name, spanning in subspaces(store, p, X, y, seed, device).items():
            for rank in p.ranks:
                if rank > len(spanning):
                    raise ValueError(f"rank = {rank}: {name} supplies {len(spanning)} directions; lower ranks")
                basis = orthonormal_basis(spanning[:rank])
                rows += _both_ways(lm, prompts.pairs, hook_name, basis, clean, name, rank, seed)
    for name, basis in {"whole": torch.eye(store.d_in), "empty": None}.items():
        rows += _both_ways(lm, prompts.pairs, hook_name, basis, clean, name, 0, 0)
    return pd.DataFrame(rows)


def _both_ways(lm, pairs, hook_name, basis, clean, name, rank, seed) -> list[dict[str, Any]]:
    rows = []
    for mode in ("keep", "ablate"):
        found = effects(clean, patched_logits(lm, pairs, hook_name, basis, mode), pairs)
        for metric, values in found.items():
            mean, low, high = mean_interval(values.cpu().numpy())
            rows.append({"subspace": name, "rank": rank, "seed": seed, "intervention": mode, "metric": metric,
                         "value": mean, "low": low, "high": high})  # fmt: skip
    return rows


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add the share of the logit difference that each kept subspace recovers (0: empty, 1: whole)."""
    kept = table[(table["metric"] == "logit_difference") & (table["intervention"] == "keep")]
    ends = kept.set_index("subspace")["value"]
    inner = kept[~kept["subspace"].isin(["whole", "empty"])]
    share = [recovered_share(value, float(ends["empty"]), float(ends["whole"])) for value in inner["value"]]
    return inner[["subspace", "rank", "seed"]].assign(metric="recovered_share", value=share)


def judge_causal(share: pd.DataFrame, rank: int, delta: float) -> list[dict[str, Any]]:
    """Return the declared contrasts at one rank: does the mined subspace carry more than random and PCA?"""
    at = share[share["rank"] == rank]
    values = {name: dict(zip(g["seed"], g["value"], strict=True)) for name, g in at.groupby("subspace")}
    return judge(
        "mined directions carry the fact", values, MINED, BASELINES, metric=f"recovered share, rank {rank}", delta=delta
    )
