"""What an arm of 04 needs for the same quality: how many active latents (the front of L0), how many tokens.

TopK fixes L0, so each of the compared arms is trained at several k (a ReLU SAE at the penalties that give as many
active latents); between them the explained variance is taken to be linear in log L0. A seed's *L0 at equal explained
variance* is where an arm's line crosses what the random arm of the same seed explains at the profile's own k.
"""

from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.measure.statistics import tokens_to_quality
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.studies.comparison import QUALITIES, Compared, in_order, metrics_of
from rkcnn_lib.studies.verdicts import by_arm, means
from rkcnn_lib.vocabulary import COMPARED, MEASURES, MINED, RIVALS, UNMINED

SHOWN = ("explained_variance", "explained_variance_standardised", "live", "delta_ce", "kl", "dead", "untrained_dead")


def front(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Train the compared arms, at their rates, at every k of ``front_k`` too: arm, seed, k, l0, metric, value."""
    if not run.p.front_k:
        return pd.DataFrame()
    arms, parts = [arm for arm in COMPARED if arm in run.p.arms], []
    for k in sorted({*run.p.front_k, run.p.k}):
        p = run.p.model_copy(update={"k": k})
        found = metrics_of(store, p, run.device, arms, compared.rates)
        l0 = means(found, "l0", ["arm", "seed"]).rename("l0")
        parts.append(found.join(l0, on=["arm", "seed"]).assign(k=k))
    return in_order(pd.concat(parts), "metric", SHOWN)


def l0_at_equal_ev(table: pd.DataFrame, p: SaeCompare) -> pd.DataFrame:
    """Return arm, seed, value, cut: the L0 at which an arm explains what its seed's random arm explains at ``p.k``.

    An arm whose line leaves the front before has the value at its end, ``cut`` "at most" or "at least" (else ""): less
    of a difference than there is, never more.
    """
    if table.empty:
        return table
    ev = table[table["metric"] == "explained_variance"].sort_values("l0")
    targets = ev[(ev["arm"] == UNMINED) & (ev["k"] == p.k)].set_index("seed")["value"]
    rows = []
    for (arm, seed), line in ev.groupby(["arm", "seed"]):
        target = targets[seed]
        quality = np.maximum.accumulate(line["value"].to_numpy())  # a dip is noise: more latents never explain less
        value = float(np.exp(np.interp(target, quality, np.log(line["l0"].to_numpy()))))
        cut = "at most" if target < quality[0] else "at least" if target > quality[-1] else ""
        rows.append((arm, seed, "l0_at_equal_ev", value, cut))
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value", "cut"])


def title(needed: pd.DataFrame) -> str:
    needs, cuts = needed.groupby("arm")["value"].mean(), set(needed[needed["arm"] == MINED]["cut"]) - {""}
    bound = f"{cuts.pop()} " if len(cuts) == 1 else ""
    told = f"For the variance that {UNMINED} explains with {needs[UNMINED]:.1f} active latents a token"
    return f"{told}, {MINED} needs {bound}{needs[MINED]:.1f}"


def budget_title(budgets: pd.DataFrame) -> str:
    ev = means(budgets[budgets["arm"] == UNMINED], "explained_variance", "tokens")
    if len(ev) < 2:
        return "One length of training: whether it was long enough is not known"
    return f"From {ev.index[-2]:,} to {ev.index[-1]:,} tokens {UNMINED} still gains {ev.diff().iloc[-1]:.4f}"


def against_live(budgets: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of explained variance with ``live``, the mean number of live latents of their arm and length."""
    live = means(budgets, "live", ["arm", "tokens"]).rename("live")
    return budgets[budgets["metric"].str.startswith("explained_variance")].join(live, on=["arm", "tokens"])


def live_title(rows: pd.DataFrame) -> str:
    full = rows[(rows["metric"] == "explained_variance") & (rows["tokens"] == rows["tokens"].max())]
    of_arm = full.groupby("arm")[["value", "live"]].mean().loc[[MINED, UNMINED]]
    told = (f"{arm} explains {ev:.4f} with {live:,.0f}" for arm, ev, live in of_arm.itertuples())
    return " live latents, ".join(told)


def advantage(compared: Compared) -> pd.DataFrame:
    """Return arm (a rival), seed, tokens, metric, value: how far rkcnn is ahead of each rival after each budget."""
    wide = compared.budgets.pivot_table(index=["metric", "tokens", "seed"], columns="arm", values="value")
    signs = {name: -1.0 if MEASURES[name].lower_is_better else 1.0 for name in QUALITIES if name in MEASURES}
    gaps = {rival: wide[MINED] - wide[rival] for rival in RIVALS if rival in wide}
    ahead = in_order(pd.concat(gaps, names=["arm"]).rename("value").reset_index(), "metric", list(signs))
    return ahead.assign(value=ahead["value"] * ahead["metric"].map(signs))


def advantage_title(ahead: pd.DataFrame) -> str:
    ev = ahead[ahead["metric"] == "explained_variance"]
    mean = ev.pivot_table(index="arm", columns="tokens", values="value", sort=False).sort_index(axis=1)
    told = [f"{first:+.4f} to {last:+.4f} over {rival}" for rival, first, last in mean.iloc[:, [0, -1]].itertuples()]
    return f"With training the advantage in explained variance goes from {', '.join(told)}"


def needed_tokens(compared: Compared) -> pd.DataFrame:
    """Return arm, seed, metric, value, mining, bound: the share of the tokens by which an arm is where random ends.

    ``value`` counts ``mining``, the tokens that training would have seen in that time. Empty without budgets.
    """
    ev = compared.budgets[compared.budgets["metric"] == "explained_variance"]
    curves = {cell: dict(zip(line["tokens"], line["value"], strict=True)) for cell, line in ev.groupby(["arm", "seed"])}
    seconds = by_arm(compared.metrics, "seconds")
    mining = compared.supply.set_index(["arm", "seed"])["seconds"].to_dict()
    full, rows = ev["tokens"].max(), []
    for (arm, seed), curve in curves.items():
        if len(curve) > 1:  # variants, and all arms of runs without budgets, have one
            share = mining.get((arm, seed), 0.0) / seconds[arm][seed]
            found = tokens_to_quality(curve, curves[UNMINED, seed], mining_tokens=share * full)
            rows.append((arm, seed, "tokens_to_quality", found.ratio, share, found.bound))
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value", "mining", "bound"])
