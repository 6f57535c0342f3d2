"""The study behind 06: parts of one layer's activations, kept or exchanged, judged on held-out prompts.

Subspaces are chosen and learnt on *selection* prompts; what they do is measured on *evaluation* prompts, in other
sentences and where possible about other entities. All are compared at equal rank, intervals run over entities.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure.causal import Part, clean_logits, donor_activations, patched_logits, share_in
from rkcnn_lib.measure.effects import (
    PROPORTIONS,
    Margins,
    effects,
    entity_interval,
    entity_proportion,
    fractional_decrease,
    interchange_shares,
    recovered_share,
    scrubbed_loss_recovered,
    subspace_verdict,
    tells_apart,
)
from rkcnn_lib.measure.subspaces import random_basis, rowspace_part
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.studies.causal_subspaces import (
    CHANCE,
    CHANCE_OF_VARIANCE,
    MINED,
    VARIANCE,
    Pairing,
    Prompts,
    Subspace,
    aligned_subspace,
    at_positions,
    circuit_subspace,
    fixed_subspaces,
    random_like,
    sae_subspaces,
    seeded_subspaces,
    selection_rows,
)
from rkcnn_lib.studies.verdicts import Claim, judge
from rkcnn_lib.worlds.prompts import SUM

BASELINES = (CHANCE, CHANCE_OF_VARIANCE, VARIANCE)  # the contrasts declared beforehand: mined minus each of these
MODES = ("keep", "ablate")
ENDS = {"whole": "clean", "empty": "full-resample"}


@dataclass(frozen=True)
class Ground:
    """What every intervention at one hook shares: the pairs, the donors' activations, the clean logits, both ends.

    ``clean`` and ``full`` are the `effects` of exchanging nothing and everything.
    """

    lm: Any
    hook_name: str
    pairing: Pairing
    donated: torch.Tensor
    logits: torch.Tensor
    clean: dict[str, torch.Tensor]
    full: dict[str, torch.Tensor]

    def run(self, A: Part, mode: str, replacement: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return `effects` of one intervention, each (n,), on the CPU; by default the replacement is the donors'."""
        donated = self.donated if replacement is None else replacement
        patched = patched_logits(self.lm, self.pairing.pairs, self.hook_name, A, mode, donated)
        return _effects(self.logits, patched, self.pairing)

    def shares(self, A: Part) -> torch.Tensor:
        """Return what exchanging A does to each pair (n,), as a share of what exchanging everything does."""
        return self.as_shares(self.run(A, "ablate"))

    def as_shares(self, moved: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the share of the whole activation's effect on each pair, from an interchange's effects."""
        return interchange_shares(*(x["logit_difference"] for x in (self.clean, moved, self.full)))

    def interval(self, effect: dict[str, torch.Tensor], metric: str) -> dict[str, float]:
        """Return mean and 95 % interval over entities of one of the effects, which has a value a pair."""
        over_entities = entity_proportion if metric in PROPORTIONS else entity_interval
        mean, low, high = over_entities(effect[metric].numpy(), self.pairing.bases, self.pairing.donors)
        return {"value": mean, "low": low, "high": high}

    def rows(self, effect: dict[str, torch.Tensor], metrics: Iterable[str] | None = None, **about: Any) -> list[dict]:
        """Return a tidy row for each of some metrics, by default all of the effect's: ``about``, metric, interval."""
        return [about | {"metric": metric} | self.interval(effect, metric) for metric in metrics or effect]


def ground(lm: Any, pairing: Pairing, hook_name: str, logits: torch.Tensor | None = None) -> Ground:
    """Read the donors and run both ends once; ``logits`` of the clean run are taken where they are known."""
    donated = donor_activations(lm, pairing.pairs, hook_name)
    logits = clean_logits(lm, pairing.pairs) if logits is None else logits
    full = patched_logits(lm, pairing.pairs, hook_name, None, "keep", donated)
    ends = (_effects(logits, x, pairing) for x in (logits, full))
    return Ground(lm, hook_name, pairing, donated, logits, *ends)


def _effects(clean: torch.Tensor, patched: torch.Tensor, pairing: Pairing) -> dict[str, torch.Tensor]:
    return {name: values.cpu() for name, values in effects(clean, patched, pairing.pairs).items()}


@dataclass(frozen=True)
class Measured:
    """Every subspace at every rank, and what is needed to judge them.

    ``table``: subspace, rank, seed, intervention, metric, value, low, high. ``per_pair``: at the judged rank the
    effects (n,) by (subspace, seed, intervention). ``subspaces``: what was measured, by (name, seed). ``rows``: the
    selection prompts' activations and answers. ``weight`` (d_mlp, d_model): what reads the MLP's hidden layer, None at
    hooks that many things read.
    """

    table: pd.DataFrame
    per_pair: dict[tuple[str, int, str], dict[str, torch.Tensor]]
    subspaces: dict[tuple[str, int], Subspace]
    ground: Ground
    rows: tuple[torch.Tensor, Any]
    weight: torch.Tensor | None

    def judged_part(self, name: str, seed: int, rank: int) -> Part:
        """Return the part on which verdicts rest: at a hook with a weight downstream, what lies in its rowspace."""
        part = self.subspaces[name, seed].part(rank)
        if self.weight is None or callable(part) or part is None:
            return part
        return rowspace_part(part, self.weight)


def judged_rank(p: CausalChecks) -> int:
    """Return the rank on which verdicts rest: the middle one of those given."""
    return sorted(p.ranks)[(len(p.ranks) - 1) // 2]


def measure_subspaces(lm: Any, store: Any, p: CausalChecks, prompts: Prompts, device: str) -> Measured:
    """Keep and exchange every subspace at every rank and seed on the judged pairs.

    Raises ValueError if a rank exceeds what a miner supplies.
    """
    hook_name = store.manifest["hook_name"]
    hooked = ground(lm, prompts.judged, hook_name)
    X, y = selection_rows(lm, prompts, p, hook_name)
    subspaces = fixed_subspaces(X, y)
    if p.relation == SUM:
        subspaces.append(circuit_subspace(lm, X, y))
    for seed in range(p.n_seeds):
        subspaces += seeded_subspaces(store, p, prompts, X, y, seed, device)
    subspaces += sae_subspaces(lm, store, p, prompts, 0, device) if p.sae_steps else []
    subspaces.append(aligned_subspace(lm, p, prompts, hook_name))
    rows, per_pair = [], {}
    for one in subspaces:
        for rank in sorted(p.ranks):
            part = one.part(rank)
            for mode in MODES:
                effect = hooked.run(part, mode)
                rows += hooked.rows(effect, subspace=one.name, rank=rank, seed=one.seed, intervention=mode)
                if rank == judged_rank(p):
                    per_pair[one.name, one.seed, mode] = effect
    for name, part in (("whole", random_basis(store.d_in, store.d_in, torch.Generator())), ("empty", None)):
        for mode in MODES:
            rows += hooked.rows(hooked.run(part, mode), subspace=name, rank=0, seed=0, intervention=mode)
    by_name = {(one.name, one.seed): one for one in subspaces}
    weight = lm.blocks[p.layer].mlp.W_out.detach().cpu() if p.hook == "mlp_post" else None
    return Measured(pd.DataFrame(rows), per_pair, by_name, hooked, (X, y), weight)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return what each kept subspace recovers and each exchanged one moves, from the means over pairs.

    ``recovered_share``: of the logit difference (0: empty, 1: whole), where only A is kept. ``fractional_decrease``:
    of the logit difference, where A is exchanged (0: none, 2: turned round). Columns subspace, rank, seed, metric,
    value.
    """
    about = ["subspace", "rank", "seed"]
    differences = table[table["metric"] == "logit_difference"]
    ends = differences[differences["intervention"] == "keep"].set_index("subspace")["value"]
    clean, empty = float(ends["whole"]), float(ends["empty"])

    def share(row: pd.Series) -> float:
        if row["intervention"] == "keep":
            return recovered_share(row["value"], empty, clean)
        return fractional_decrease(torch.tensor([clean]), torch.tensor([row["value"]]))

    inner = differences[~differences["subspace"].isin(ENDS)]
    names = inner["intervention"].map({"keep": "recovered_share", "ablate": "fractional_decrease"})
    return inner[about].assign(metric=names, value=inner.apply(share, axis=1)).reset_index(drop=True)


def scrubbed(measured: Measured) -> pd.DataFrame:
    """Return the loss recovered by each kept subspace at the judged rank, and its per-example version.

    The hypothesis that is scrubbed: of this activation the answer reads A alone, so everything else may come from
    another prompt. Columns subspace, seed, metric, value.
    """
    model, random = measured.ground.clean["loss"], measured.ground.full["loss"]
    return pd.DataFrame([
        {"subspace": name, "seed": seed, "metric": f"loss_recovered_{version}", "value": value}
        for name, seed in measured.subspaces
        for version, value in scrubbed_loss_recovered(
            random, measured.per_pair[name, seed, "keep"]["loss"], model
        ).items()
    ])  # fmt: skip


def judge_causal(share: pd.DataFrame, rank: int, delta: float) -> list[dict[str, Any]]:
    """Return the declared contrasts at one rank: does the mined subspace carry more than random and PCA ones?

    A subspace that no seed changes has the same value for each seed of the mined one.
    """
    at = share[(share["rank"] == rank) & (share["metric"] == "recovered_share")]
    values = {name: dict(zip(g["seed"], g["value"], strict=True)) for name, g in at.groupby("subspace")}
    for name in BASELINES:
        if len(values[name]) == 1:
            values[name] = dict.fromkeys(values[MINED], next(iter(values[name].values())))
    metric = f"recovered share, rank {rank}"
    declared = [Claim("mined directions carry the answer best", MINED, name, metric, delta) for name in BASELINES]
    return judge(declared, {metric: values})


def verdict_table(measured: Measured, p: CausalChecks, prompts: Prompts) -> pd.DataFrame:
    """Judge every subspace at the judged rank: causal, predictive only or inconclusive.

    A subspace that was found anew for each seed is judged by its mean over seeds, pair by pair. Its controls are
    random subspaces of equal rank, and of equal rank and variance, a draw a seed. Intervals are at Bonferroni's level.

    Columns subspace, verdict, share (of the whole activation's effect), share_low, share_high, advantage (the share
    above the strongest control), low, high, accuracy (telling answer from foil, chance 0.5), accuracy_low,
    accuracy_high, candidates (directions or latents it was chosen from).
    """
    rank, margins = judged_rank(p), Margins(p.delta_share, p.delta_predict)
    judged = [name for name in dict.fromkeys(name for name, _ in measured.subspaces) if name != CHANCE]
    plain = [measured.ground.shares(measured.judged_part(CHANCE, seed, rank)) for seed in range(p.n_seeds)]
    rows = []
    for name in [*judged, CHANCE]:
        seeds = [seed for other, seed in measured.subspaces if other == name]
        share, predicted = (torch.stack(x).mean(0) for x in zip(
            *(_judged_values(measured, p, prompts, name, seed) for seed in seeds), strict=True
        ))  # fmt: skip
        controls = [*(plain if name != CHANCE else []), *_controls_like(measured, p, name, seeds[0])]
        pairing = measured.ground.pairing
        outcome = subspace_verdict(
            share, controls, predicted, pairing.bases, pairing.donors, margins, n_judged=len(judged) + 1
        )
        rows.append(
            {"subspace": name, "verdict": outcome.verdict}
            | dict(zip(("share", "share_low", "share_high"), outcome.effect, strict=True))
            | dict(zip(("advantage", "low", "high"), outcome.advantage, strict=True))
            | dict(zip(("accuracy", "accuracy_low", "accuracy_high"), outcome.predictive, strict=True))
            | {"candidates": measured.subspaces[name, seeds[0]].candidates}
        )
    return pd.DataFrame(rows)


def _judged_values(measured: Measured, p: CausalChecks, prompts: Prompts, name: str, seed: int) -> tuple:
    """Return the interchange shares and whether A tells the answers apart, each (n,)."""
    part = measured.judged_part(name, seed, judged_rank(p))
    if measured.weight is None:
        share = measured.ground.as_shares(measured.per_pair[name, seed, "ablate"])
    else:
        share = measured.ground.shares(part)
    return share, predictions(measured.ground, p, prompts, part)


def predictions(hooked: Ground, p: CausalChecks, prompts: Prompts, A: Part) -> torch.Tensor:
    """Say for each judged pair whether A's coordinates, read at the exchanged positions, tell answer from foil."""

    def coordinates(of: list) -> torch.Tensor:
        x = at_positions(hooked.lm, of, p.positions, hooked.hook_name)
        inside = share_in(x, A) if callable(A) or A is None else x @ A.to(x)
        return inside.flatten(1).detach()

    bases, donors = map(list, zip(*hooked.pairing.drawn, strict=True))
    answers, foils, labels = ([prompt.answer for prompt in of] for of in (bases, donors, prompts.selection))
    told_apart = tells_apart(coordinates(bases), answers, coordinates(prompts.selection), labels, foils)
    return torch.as_tensor(told_apart, dtype=torch.float32)


def _controls_like(measured: Measured, p: CausalChecks, name: str, seed: int) -> Iterable[torch.Tensor]:
    """Return the shares of random subspaces of the rank and the variance of one subspace, a draw a seed."""
    basis = measured.judged_part(name, seed, judged_rank(p))
    if basis is None or callable(basis):
        return []
    X = measured.rows[0]
    return [measured.ground.shares(random_like(basis, X, seed=100 + draw)) for draw in range(p.n_seeds)]
