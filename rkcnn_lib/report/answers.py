"""From recorded verdicts to the answers that the index begins with: what came out, how sure, what would change it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rkcnn_lib.report import figures

JUDGED_BY = "04_sae_compare"  # the notebook whose verdicts answer the report's question
MANY = 200  # seeds beyond which a forecast says "many"


@dataclass(frozen=True)
class Answer:
    """One hypothesis of one run: its contrasts, the verdict, and what would change that.

    Attributes
    ----------
    hypothesis, metric, verdict : str
    contrasts : list of dict
        As the run recorded them: contrast, difference, low, high, delta, n_seeds, contrast_verdict ...
    strongest : dict or None
        The best of the other starts, where the run says: strongest, value, own, difference, low, high, n_others.
    outlook : str
        What would change the verdict, in a sentence.
    """

    hypothesis: str
    metric: str
    verdict: str
    contrasts: list[dict[str, Any]]
    strongest: dict[str, Any] | None
    outlook: str

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
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("verdicts") or []:
        if row.get("hypothesis"):
            found.setdefault(row["hypothesis"], []).append(row)
    return [
        Answer(name, str(rows[0].get("metric")), str(rows[0].get("verdict") or "no verdict"), rows,
               strongest.get(name), outlook(rows))
        for name, rows in found.items()
    ]  # fmt: skip


def outlook(rows: list[dict[str, Any]]) -> str:
    """Return what would change the verdict on the hypothesis behind these contrasts."""
    verdict = rows[0].get("verdict")
    if any(_count(row) < 5 for row in rows):
        return "Below five seeds nothing is decided: more seeds."
    if any(not _finite(row) for row in rows):
        return "An interval is missing, so nothing can be said."
    if verdict == "supported":
        return "It would fall if either interval reached down to its margin."
    short = [row for row in rows if row["high"] < row["delta"]]
    if short:
        worse = [row for row in short if row["high"] < -row["delta"]]
        against = " and ".join(row["contrast"].split(" - ")[-1] for row in worse)
        if worse:
            return f"Against {against} the mined start is worse, by more than the margin. Another model, layer or size may differ."  # noqa: E501
        against = " and ".join(row["contrast"].split(" - ")[-1] for row in short)
        return (
            f"More seeds hardly will: the interval against {against} ends short of the margin. Another model, layer or "
            "size may."
        )
    needed = max(_seeds_needed(row) for row in rows if row["low"] <= row["delta"])
    told = "many more seeds" if needed > MANY else f"about {needed} seeds"
    return f"The margin lies inside an interval: {told} would settle it, if the mean stayed where it is."


def _count(row: dict[str, Any]) -> int:
    """Return a contrast's number of seeds; a record that gives none, or text, counts as none."""
    n = row.get("n_seeds")
    return int(n) if isinstance(n, int | float) and math.isfinite(n) else 0


def _finite(row: dict[str, Any]) -> bool:
    values = [row.get(name) for name in ("difference", "low", "high", "delta")]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _seeds_needed(row: dict[str, Any]) -> int:
    """Return how many seeds would bring the margin outside the interval: its width shrinks with their root."""
    half, distance = (row["high"] - row["low"]) / 2, abs(row["difference"] - row["delta"])
    return MANY + 1 if distance * math.sqrt(MANY) <= half else math.ceil(row["n_seeds"] * (half / distance) ** 2)


def in_one_sentence(record: dict[str, Any] | None, place: str) -> str:
    """Return the answer to the report's question from its deciding run, ``None`` where that was not run.

    Parameters
    ----------
    record : dict or None
        The run.json of 04.
    place : str
        On what it ran, such as "atlas, layer 2 mlp_out".
    """
    found = answers(record or {})
    if not found:
        return f"Not answered yet: {JUDGED_BY} has given no verdict."
    counts = {name: sum(answer.verdict == name for answer in found) for name in ("supported", "inconclusive")}
    told = {
        0: f"No: none of the {len(found)} hypotheses is supported",
        len(found): f"Yes: all {len(found)} hypotheses are supported",
    }.get(counts["supported"], f"In part: {counts['supported']} of {len(found)} hypotheses are supported")
    if not counts["supported"] and counts["inconclusive"] == len(found):
        told = f"Undecided: all {len(found)} hypotheses are inconclusive"
    elif counts["inconclusive"]:
        told += f", {counts['inconclusive']} inconclusive"
    ungated = "" if all(answer.gated for answer in found) else ", ungated"
    told += f" ({place}, {min(answer.n_seeds for answer in found)} seeds{ungated})."
    return " ".join([told, *_by_baseline(found)])


def _by_baseline(found: list[Answer]) -> list[str]:
    """Return for each start that was declared a rival on how many hypotheses the mined one beats it."""
    alone: dict[str, list[str]] = {}
    for answer in found:
        for row in answer.contrasts:
            alone.setdefault(str(row.get("contrast")).split(" - ")[-1], []).append(str(row.get("contrast_verdict")))
    return [
        f"Against {baseline} the mined start is better in {verdicts.count('supported')} of {len(verdicts)}."
        for baseline, verdicts in alone.items()
    ]


def place(record: dict[str, Any]) -> str:
    """Return on what a run worked: its model, and the layer and hook where it has them."""
    parameters = record.get("parameters") or {}
    name = str((record.get("model") or {}).get("name") or parameters.get("model") or "unknown model")
    if "layer" not in parameters or name in ("toy", "planted"):
        return name
    return f"{name}, layer {parameters['layer']} {parameters.get('hook', '')}".rstrip()


def overview(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return a figure (plotly's JSON) of a run's contrasts in multiples of their margins; None without any."""
    rows = [
        {"n_seeds": "n/a", "contrast_verdict": answer.verdict} | row
        for answer in answers(record) for row in answer.contrasts if _finite(row) and row["delta"] > 0
    ]  # fmt: skip
    if not rows:
        return None
    verdicts = ", ".join(f"{answer.hypothesis}: {answer.verdict}" for answer in answers(record))
    return json.loads(figures.verdict_overview(pd.DataFrame(rows), title=verdicts).to_json())
