"""From numbers per arm and seed to the verdict of each hypothesis on each measure, by the one rule of the report."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.measure.statistics import paired_interval, verdict_table, verdict_word
from rkcnn_lib.vocabulary import HYPOTHESES, MEASURES, MINED, in_words

Values = dict[str, dict[int, float]]  # {arm: {seed: value}}


@dataclass(frozen=True)
class Claim:
    """That an arm beats a rival on one measure."""

    hypothesis: str
    arm: str
    rival: str
    metric: str
    delta: float  # the margin that an advantage must exceed
    lower_is_better: bool = False
    bound: float | None = None
    """What no arm can surpass: where a rival leaves less room than the margin, nothing could be better there."""

    @property
    def contrast(self) -> str:
        return f"{self.arm} - {self.rival}"

    @property
    def measure(self) -> str:
        """What tells the claims of one hypothesis apart."""
        return f"{self.metric}, {self.contrast}"

    @property
    def sign(self) -> int:
        """What turns a difference so that positive is better."""
        return -1 if self.lower_is_better else 1


def means(table: pd.DataFrame, metric: str, by: str | list[str] = "arm") -> pd.Series:
    """Return the mean value of one metric, by arm or what else ``by`` names."""
    return table[table["metric"] == metric].groupby(by)["value"].mean()


def listed(values: Mapping[str, float] | pd.Series, written: str) -> str:
    """Return values with their names before them in one line, each written in a format such as ".2f"."""
    return ", ".join(f"{name} {value:{written}}" for name, value in values.items())


def by_arm(metrics: pd.DataFrame, metric: str) -> Values:
    """Return one metric as {arm: {seed: value}}."""
    rows = metrics[metrics["metric"] == metric]
    return {arm: dict(zip(g["seed"], g["value"], strict=True)) for arm, g in rows.groupby("arm")}


def claims(metrics: pd.DataFrame, margins: Any, where: str = "") -> list[Claim]:
    """Return the declared hypotheses, their names ended by ``where``, on every measure that was taken of both arms."""
    there = set(map(tuple, metrics[["metric", "arm"]].drop_duplicates().to_numpy()))
    return [
        Claim(f"{name}: {claim}{where}", MINED, rival, metric, getattr(margins, measure.margin),
              measure.lower_is_better, measure.bound)
        for name, (claim, rival) in HYPOTHESES.items()
        for metric, measure in MEASURES.items()
        if {(metric, MINED), (metric, rival)} <= there and hasattr(margins, measure.margin)
    ]  # fmt: skip


def judge(declared: list[Claim], values: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Return a row a claim: the difference, paired by seed, its interval, and the verdict by the report's one rule.

    Claims of a hypothesis are adjusted together; ``values`` are {metric: {arm: {seed: value}}}. A row has hypothesis,
    contrast, metric, difference (positive: the arm is better), low, high, p, n_seeds, delta, verdict, own and baseline
    (means), room (how much better than the rival an arm can be; None where nothing bounds it).
    """
    if not declared:
        return []
    differences = pd.DataFrame([
        {"hypothesis": claim.hypothesis, "measure": claim.measure, "seed": seed,
         "difference": (values[claim.metric][claim.arm][seed] - rival) * claim.sign}
        for claim in declared
        for seed, rival in values[claim.metric][claim.rival].items() if seed in values[claim.metric][claim.arm]
    ])  # fmt: skip
    table = verdict_table(differences, {claim.measure: claim.delta for claim in declared})
    table, rows = table.set_index(["hypothesis", "measure"]), []
    for claim in declared:
        judged = table.loc[(claim.hypothesis, claim.measure)]
        own, baseline = (_mean(values[claim.metric][arm]) for arm in (claim.arm, claim.rival))
        rows.append({
            "hypothesis": claim.hypothesis, "contrast": claim.contrast, "metric": claim.metric,
            **{name: float(judged[name]) for name in ("difference", "low", "high", "p", "delta")},
            "n_seeds": int(judged["n_seeds"]), "verdict": judged["word"], "own": own, "baseline": baseline,
            "room": None if claim.bound is None else abs(claim.bound - baseline),
        })  # fmt: skip
    return rows


def judge_arms(metrics: pd.DataFrame, margins: Any, where: str = "") -> list[dict[str, Any]]:
    """Judge the declared hypotheses on tidy ``metrics`` (arm, seed, metric, value); see `claims` and `judge`."""
    declared = claims(metrics, margins, where)
    return judge(declared, {metric: by_arm(metrics, metric) for metric in {claim.metric for claim in declared}})


def widened(judged: list[dict[str, Any]], metric: str, over: pd.DataFrame) -> list[dict[str, Any]]:
    """Return judged rows, those of ``metric`` with intervals at least as wide as ``over``'s (contrast, low, high)."""
    rows = []
    for row in judged:
        other = over[over["contrast"] == row["contrast"]] if row["metric"] == metric else over[:0]
        low, high = min([row["low"], *other["low"]]), max([row["high"], *other["high"]])
        word = verdict_word(low, high, row["delta"], row["n_seeds"])
        rows.append(row | {"low": low, "high": high, "verdict": word})  # p stays that over seeds
    return rows


def _mean(by_seed: dict[int, float]) -> float:
    return float(np.mean(list(by_seed.values())))


