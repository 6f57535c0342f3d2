"""The front of 04: how good an SAE is at each L0, and how many active latents an arm needs for the same quality.

TopK fixes L0, so "fewer active latents" cannot be read off one k. Each of the compared arms is trained at several k
(a ReLU SAE at the penalties that give as many active latents);
between them the explained variance is taken to be linear in log L0. A seed's *L0 at equal explained variance* is where
an arm's line crosses the explained variance that the random arm of the same seed reaches at the profile's own k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import unit_scalars
from rkcnn_lib.studies.comparison import Compared, run_grid, tidy
from rkcnn_lib.vocabulary import MINED, RIVALS, UNMINED

COMPARED = (*RIVALS, MINED)  # the arms trained at every k
METRIC = "l0_at_equal_ev"
SHOWN = ("explained_variance", "explained_variance_standardised", "live", "delta_ce", "kl", "dead", "untrained_dead")


def front(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Train the compared arms at every k of ``front_k``, with the learning rates they were compared with.

    Returns
    -------
    DataFrame
        arm, seed, k, metric, value, and ``l0`` of that SAE; empty where ``front_k`` is.
    """
    parts = []
    for k in sorted({*run.p.front_k, run.p.k} if run.p.front_k else ()):
        arms = [arm for arm in COMPARED if arm in run.p.arms]
        p = run.p.model_copy(update={"k": k})
        grid = run_grid({run.p.layer: store}, p, run.device, trained=arms, rates=compared.rates)
        found = tidy({cell: unit_scalars(folder) for cell, folder in grid.folders.items()}).drop(columns="layer")
        l0 = found[found["metric"] == "l0"].set_index(["arm", "seed"])["value"].rename("l0")
        parts.append(found[found["metric"].isin(SHOWN)].join(l0, on=["arm", "seed"]).assign(k=k))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("metric", key=lambda names: names.map(SHOWN.index), kind="stable", ignore_index=True)


def l0_at_equal_ev(table: pd.DataFrame, p: SaeCompare) -> pd.DataFrame:
    """Return arm, seed, value, cut: the L0 at which an arm explains what its seed's random arm explains at ``p.k``.

    An arm whose line does not reach that quality within the front has the value at the end it leaves by: less of a
    difference than there is, never more (``cut`` is then "at most" or "at least", else empty).
    """
    if table.empty:
        return pd.DataFrame({"arm": [], "seed": [], "metric": [], "value": [], "cut": []}).astype({"value": float})
    ev = table[table["metric"] == "explained_variance"]
    rows = []
    for (arm, seed), line in ev.groupby(["arm", "seed"]):
        line = line.sort_values("l0")
        target = ev[(ev["arm"] == UNMINED) & (ev["seed"] == seed) & (ev["k"] == p.k)]["value"].item()
        quality = np.maximum.accumulate(line["value"].to_numpy())  # a dip is noise: more latents never explain less
        value = np.exp(np.interp(target, quality, np.log(line["l0"].to_numpy())))
        cut = "at most" if target < quality[0] else "at least" if target > quality[-1] else ""
        rows.append({"arm": arm, "seed": seed, "metric": METRIC, "value": float(value), "cut": cut})
    return pd.DataFrame(rows)


def title(needed: pd.DataFrame) -> str:
    """Return the finding of the front."""
    means = needed.groupby("arm")["value"].mean()
    cuts = set(needed[needed["arm"] == MINED]["cut"]) - {""}
    bound = f"{cuts.pop()} " if len(cuts) == 1 else ""
    return (
        f"For the variance that {UNMINED} explains with {means[UNMINED]:.1f} active latents a token, "
        f"{MINED} needs {bound}{means[MINED]:.1f}"
    )
