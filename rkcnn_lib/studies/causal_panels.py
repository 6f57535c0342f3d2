"""What 06 shows of the causal study: tables in the form the figures take, titles that state, the gate."""

from __future__ import annotations

import pandas as pd
import torch
from IPython.display import HTML, display

from rkcnn_lib.measure.causal import patched_logits, random_basis
from rkcnn_lib.measure.effects import PROPORTIONS
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.runs.run import Check, Run
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.studies.causal import ENDS, Measured, judged_rank
from rkcnn_lib.studies.causal_subspaces import (
    CEILING,
    CHANCE,
    CHANCE_OF_VARIANCE,
    MINED,
    NAMED,
    SUBSPACES,
    Prompts,
)
from rkcnn_lib.studies.comparison import in_order

EXACT = 1e-5  # largest allowed difference of logits between two runs that must be equal, float32
SHARES = (*PROPORTIONS, "cause", "isolate", "disentangle")  # metrics that lie within 0 and 1
DRAWN = (*NAMED, CHANCE_OF_VARIANCE)  # at once; the others on demand


def describe(prompts: Prompts) -> None:
    """Show how many prompts there are of each kind, and one of each."""
    base, donor = prompts.judged.drawn[0]
    first = prompts.selection[0]
    _whole(pd.DataFrame.from_dict({
        "screening prompts": (len(prompts.screening), prompts.screening[0].text),
        "entities known": (f"{prompts.known} of {prompts.asked}", ""),
        "selection prompts": (len(prompts.selection), f"{first.text} -> {first.answer}"),
        "training pairs": (len(prompts.training.drawn), ""),
        "evaluation prompts": (
            len(prompts.evaluation), f"other sentences, {'other' if prompts.entities_held_out else 'same'} entities"
        ),
        "judged pairs": (
            len(prompts.judged.drawn), f"{base.text} -> {base.answer}; donor: {donor.text} -> {donor.answer}"
        ),
    }, orient="index", columns=["number", "example"]))  # fmt: skip


def _whole(table: pd.DataFrame) -> None:
    """Display a table with its texts in full, escaped."""
    with pd.option_context("display.max_colwidth", None):
        display(HTML(table.to_html(border=0)))


def legend(measured: Measured) -> None:
    """Show what each subspace is, in words, with how many candidates it was chosen from."""
    rows = [
        {"subspace": name, "what it is": meaning, "chosen from": measured.subspaces[name, 0].candidates}
        for name, meaning in SUBSPACES.items()
        if (name, 0) in measured.subspaces
    ]
    _whole(pd.DataFrame(rows).set_index("subspace"))


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
    effects = in_order(pd.concat([inner, ends]), "metric", ["interchanged", "logit_difference", "top1", "loss", "kl"])
    return over_seeds(effects, ["subspace", "intervention", "metric"])


def _turned(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that say how often the exchange of a subspace turned the answer into the donor's."""
    exchanged = (table["metric"] == "interchanged") & (table["intervention"] == "ablate")
    return table[exchanged & ~table["subspace"].isin(ENDS)]


def _turned_at_rank(table: pd.DataFrame, p: CausalChecks) -> pd.Series:
    rows = _turned(table)
    return rows[rows["rank"] == judged_rank(p)].groupby("subspace")["value"].mean()


def effects_title(table: pd.DataFrame, p: CausalChecks) -> str:
    """Return the finding of the effects figure."""
    moved = _turned_at_rank(table, p)
    named = ", ".join(f"{name} {moved[name]:.0%}" for name in NAMED if name in moved)
    return f"Exchanging a rank-{judged_rank(p)} subspace turns the answer into the donor's: {named}"


def minimal_size(table: pd.DataFrame, share: pd.DataFrame) -> pd.DataFrame:
    """Return interchange accuracy and shares by rank in the form of a recovery curve, random subspaces as chance."""
    rows = pd.concat([_turned(table), share])[["subspace", "rank", "seed", "metric", "value"]]
    random = rows[rows["subspace"] == CHANCE].groupby(["rank", "metric"])["value"]
    chance = pd.DataFrame({"chance_mean": random.mean(), "chance_upper": random.max()}).reset_index()
    rows = rows[rows["subspace"] != CHANCE].rename(columns={"subspace": "miner"})
    return rows.merge(chance, on=["rank", "metric"])


def curve_title(table: pd.DataFrame, p: CausalChecks) -> str:
    """Return the finding of the minimal-size curve: the smallest rank that turns half of the answers."""
    rows = _turned(table)
    half = rows.pivot_table(index="rank", columns="subspace", values="value") >= 0.5
    ranks = ", ".join(
        f"{name} {half[name].idxmax()}" if half[name].any() else f"{name} more than {max(p.ranks)}"
        for name in NAMED
        if name in half
    )
    return f"Dimensions it takes to turn half of the answers: {ranks}"


def layer_title(layers: pd.DataFrame, p: CausalChecks) -> str:
    """Return the finding of the ceiling by layer."""
    best = layers[layers["subspace"] == CEILING].sort_values("value").iloc[-1]
    return (
        f"A rank-{judged_rank(p)} subspace learnt with labels turns {best['value']:.0%} of the held-out answers at "
        f"its best layer, {best['layer']}"
    )


def place_title(places: pd.DataFrame, p: CausalChecks) -> str:
    """Return the finding of the heat map: which tokens carry the answer at the layer that is studied."""
    layer = p.layer % (places["layer"].max() + 1)
    studied = places[(places["metric"] == "fractional_decrease") & (places["layer"] == layer)]
    means = studied.groupby("arm")["value"].mean().sort_values(ascending=False).head(2)
    tokens = ", ".join(f"'{arm}' {value:.2f}" for arm, value in means.items())
    return f"At layer {layer} the answer hangs on the tokens {tokens} (of 2)"


def isolation_title(table: pd.DataFrame) -> str:
    """Return the finding of the isolation figure."""
    means = table[table["metric"] == "disentangle"].groupby("subspace")["value"].mean().drop("whole")
    return f"Disentangled best by {means.idxmax()} ({means.max():.2f}; all or nothing 0.5): mined {means[MINED]:.2f}"


def verdict_rows(judged: pd.DataFrame, p: CausalChecks) -> pd.DataFrame:
    """Return the verdicts on subspaces in the form of a forest plot."""
    return judged.rename(columns={"subspace": "contrast", "advantage": "difference"}).assign(
        contrast=judged["subspace"] + " - strongest random", metric="interchange_share", delta=p.delta_share,
        n_seeds=p.n_seeds,
    )  # fmt: skip


def verdicts_title(judged: pd.DataFrame) -> str:
    """Return the verdicts on subspaces in one line."""
    groups = judged.groupby("verdict", sort=False)["subspace"].apply(lambda names: ", ".join(names))
    return "; ".join(f"{verdict}: {names}" for verdict, names in groups.items())


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
    moved = _turned_at_rank(measured.table, run.p)
    return (
        f"Exchanged between two prompts, the mined subspace turns {moved[MINED]:.0%} of the answers, a random one "
        f"{moved[CHANCE]:.0%}, a supervised one {moved[CEILING]:.0%}; beside random ones the mined one is "
        f"{judged.set_index('subspace')['verdict'][MINED]}."
    )
