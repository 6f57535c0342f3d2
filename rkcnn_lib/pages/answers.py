"""From recorded verdicts to the answers that the index begins with: what came out, how sure, what would change it."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from rkcnn_lib import figures
from rkcnn_lib.figures.display import checked, in_order
from rkcnn_lib.measure.statistics import MIN_SEEDS_FOR_VERDICT
from rkcnn_lib.pages import blocks
from rkcnn_lib.worlds.toy.planted import INVENTED_MODELS

JUDGED_BY = "04_sae_compare"  # the notebook whose verdicts answer the report's question
PROVISIONAL = {
    "smoke": "A smoke run: sizes of seconds, no conclusions.",
    "quick": "A quick run: small models and few seeds. It shows that everything works; it settles nothing.",
}
RIVALS = {
    "random": "random ones",
    "covariance": "directions that merely lie as the activations do (covariance)",
    "rkcnn_unscored": "the same search without its score (rkcnn_unscored)",
}
MARKS = {"better": "▲", "equivalent": "=", "worse": "▼", "undecided": "?"}  # beside each word: not by colour alone
MANY = 200  # seeds beyond which a forecast says "many"


@dataclass(frozen=True)
class Answer:
    """One hypothesis of one run: its contrasts, the verdict, and what would change that."""

    hypothesis: str
    metric: str
    verdict: str
    contrasts: list[dict[str, Any]]  # recorded: contrast, difference, low, high, delta, n_seeds, contrast_verdict ...
    strongest: dict[str, Any] | None  # the best other start: strongest, value, own, difference, low, high, n_others
    outlook: str  # what would change the verdict, in a sentence
    remark: str  # what the run says its numbers must be read with, or nothing

    @property
    def n_seeds(self) -> int:
        """The smallest number of seeds behind any contrast."""
        return min((_count(row) for row in self.contrasts), default=0)

    @property
    def gated(self) -> bool:
        """Whether every earlier gate had passed."""
        return all(row.get("gated", True) is not False for row in self.contrasts)


def answers(record: dict[str, Any]) -> list[Answer]:
    """Return the answers of one run record, in the order in which it judged.

    Rows without a hypothesis are contrasts that were shown without a verdict, and are left out.
    """
    strongest = {row.get("hypothesis"): row for row in record.get("strongest") or []}
    contrasts: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("verdicts") or []:
        if row.get("hypothesis"):
            contrasts.setdefault(row["hypothesis"], []).append(row)
    return [
        Answer(name, str(rows[0].get("metric")), str(rows[0].get("verdict") or "no verdict"), rows,
               strongest.get(name), outlook(rows), str((record.get("remarks") or {}).get(name, "")))
        for name, rows in contrasts.items()
    ]  # fmt: skip


def reading(row: dict[str, Any]) -> str:
    """Return what a contrast's interval says in words, which "not supported" alone does not."""
    if not _finite(row):
        return "undecided"
    low, high, delta = row["low"], row["high"], row["delta"]
    within = -delta <= low and high <= delta
    size = "by less than the margin" if within else "undecided by how much"
    words = [
        (low > delta, "better"),
        (high < -delta, "worse"),
        (low > 0, f"better, {size}"),
        (high < 0, f"worse, {size}"),
        (within, "no difference worth having"),
        (high < delta, "not better"),
    ]
    return next((word for holds, word in words if holds), "undecided")


