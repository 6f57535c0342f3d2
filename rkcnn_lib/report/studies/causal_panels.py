"""What 06 shows of the causal study: tables in the form the figures take, titles that state, the gate."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from IPython.display import display

from rkcnn_lib.measure.causal import clean_logits, patched_logits
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.report.params import CausalChecks
from rkcnn_lib.report.runs import Check, Run
from rkcnn_lib.report.studies.causal import CHANCE, MINED, Prompts
from rkcnn_lib.report.studies.sae_panels import verdict_title

__all__ = [
    "at_rank", "checks", "describe", "effects_title", "headline", "judged_rank", "share_curve", "share_title",
    "verdict_title",
]  # fmt: skip
EXACT = 1e-3  # largest allowed difference of logits between two runs that must be equal, float32


def describe(prompts: Prompts) -> None:
    """Show how many prompts there are of each kind, and one pair."""
    base, donor = prompts.evaluation[0], prompts.evaluation[1]
    display(pd.DataFrame({
        "prompts": [len(prompts.selection), prompts.asked, len(prompts.evaluation), len(prompts.pairs.base)],
        "example": [prompts.selection[0].prompt, "", f"{base.prompt} -> {base.answer}", f"donor: {donor.prompt}"],
    }, index=["to choose subspaces on", "to judge them on, asked", "... answered correctly", "pairs"]))  # fmt: skip


def judged_rank(p: CausalChecks) -> int:
    """Return the rank on which verdicts rest: the middle one of those given."""
    return sorted(p.ranks)[(len(p.ranks) - 1) // 2]


def _over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Average over seeds with a 95 % t interval; a lone seed keeps its interval over prompt pairs."""
    found = []
    for key, group in rows.groupby(keys, sort=False):
        alone = group.iloc[0]
        mean, low, high = (
            mean_interval(group["value"].to_numpy())
            if len(group) > 1
            else (alone["value"], alone["low"], alone["high"])
        )
        found.append(dict(zip(keys, key, strict=True)) | {"value": mean, "low": low, "high": high})
    return pd.DataFrame(found)


def at_rank(table: pd.DataFrame, p: CausalChecks) -> pd.DataFrame:
    """Return the effects at the judged rank, with the clean run and the full resample ablation as references."""
    inner = table[(table["rank"] == judged_rank(p)) & ~table["subspace"].isin(["whole", "empty"])]
    ends = table[table["subspace"].isin(["whole", "empty"]) & (table["intervention"] == "keep")]
    ends = ends.assign(subspace=ends["subspace"].map({"whole": "clean", "empty": "full resample"}))
    return _over_seeds(pd.concat([inner, ends]), ["subspace", "intervention", "metric"])


def effects_title(table: pd.DataFrame, p: CausalChecks) -> str:
    """Return the finding of the effects figure."""
    rows = table[(table["rank"] == judged_rank(p)) & (table["intervention"] == "ablate")]
    moved = rows[rows["metric"] == "interchanged"].groupby("subspace")["value"].mean()
    return (
        f"Exchanging a rank-{judged_rank(p)} subspace turns the answer into the donor's: mined {moved[MINED]:.0%}, "
        f"random {moved[CHANCE]:.0%}, PCA {moved['pca']:.0%}, class means {moved['class_means']:.0%}"
    )


def share_curve(share: pd.DataFrame) -> pd.DataFrame:
    """Return the recovered share by rank in the form of a recovery curve, the random subspace as chance."""
    random = share[share["subspace"] == CHANCE].groupby("rank")["value"]
    chance = pd.DataFrame({"chance_mean": random.mean(), "chance_upper": random.max()}).reset_index()
    return share[share["subspace"] != CHANCE].rename(columns={"subspace": "miner"}).merge(chance, on="rank")


def share_title(share: pd.DataFrame) -> str:
    """Return the finding of the rank curve."""
    rank = int(share["rank"].max())
    means = share[share["rank"] == rank].groupby("subspace")["value"].mean()
    return (
        f"At rank {rank} the mined subspace alone keeps {means[MINED]:.0%} of the answer (random {means[CHANCE]:.0%})"
    )


def checks(lm: Any, prompts: Prompts, table: pd.DataFrame, store: Any) -> list[Check]:
    """Return 06's gate: the interventions are exact at both ends, and there is something to explain."""
    hook_name, pairs = store.manifest["hook_name"], prompts.pairs
    whole = patched_logits(lm, pairs, hook_name, torch.eye(store.d_in), "keep")
    clean = float((whole - clean_logits(lm, pairs.base)).abs().max())
    everything = patched_logits(lm, pairs, hook_name, torch.eye(store.d_in), "ablate")
    nothing = patched_logits(lm, pairs, hook_name, None, "keep")
    same = float((everything - nothing).abs().max())
    kept = table[(table["metric"] == "logit_difference") & (table["intervention"] == "keep")]
    ends = kept[kept["subspace"].isin(["whole", "empty"])].set_index("subspace")["value"]
    effect = float(ends["whole"] - ends["empty"])
    known = f"{len(prompts.evaluation)} of {prompts.asked}"
    return [
        Check("keeping everything against the clean run, logits", clean, f"<= {EXACT}", clean <= EXACT),
        Check("keeping nothing against replacing everything, logits", same, f"<= {EXACT}", same <= EXACT),
        Check("evaluation prompts answered correctly", known, ">= 4", len(prompts.evaluation) >= 4),
        Check("effect of replacing the whole activation, logit difference", effect, "> 1", effect > 1),
    ]


def headline(verdicts: pd.DataFrame, share: pd.DataFrame, run: Run) -> str:
    """Return one sentence that answers 06's question."""
    rank = judged_rank(run.p)
    means = share[share["rank"] == rank].groupby("subspace")["value"].mean()
    return (
        f"{run.p.model}, {run.p.relation} at layer {run.p.layer}: a mined subspace of rank {rank} keeps "
        f"{means[MINED]:.0%} of the answer's logit difference (random {means[CHANCE]:.0%}, PCA {means['pca']:.0%}, "
        f"class means {means['class_means']:.0%}); {verdict_title(verdicts)}."
    )