def strongest_other(values: Values, arm: str, *, lower_is_better: bool = False) -> dict[str, Any]:
    """Return which other arm, of one or more, is best by its mean, and how ``arm`` stands against it.

    The best of several was not declared beforehand, so its interval holds for all of them at once: the paired-t
    interval at Bonferroni's level for their number. ``difference`` is positive where ``arm`` is better.
    """
    others = [name for name in values if name != arm]
    sign, mean = -1 if lower_is_better else 1, {name: _mean(of_seed) for name, of_seed in values.items()}
    best = max(others, key=lambda name: sign * mean[name])
    seeds = sorted(set(values[arm]) & set(values[best]))
    differences = np.array([values[arm][s] - values[best][s] for s in seeds]) * sign
    difference, low, high, _ = paired_interval(differences, level=1 - 0.05 / len(others))
    return {
        "strongest": best, "value": mean[best], "own": mean[arm], "difference": difference, "low": low, "high": high,
        "n_others": len(others), "n_seeds": len(seeds),
    }  # fmt: skip


def strongest_others(metrics: pd.DataFrame, p: Any) -> pd.DataFrame:
    """Return for each measure the best of the other starts and the mined arm's difference from it, no verdict."""
    starts = metrics[metrics["arm"].isin(p.arms)]
    values = {metric: by_arm(starts, metric) for metric in MEASURES}
    return pd.DataFrame([
        {"metric": metric, **strongest_other(of_arm, MINED, lower_is_better=MEASURES[metric].lower_is_better)}
        for metric, of_arm in values.items() if MINED in of_arm and len(of_arm) > 1
    ])  # fmt: skip


EXACT_SEEDS = 11  # up to so many seeds all patterns of signs are tried; beyond, as many at random


def sign_flips(differences: pd.DataFrame) -> np.ndarray:
    """Return what the means of paired differences (n_rows, n_seeds) are when coins turn the seeds round.

    A seed's sign is flipped in all rows together, which keeps what the rows (layers, settings) of a seed share. The
    result is (n_patterns, n_rows), the first pattern the one observed.
    """
    d = differences.to_numpy(float)
    n = d.shape[1]
    if n <= EXACT_SEEDS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**EXACT_SEEDS, n))
        signs[0] = 1.0
    return signs @ d.T / n


def best_of(differences: pd.DataFrame) -> dict[str, Any]:
    """Return the best row's mean beside what the best of as many rows gives when coins turn the seeds round.

    Given are best (the row's label), value, chance_mean, chance_upper (95 % point of the best under `sign_flips`) and
    p, the share of patterns whose best is at least as good, never below 2 ** -n_seeds.
    """
    flipped, mean = sign_flips(differences).max(axis=1), differences.mean(axis=1)
    value = float(mean.max())
    return {
        "best": mean.idxmax(), "value": value, "chance_mean": float(flipped.mean()),
        "chance_upper": float(np.quantile(flipped, 0.95, method="higher")),
        "p": float((flipped >= value - 1e-12).mean()),
    }  # fmt: skip


def seed_differences(metrics: pd.DataFrame, p: Any, rows: list[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield metric, contrast and differences (positive: better) of each claim: a row a combination, a column a seed."""
    for claim in claims(metrics, p):
        found = metrics[metrics["metric"] == claim.metric]
        table = found.pivot_table(index=rows, columns=["arm", "seed"], values="value")
        difference = (table[claim.arm] - table[claim.rival]).dropna()  # left out where a seed lacks an arm
        if len(difference):
            yield claim.metric, claim.contrast, difference * claim.sign


NOTHING = "Nothing about variance or dead latents is decided."
# The measures that an answer tells, and how: where mined starts are better, equivalent, worse.
MORE = ("more variance than", "as much variance as", "less variance than")
LEAD = (
    ("frozen_ev", "Before training mined directions explain", MORE),
    ("explained_variance", "After training SAEs from mined directions explain", MORE),
    ("recovery_rate", "They hold", ("more of the truth than", "as much of the truth as", "less of the truth than")),
    ("dead", "They leave", ("fewer latents dead than", "as many latents dead as", "more latents dead than")),
)


def in_short(judged: Iterable[tuple[str, str, str]]) -> str:
    """Return what came out, before training, after it, and of what dies; ``judged`` are (metric, rival, verdict)."""
    judged, told = list(judged), []
    for metric, verb, phrases in LEAD:
        decided = zip(("better", "equivalent", "worse"), phrases, strict=True)
        rivals = {how: [r for name, r, verdict in judged if (name, verdict) == (metric, word)] for word, how in decided}
        parts = [f"{how} {', '.join(names)}" for how, names in rivals.items() if names]
        told += [f"{verb} {', '.join(parts)}."] if parts else []
    return " ".join([*told, "The table has the rest."] if told else [NOTHING])


def verdict_title(table: pd.DataFrame) -> str:
    parts = []
    for hypothesis, rows in table.groupby("hypothesis", sort=False):
        by_word = rows.groupby("verdict", sort=False)["metric"]
        words = [f"{word} on {', '.join(map(in_words, names))}" for word, names in by_word]
        if len(words) == 1 < len(rows):
            words = [f"{rows['verdict'].iloc[0]} on all {len(rows)} measures"]
        parts.append(f"{hypothesis.split(':')[0]} {'; '.join(words)}")
    return ". ".join(parts)