def outlook(rows: list[dict[str, Any]]) -> str:
    """Return what would change the verdict on the hypothesis behind these contrasts."""
    if any(_count(row) < MIN_SEEDS_FOR_VERDICT for row in rows):
        return f"Below {MIN_SEEDS_FOR_VERDICT} seeds nothing is decided: more seeds."
    if any(not _finite(row) for row in rows):
        return "An interval is missing, so nothing can be said."
    if rows[0].get("verdict") == "supported":
        return "It would fall if either interval reached down to its margin."
    if cramped := _cramped(rows):
        rivals, room = _rivals(cramped), max(row["room"] for row in cramped)
        return f"It could not be supported here: {rivals} left room for {room:.2g} only, less than the margin."
    if worse := [row for row in rows if reading(row) == "worse"]:
        return (
            f"Against {_rivals(worse)} it is worse by more than the margin. Another model, layer, size or longer "
            "training may differ."
        )
    if short := [row for row in rows if row["high"] < row["delta"]]:
        return (
            f"More seeds hardly would: the interval against {_rivals(short)} ends short of the margin. Another model, "
            "layer, size or longer training may."
        )
    undecided = [row for row in rows if row["low"] <= row["delta"]]
    needed = max(_seeds_needed(row) for row in undecided)
    towards = "supported" if all(row["difference"] > row["delta"] for row in undecided) else "not supported"
    seeds = "many more seeds" if needed > MANY else f"about {needed} seeds"
    return f"The margin lies inside an interval: {seeds} would settle it as {towards}, if the mean stayed where it is."


def _cramped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contrasts whose rival left less room than the margin: no start could have been supported there."""
    return [row for row in rows if isinstance(row.get("room"), float) and row["room"] <= row["delta"]]


def _rivals(rows: list[dict[str, Any]]) -> str:
    return " and ".join(figures.rival(row.get("contrast")) for row in rows)


def _count(row: dict[str, Any]) -> int:
    """A contrast's number of seeds; a record that gives none, or text, counts as none."""
    n = row.get("n_seeds")
    return int(n) if isinstance(n, int | float) and math.isfinite(n) else 0


def _finite(row: dict[str, Any]) -> bool:
    values = [row.get(name) for name in ("difference", "low", "high", "delta")]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _seeds_needed(row: dict[str, Any]) -> int:
    """How many seeds would bring the margin outside the interval: its width shrinks with their root."""
    half, distance = (row["high"] - row["low"]) / 2, abs(row["difference"] - row["delta"])
    return MANY + 1 if distance * math.sqrt(MANY) <= half else math.ceil(row["n_seeds"] * (half / distance) ** 2)


def in_one_sentence(record: dict[str, Any] | None) -> str:
    """Return the answer to the report's question from its deciding run (04's run.json; None where that was not run).

    A record may hold ``withdrawn``, why what it says cannot be kept: then that is the answer.
    """
    if (record or {}).get("withdrawn"):
        return f"Withdrawn: {record['withdrawn']}"
    judged = answers(record or {})
    if not judged:
        return f"Not answered yet: {JUDGED_BY} has given no verdict."
    counts, n = Counter(answer.verdict for answer in judged), len(judged)
    if counts["inconclusive"] == n:
        result = f"undecided: all {n} hypotheses are inconclusive"
    elif counts["supported"] == n:
        result = f"yes: all {n} hypotheses are supported"
    else:
        others = sorted(set(counts) - {"supported"}, reverse=True)
        each = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("supported", *others))
        result = f"{'in part' if counts['supported'] else 'no'}: of {n} hypotheses {each}"
        cramped = sum(answer.verdict == "not supported" and bool(_cramped(answer.contrasts)) for answer in judged)
        result += f"; {cramped} of those not supported had no room to be" if cramped else ""
    ungated = "" if all(answer.gated for answer in judged) else ", ungated"
    small = profile(record) in PROVISIONAL
    sentence = f"In this {profile(record)} run, which settles nothing, {result}" if small else result.capitalize()
    by_rival = [
        f"By more than the margin mined starts are better than {RIVALS.get(rival, rival)} in "
        f"{readings.count('better')} of {len(readings)}, worse in {readings.count('worse')}."
        for rival, readings in _readings([row for answer in judged for row in answer.contrasts]).items()
    ]
    seeds = min(answer.n_seeds for answer in judged)
    return " ".join([f"{sentence} ({place(record)}, {seeds} seeds{ungated}).", *by_rival])


