"""The study behind 06: parts of one layer's activations, kept or exchanged, judged on held-out prompts; its gate.

Subspaces are chosen and learnt on *selection* prompts; what they do is measured on *evaluation* prompts, in other
sentences and where possible about other entities. All are compared at equal rank, intervals run over entities.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure import effects
from rkcnn_lib.measure.causal import (
    Part,
    clean_logits,
    donor_activations,
    patched_logits,
    random_basis,
    rowspace_part,
    share_in,
)
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.studies import causal_subspaces as exchanged
from rkcnn_lib.studies.causal_subspaces import CEILING, CHANCE, CHANCE_OF_VARIANCE, MINED, NAMED, VARIANCE, Prompts
from rkcnn_lib.studies.comparison import in_order
from rkcnn_lib.studies.verdicts import Claim, judge, listed, means
from rkcnn_lib.worlds.prompts import SUM

BASELINES = (CHANCE, CHANCE_OF_VARIANCE, VARIANCE)  # the contrasts declared beforehand: mined minus each of these
VERDICT = (
    "subspace verdict share share_low share_high advantage low high accuracy accuracy_low accuracy_high candidates"
)
MODES = ("keep", "ablate")
ENDS = {"whole": "clean", "empty": "full-resample"}
EXACT = 1e-5  # largest allowed difference of logits between two runs that must be equal, float32
SHARES = (*effects.PROPORTIONS, "cause", "isolate", "disentangle")  # metrics that lie within 0 and 1
DRAWN = (*NAMED, CHANCE_OF_VARIANCE)  # at once; the others on demand


@dataclass(frozen=True)
class Ground:
    """What every intervention at one hook shares."""

    lm: Any
    hook_name: str
    pairing: exchanged.Pairing
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
        return effects.interchange_shares(*(x["logit_difference"] for x in (self.clean, moved, self.full)))

    def interval(self, effect: dict[str, torch.Tensor], metric: str) -> dict[str, float]:
        """Return mean and 95 % interval over entities of one of the effects, which has a value a pair."""
        over_entities = effects.entity_proportion if metric in effects.PROPORTIONS else effects.entity_interval
        return dict(zip(("value", "low", "high"), over_entities(effect[metric], *self.pairing.entities), strict=True))

    def rows(self, effect: dict[str, torch.Tensor], metrics: Iterable[str] | None = None, **about: Any) -> list[dict]:
        """Return a tidy row for each of some metrics, by default all of the effect's: ``about``, metric, interval."""
        return [about | {"metric": metric} | self.interval(effect, metric) for metric in metrics or effect]


def ground(lm: Any, pairing: exchanged.Pairing, hook_name: str, logits: torch.Tensor | None = None) -> Ground:
    """Read the donors and run both ends once; ``logits`` of the clean run are taken where they are known."""
    donated = donor_activations(lm, pairing.pairs, hook_name)
    logits = clean_logits(lm, pairing.pairs) if logits is None else logits
    full = patched_logits(lm, pairing.pairs, hook_name, None, "keep", donated)
    return Ground(lm, hook_name, pairing, donated, logits, *(_effects(logits, x, pairing) for x in (logits, full)))


def _effects(clean: torch.Tensor, patched: torch.Tensor, pairing: exchanged.Pairing) -> dict[str, torch.Tensor]:
    return {name: values.cpu() for name, values in effects.effects(clean, patched, pairing.pairs).items()}


