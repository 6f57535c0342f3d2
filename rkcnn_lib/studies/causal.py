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

from rkcnn_lib.measure.causal import (
    Part,
    clean_logits,
    donor_activations,
    patched_logits,
    random_basis,
    rowspace_part,
    share_in,
)
from rkcnn_lib.measure.effects import (
    PROPORTIONS,
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
    """What every intervention at one hook shares."""

    lm: Any
    hook_name: str
    pairing: Pairing
    donated: torch.Tensor  # the donors' activations
    logits: torch.Tensor  # of the clean run
    clean: dict[str, torch.Tensor]  # `effects` of exchanging nothing
    full: dict[str, torch.Tensor]  # and of exchanging everything

    def run(self, A: Part, mode: str, replacement: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return `effects` of one intervention, each (n,), on the CPU; by default the replacement is the donors'."""
        donated = self.donated if replacement is None else replacement
        patched = patched_logits(self.lm, self.pairing.pairs, self.hook_name, A, mode, donated)
        return _effects(self.logits, patched, self.pairing)

    def shares(self, moved: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the share of the whole activation's effect on each pair (n,), from an interchange's effects."""
        return interchange_shares(*(x["logit_difference"] for x in (self.clean, moved, self.full)))

    def interval(self, effect: dict[str, torch.Tensor], metric: str) -> dict[str, float]:
        """Return mean and 95 % interval over entities of one of the effects, which has a value a pair."""
        over_entities = entity_proportion if metric in PROPORTIONS else entity_interval
        mean, low, high = over_entities(effect[metric], *self.pairing.entities)
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
    """Every subspace at every rank, and what is needed to judge them."""

    table: pd.DataFrame  # subspace, rank, seed, intervention, metric, value, low, high
    per_pair: dict[tuple[str, int, str], dict[str, torch.Tensor]]  # at the judged rank effects (n,), by intervention
    subspaces: dict[tuple[str, int], Subspace]  # what was measured, by (name, seed)
    ground: Ground
    rows: tuple[torch.Tensor, Any]  # the selection prompts' activations and answers
    weight: torch.Tensor | None  # (d_mlp, d_model): what reads the MLP's hidden layer; None: many things read the hook

    def judged_part(self, name: str, seed: int, rank: int) -> Part:
        """Return the part on which verdicts rest: at a hook with a weight downstream, what lies in its rowspace."""
        part = self.subspaces[name, seed].part(rank)
        return part if self.weight is None or callable(part) else rowspace_part(part, self.weight)


def judged_rank(p: CausalChecks) -> int:
    """Return the rank on which verdicts rest: the middle one of those given."""
    return sorted(p.ranks)[(len(p.ranks) - 1) // 2]


def measure_subspaces(lm: Any, store: Any, p: CausalChecks, prompts: Prompts, device: str) -> Measured:
    """Keep and exchange every subspace at every rank and seed on the judged pairs.

    ValueError if a rank exceeds what a miner supplies.
    """
    hook_name = store.manifest["hook_name"]
    hooked = ground(lm, prompts.judged, hook_name)
    X, y = selection_rows(lm, prompts, p, hook_name)
    subspaces = fixed_subspaces(X, y)
    if p.relation == SUM:
        subspaces.append(circuit_subspace(lm, X, y))
    for seed in range(p.n_seeds):
        subspaces += seeded_subspaces(store, p, prompts, X, y, seed, device)
    subspaces += sae_subspaces(lm, store, p, prompts, device) if p.sae_steps else []
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
    for name, part in {"whole": random_basis(store.d_in, store.d_in, torch.Generator()), "empty": None}.items():
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
    differences = table[table["metric"] == "logit_difference"]
    ends = differences[differences["intervention"] == "keep"].set_index("subspace")["value"]
    clean, empty = float(ends["whole"]), float(ends["empty"])

    def share(row: pd.Series) -> float:
        if row["intervention"] == "keep":
            return recovered_share(row["value"], empty, clean)
        return fractional_decrease(torch.tensor([clean]), torch.tensor([row["value"]]))

    inner = differences[~differences["subspace"].isin(ENDS)]
    names = inner["intervention"].map({"keep": "recovered_share", "ablate": "fractional_decrease"})
    about = inner[["subspace", "rank", "seed"]]
    return about.assign(metric=names, value=inner.apply(share, axis=1)).reset_index(drop=True)


def scrubbed(measured: Measured) -> pd.DataFrame:
    """Return the loss recovered by each kept subspace at the judged rank, and its per-example version.

    The hypothesis that is scrubbed: of this activation the answer reads A alone, so everything else may come from
    another prompt. Columns subspace, seed, metric, value.
    """
    model, random = measured.ground.clean["loss"], measured.ground.full["loss"]
    rows = []
    for name, seed in measured.subspaces:
        recovered = scrubbed_loss_recovered(random, measured.per_pair[name, seed, "keep"]["loss"], model)
        about = {"subspace": name, "seed": seed}
        rows += [about | {"metric": f"loss_recovered_{version}", "value": x} for version, x in recovered.items()]
    return pd.DataFrame(rows)


def judge_causal(share: pd.DataFrame, rank: int, delta: float) -> list[dict[str, Any]]:
    """Return the declared contrasts at one rank: does the mined subspace carry more than random and PCA ones?

    A subspace that no seed changes has the same value for each seed of the mined one.
    """
    at = share[(share["rank"] == rank) & (share["metric"] == "recovered_share")]
    values = at.pivot(index="seed", columns="subspace", values="value").ffill().to_dict()
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
    here, rank = measured.ground, judged_rank(p)
    bases, donors = zip(*here.pairing.drawn, strict=True)
    asked, chosen = (at_positions(here.lm, of, p.positions, here.hook_name) for of in (bases, prompts.selection))
    answers, foils, labels = ([prompt.answer for prompt in of] for of in (bases, donors, prompts.selection))

    def predicted(part: Part) -> torch.Tensor:
        inside = [share_in(x, part) if callable(part) or part is None else x @ part.to(x) for x in (asked, chosen)]
        x, train = (coordinates.flatten(1).detach() for coordinates in inside)
        return torch.as_tensor(tells_apart(x, answers, train, labels, foils), dtype=torch.float32)

    parts = {key: measured.judged_part(*key, rank) for key in measured.subspaces}
    shares = {
        key: here.shares(measured.per_pair[*key, "ablate"] if measured.weight is None else here.run(part, "ablate"))
        for key, part in parts.items()
    }
    plain = [share for (name, _), share in shares.items() if name == CHANCE]
    names = [name for name in dict.fromkeys(name for name, _ in parts) if name != CHANCE]
    rows = []
    for name in [*names, CHANCE]:
        keys = [key for key in parts if key[0] == name]
        controls, first = plain if name != CHANCE else [], parts[keys[0]]
        if first is not None and not callable(first):
            drawn = (random_like(first, measured.rows[0], seed=100 + draw) for draw in range(p.n_seeds))
            controls = controls + [here.shares(here.run(random, "ablate")) for random in drawn]
        outcome = subspace_verdict(
            torch.stack([shares[key] for key in keys]).mean(0), controls,
            torch.stack([predicted(parts[key]) for key in keys]).mean(0), *here.pairing.entities,
            p.delta_share, p.delta_predict, n_judged=len(names) + 1,
        )  # fmt: skip
        rows.append(
            {"subspace": name, "verdict": outcome.verdict}
            | dict(zip(("share", "share_low", "share_high"), outcome.effect, strict=True))
            | dict(zip(("advantage", "low", "high"), outcome.advantage, strict=True))
            | dict(zip(("accuracy", "accuracy_low", "accuracy_high"), outcome.predictive, strict=True))
            | {"candidates": measured.subspaces[keys[0]].candidates}
        )
    return pd.DataFrame(rows)