def _readings(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What the contrasts with each start that was declared a rival say in words."""
    readings: dict[str, list[str]] = {}
    for row in rows:
        readings.setdefault(figures.rival(row.get("contrast")), []).append(reading(row))
    return readings


def profile(record: dict[str, Any]) -> str:
    """Return a run's profile without its variant."""
    return str(record.get("profile") or "unknown").split("--")[0]


def place(record: dict[str, Any]) -> str:
    """Return on what a run worked: its model, and the layer and hook where it has them."""
    parameters = record.get("parameters") or {}
    name = str((record.get("model") or {}).get("name") or parameters.get("model") or "unknown model")
    if "layer" not in parameters or name in INVENTED_MODELS:
        return name
    return f"{name}, layer {parameters['layer']} {parameters.get('hook', '')}".rstrip()


def setting(record: dict[str, Any]) -> str:
    """Return what was trained and on how much, in a sentence; nothing where the record does not say."""
    p = record.get("parameters") or {}
    numbers = [p.get(name) for name in ("expansion", "k", "steps", "batch_size", "n_tokens", "fraction_mined")]
    if "architecture" not in p or not all(isinstance(value, int | float) for value in [*numbers, p.get("l1") or 0.0]):
        return ""
    sparsity = f"penalty {p['l1']:g}" if p.get("l1") is not None else f"{p['k']} active"
    return (
        f"Each SAE: {p['architecture']}, {p['expansion']:g} latents for each dimension of the activations, {sparsity} "
        f"a token, {p['steps']:,} steps of {p['batch_size']:,} tokens out of {p['n_tokens']:,} captured. Up to "
        f"{p['fraction_mined']:.0%} of a mined start's latents come from mined directions, the rest are random (the "
        "fill). A seed has its own random start, order of training tokens and documents to mine."
    )


def overview(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return a ``figure`` (plotly's JSON) of a run's contrasts in multiples of their margins, and its ``title``."""
    judged = answers(record)
    rows = [
        {"n_seeds": "n/a", "contrast_verdict": answer.verdict} | row | {"reading": reading(row)}
        for answer in judged for row in answer.contrasts if _finite(row) and row["delta"] > 0
    ]  # fmt: skip
    if not rows:
        return None
    better = ", ".join(
        f"{rival} in {readings.count('better') or 'none'}" for rival, readings in _readings(rows).items()
    )
    title = f"Better by more than the margin: than {better} of {len(judged)} measures"
    return {"figure": json.loads(figures.verdict_overview(pd.DataFrame(rows)).to_json()), "title": title}


def verdict_grid(table: pd.DataFrame) -> Markup:
    """Return verdicts at a glance as an HTML table: a row a hypothesis, a column a measure, a word in each cell.

    Columns hypothesis, measure, word (better, equivalent, worse, undecided), difference, low, high, delta and n_seeds;
    the interval, the margin and the seeds are each cell's hover. All text is escaped.

    Raises
    ------
    ValueError
        If the table is empty, lacks a column, or judges a hypothesis twice on a measure.
    """
    columns = ["hypothesis", "measure", "word", "difference", "low", "high", "delta", "n_seeds"]
    table = checked(table, columns, [], "verdict_grid")
    if table.duplicated(["hypothesis", "measure"]).any():
        raise ValueError("verdict_grid: a hypothesis is judged twice on one measure")
    cells = {(row["hypothesis"], row["measure"]): _grid_cell(row) for row in table.to_dict("records")}
    measures = in_order(table["measure"])
    rows = [(one, [cells.get((one, measure)) for measure in measures]) for one in in_order(table["hypothesis"])]
    return blocks().verdict_grid([figures.METRIC_LABELS.get(measure, measure) for measure in measures], rows)


def _grid_cell(row: dict[str, Any]) -> dict[str, str]:
    word, known = str(row["word"]), _finite(row)
    signed = {name: f"{row[name]:+.3g}".replace("-", "−") for name in ("difference", "low", "high")} if known else {}
    interval = f"{signed['difference']} ({signed['low']} to {signed['high']})" if known else "no interval"
    return {
        "word": word,
        "mark": MARKS.get(word, "·"),
        "kind": word if word in MARKS else "",
        "difference": signed.get("difference", ""),
        "numbers": f"difference {interval}, margin ±{row['delta']:.3g}, {_count(row)} seeds",
    }
