"""Which latents recur in other seeds, and what those that do have in common: beside the agreement of seeds in 04."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.units import Unit
from rkcnn_lib.studies.agreement import Agreement
from rkcnn_lib.studies.cells import live_rows
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.studies.truth import labels, latent_f1, recovered
from rkcnn_lib.vocabulary import MINED, RIVALS, UNMINED

ALL, SOME, NONE = "in all other seeds", "in some", "in none"


@dataclass(frozen=True)
class Recurrence:
    """What is shown of the latents that several seeds find."""

    shares: pd.DataFrame  # metric (the arm), arm (a seed), seed (another), value: of the first's live latents in both
    traits: pd.DataFrame  # a row an arm and how often its latents recur: share of the live ones, and what they are like
    title: str


def recurrence(compared: Compared, agreed: Agreement, store: Any, run: Run) -> Recurrence:
    """Tell latents that recur from those that do not, in the arms that are judged; empty tables with one seed."""
    arms = [arm for arm in (MINED, *RIVALS) if arm in agreed.units]
    shares = pd.DataFrame([
        {"metric": arm, "arm": f"seed {seed}", "seed": other, "value": float(value)}
        for arm in arms
        for (seed, other), value in np.ndenumerate(agreed.units[arm].arrays["recurring"].numpy()) if seed != other
    ])  # fmt: skip
    labels(compared, store, run)  # several SAEs at once; read below
    latents = pd.concat(
        [_latents(compared.units[arm, seed], recurs, store, run).assign(arm=arm)
         for arm in arms for seed, recurs in enumerate(agreed.units[arm].arrays["recurs"])],
        ignore_index=True,
    )  # fmt: skip
    groups = latents.groupby(["arm", "recurs"], sort=False)
    traits = groups.mean(numeric_only=True).assign(firing_rate=groups["firing rate"].median())
    traits = traits.drop(columns="firing rate").rename(columns={"firing_rate": "firing rate, median"})
    traits.insert(0, "share of live latents", groups.size() / latents.groupby("arm").size())
    order = pd.MultiIndex.from_product([arms, (ALL, SOME, NONE)], names=["arm", "recurs"])
    return Recurrence(shares, traits.reindex(order).dropna(how="all"), _title(traits))


def _latents(unit: Unit, recurs: torch.Tensor, store: Any, run: Run) -> pd.DataFrame:
    """Return a row a live latent: how often it recurs, its firing rate, and what truth or labels say of it."""
    live, most = recurs >= 0, run.p.n_seeds - 1
    named = np.select([recurs[live] == most, recurs[live] > 0], [ALL, SOME], NONE)
    table = pd.DataFrame({"recurs": named, "firing rate": unit.arrays["density"][live].numpy()})
    if getattr(store, "truth", None) is not None:
        table["is a true direction"] = recovered(store.truth, live_rows(unit))
    if run.p.model == "atlas":
        table["F1 of its best label"] = latent_f1(unit.folder, store, run)[live.numpy()]
    return table


def _title(traits: pd.DataFrame) -> str:
    shares = traits["share of live latents"].unstack("recurs").reindex(columns=[ALL]).fillna(0.0)[ALL]
    return f"Found by all seeds: {shares[MINED]:.0%} of the latents of {MINED}, {shares[UNMINED]:.0%} of {UNMINED}"