@dataclass(frozen=True)
class Measured:
    """Every subspace at every rank, and what is needed to judge them."""

    table: pd.DataFrame  # subspace, rank, seed, intervention, metric, value, low, high
    per_pair: dict[tuple[str, int, str], dict[str, torch.Tensor]]  # at the judged rank effects (n,), by intervention
    subspaces: dict[tuple[str, int], exchanged.Subspace]  # what was measured, by (name, seed)
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
    """Keep and exchange every subspace at every rank and seed; ValueError if a rank exceeds what a miner supplies."""
    hook_name = store.manifest["hook_name"]
    hooked = ground(lm, prompts.judged, hook_name)
    X, y = exchanged.selection_rows(lm, prompts, p, hook_name)
    subspaces = exchanged.fixed_subspaces(X, y)
    if p.relation == SUM:
        subspaces.append(exchanged.circuit_subspace(lm, X, y))
    for seed in range(p.n_seeds):
        subspaces += exchanged.seeded_subspaces(store, p, prompts, X, y, seed, device)
    subspaces += exchanged.sae_subspaces(lm, store, p, prompts, device) if p.sae_steps else []
    subspaces.append(exchanged.aligned_subspace(lm, p, prompts, hook_name))
    rows, per_pair = [], {}
    for one, rank in itertools.product(subspaces, sorted(p.ranks)):
        part = one.part(rank)
        for mode in MODES:
            effect = hooked.run(part, mode)
            rows += hooked.rows(effect, subspace=one.name, rank=rank, seed=one.seed, intervention=mode)
            if rank == judged_rank(p):
                per_pair[one.name, one.seed, mode] = effect
    ends = {"whole": random_basis(store.d_in, store.d_in, torch.Generator()), "empty": None}
    for (name, part), mode in itertools.product(ends.items(), MODES):
        rows += hooked.rows(hooked.run(part, mode), subspace=name, rank=0, seed=0, intervention=mode)
    by_name = {(one.name, one.seed): one for one in subspaces}
    weight = lm.blocks[p.layer].mlp.W_out.detach().cpu() if p.hook == "mlp_post" else None
    return Measured(pd.DataFrame(rows), per_pair, by_name, hooked, (X, y), weight)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return subspace, rank, seed, metric, value: what of the logit difference hangs on A, from means over pairs.

    ``recovered_share``: A alone is kept (0: empty, 1: whole); ``fractional_decrease``: exchanged (0: none, 2: turned).
    """
    differences = table[table["metric"] == "logit_difference"]
    ends = differences[differences["intervention"] == "keep"].set_index("subspace")["value"]
    clean, empty = float(ends["whole"]), float(ends["empty"])

    def share(row: pd.Series) -> float:
        if row["intervention"] == "keep":
            return effects.recovered_share(row["value"], empty, clean)
        return effects.fractional_decrease(torch.tensor([clean]), torch.tensor([row["value"]]))

    inner = differences[~differences["subspace"].isin(ENDS)]
    names = inner["intervention"].map({"keep": "recovered_share", "ablate": "fractional_decrease"})
    about = inner[["subspace", "rank", "seed"]]
    return about.assign(metric=names, value=inner.apply(share, axis=1)).reset_index(drop=True)


def scrubbed(measured: Measured) -> pd.DataFrame:
    """Return subspace, seed, metric, value: the loss recovered by each kept subspace at the judged rank, both versions.

    The hypothesis that is scrubbed: of this activation the answer reads A alone, all else may be another prompt's.
    """
    model, random = measured.ground.clean["loss"], measured.ground.full["loss"]
    rows = []
    for name, seed in measured.subspaces:
        recovered = effects.scrubbed_loss_recovered(random, measured.per_pair[name, seed, "keep"]["loss"], model)
        about = {"subspace": name, "seed": seed}
        rows += [about | {"metric": f"loss_recovered_{version}", "value": x} for version, x in recovered.items()]
    return pd.DataFrame(rows)


def judge_causal(share: pd.DataFrame, rank: int, delta: float) -> list[dict[str, Any]]:
    """Return the declared contrasts at one rank: does the mined subspace carry more than random and PCA ones?"""
    at = share[(share["rank"] == rank) & (share["metric"] == "recovered_share")]
    values = at.pivot(index="seed", columns="subspace", values="value").ffill().to_dict()  # some have one seed only
    metric = f"recovered share, rank {rank}"
    declared = [Claim("mined directions carry the answer best", MINED, name, metric, delta) for name in BASELINES]
    return judge(declared, {metric: values})


def verdict_table(measured: Measured, p: CausalChecks, prompts: Prompts) -> pd.DataFrame:
    """Judge every subspace at the judged rank: causal, predictive only or inconclusive.

    A subspace that was found anew for each seed is judged by its mean over seeds, pair by pair. Its controls are
    random subspaces of equal rank, and of equal rank and variance, a draw a seed. Intervals are at Bonferroni's level.

    Columns `VERDICT`: share of the whole activation's effect; advantage: the share above the strongest control;
    accuracy: telling answer from foil, chance 0.5; candidates: directions or latents it was chosen from.
    """
    here, rank = measured.ground, judged_rank(p)
    bases, donors = zip(*here.pairing.drawn, strict=True)
    chosen_on = prompts.selection
    asked, chosen = (exchanged.at_positions(here.lm, of, p.positions, here.hook_name) for of in (bases, chosen_on))
    answers, foils, labels = ([prompt.answer for prompt in of] for of in (bases, donors, chosen_on))

    def predicted(part: Part) -> torch.Tensor:
        inside = [share_in(x, part) if callable(part) or part is None else x @ part.to(x) for x in (asked, chosen)]
        x, train = (coordinates.flatten(1).detach() for coordinates in inside)
        return torch.as_tensor(effects.tells_apart(x, answers, train, labels, foils), dtype=torch.float32)

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
            drawn = (exchanged.random_like(first, measured.rows[0], seed=100 + draw) for draw in range(p.n_seeds))
            controls = controls + [here.shares(here.run(random, "ablate")) for random in drawn]
        outcome = effects.subspace_verdict(
            torch.stack([shares[key] for key in keys]).mean(0), controls,
            torch.stack([predicted(parts[key]) for key in keys]).mean(0), *here.pairing.entities,
            p.delta_share, p.delta_predict, n_judged=len(names) + 1,
        )  # fmt: skip
        numbers = (*outcome.effect, *outcome.advantage, *outcome.predictive, measured.subspaces[keys[0]].candidates)
        rows.append((name, outcome.verdict, *numbers))
    return pd.DataFrame(rows, columns=VERDICT.split())


# ---------------------------------------------------------------- what is shown of it


def over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Average over seeds with a 95 % t interval, of shares cut at 0 and 1; a lone seed keeps its own over entities."""
    averaged = []
    for key, group in rows.groupby(keys, sort=False):
        lone = group.iloc[0][["value", "low", "high"]]
        averaged.append([*key, *(lone if len(group) == 1 else mean_interval(group["value"].to_numpy()))])
    table = pd.DataFrame(averaged, columns=[*keys, "value", "low", "high"])
    shares = table["metric"].isin(SHARES)
    table.loc[shares, ["low", "high"]] = table.loc[shares, ["low", "high"]].clip(0, 1)
    return table


def at_rank(table: pd.DataFrame, p: CausalChecks) -> pd.DataFrame:
    """Return the effects at the judged rank, with the clean run and the full resample ablation as references."""
    inner = table[(table["rank"] == judged_rank(p)) & ~table["subspace"].isin(ENDS)]
    ends = table[table["subspace"].isin(ENDS) & (table["intervention"] == "keep")]
    ends = ends.assign(subspace=ends["subspace"].map(ENDS))
    shown = in_order(pd.concat([inner, ends]), "metric", ["interchanged", "logit_difference", "top1", "loss", "kl"])
    return over_seeds(shown, ["subspace", "intervention", "metric"])


def _turned(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that say how often the exchange of a subspace turned the answer into the donor's."""
    turned = (table["metric"] == "interchanged") & (table["intervention"] == "ablate")
    return table[turned & ~table["subspace"].isin(ENDS)]


def _turned_at_rank(table: pd.DataFrame, p: CausalChecks) -> pd.Series:
    return means(_turned(table[table["rank"] == judged_rank(p)]), "interchanged", "subspace")


def effects_title(table: pd.DataFrame, p: CausalChecks) -> str:
    """Return how often the exchange of each subspace turns the answer."""
    moved = _turned_at_rank(table, p)
    named = listed({name: moved[name] for name in NAMED if name in moved}, ".0%")
    return f"Exchanging a rank-{judged_rank(p)} subspace turns the answer into the donor's: {named}"


def minimal_size(table: pd.DataFrame, share: pd.DataFrame) -> pd.DataFrame:
    """Return interchange accuracy and shares by rank in the form of a recovery curve, random subspaces as chance."""
    rows = pd.concat([_turned(table), share])[["subspace", "rank", "seed", "metric", "value"]]
    random = rows[rows["subspace"] == CHANCE].groupby(["rank", "metric"])["value"]
    chance = pd.DataFrame({"chance_mean": random.mean(), "chance_upper": random.max()}).reset_index()
    rows = rows[rows["subspace"] != CHANCE].rename(columns={"subspace": "miner"})
    return rows.merge(chance, on=["rank", "metric"])


def curve_title(table: pd.DataFrame, p: CausalChecks) -> str:
    """Return the smallest rank of each subspace that turns half of the answers."""
    half = _turned(table).pivot_table(index="rank", columns="subspace", values="value") >= 0.5
    more = f"more than {max(p.ranks)}"
    ranks = {name: str(half[name].idxmax()) if half[name].any() else more for name in NAMED if name in half}
    return f"Dimensions it takes to turn half of the answers: {listed(ranks, '')}"


def verdict_rows(judged: pd.DataFrame, p: CausalChecks) -> pd.DataFrame:
    """Return the verdicts on subspaces in the form of a forest plot."""
    return judged.rename(columns={"subspace": "contrast", "advantage": "difference"}).assign(
        contrast=judged["subspace"] + " - strongest random", metric="interchange_share", delta=p.delta_share,
        n_seeds=p.n_seeds,
    )  # fmt: skip


def verdicts_title(judged: pd.DataFrame) -> str:
    """Return the verdicts on subspaces in one line."""
    groups = judged.groupby("verdict", sort=False)["subspace"]
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups)


def checks(prompts: Prompts, measured: Measured, p: CausalChecks) -> list[Check]:
    """Return 06's gate: interventions exact at both ends, prompt sets disjoint, and something to explain."""
    hooked = measured.ground
    d = hooked.donated.shape[-1]
    whole = random_basis(d, d, torch.Generator().manual_seed(0))  # not the identity: that would test nothing
    kept, replaced, nothing = (
        patched_logits(hooked.lm, hooked.pairing.pairs, hooked.hook_name, A, mode, hooked.donated)
        for A, mode in ((whole, "keep"), (whole, "ablate"), (None, "keep"))
    )
    clean, same = float((kept - hooked.logits).abs().max()), float((replaced - nothing).abs().max())
    texts = [{x.text for x in part} for part in (prompts.screening, prompts.selection, prompts.evaluation)]
    shared = sum(map(len, texts)) - len(set().union(*texts))
    effect = float((hooked.clean["logit_difference"] - hooked.full["logit_difference"]).mean())
    return [
        Check("keeping everything against the clean run, logits", clean, f"<= {EXACT}", clean <= EXACT),
        Check("keeping nothing against replacing everything, logits", same, f"<= {EXACT}", same <= EXACT),
        Check("prompts shared by screening, selection and evaluation", shared, "0", shared == 0),
        Check("entities that the model knows", f"{prompts.known} of {prompts.asked}", ">= 8", prompts.known >= 8),
        Check("effect of replacing the whole activation, logit difference", effect, "> 1", effect > 1),
    ]


def headline(judged: pd.DataFrame, measured: Measured, run: Run) -> str:
    """Return one sentence that answers 06's question."""
    turned, verdict = _turned_at_rank(measured.table, run.p), judged.set_index("subspace")["verdict"][MINED]
    mined, random, learnt = (f"{turned[name]:.0%}" for name in (MINED, CHANCE, CEILING))
    told = f"turns {mined} of the answers, a random one {random}, a supervised one {learnt}"
    return f"Exchanged between two prompts, the mined subspace {told}; beside random ones the mined one is {verdict}."
