"""From recorded verdicts to the answers that the index begins with: what came out, how sure, what would change it."""

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rkcnn_lib.measure.statistics import MIN_SEEDS_FOR_VERDICT, verdict_word
from rkcnn_lib.pages import blocks
from rkcnn_lib.studies.verdicts import in_short
from rkcnn_lib.vocabulary import in_words, rival_of
from rkcnn_lib.worlds.toy import INVENTED_MODELS

JUDGED_BY = "04_sae_compare"  # the notebook whose verdicts answer the report's question
PROVISIONAL = {
    "smoke": "A smoke run: sizes of seconds, no conclusions.",
    "quick": "A quick run: small models and few seeds. It shows that everything works; it settles nothing.",
}
WORDS = ("better", "equivalent", "worse", "undecided")
MARKS = dict(zip(WORDS, "▲=▼?", strict=True))  # beside each word: not by colour alone
MANY = 200  # seeds beyond which a forecast says "many"


@dataclass(frozen=True)
class Answer:
    """One hypothesis of one run, on every measure that it was judged on."""

    hypothesis: str
    rows: list[dict[str, Any]]  # recorded: contrast, metric, difference, low, high, delta, n_seeds ...

    @property
    def n_seeds(self) -> int:
        """The seeds of the run; a measure that some seeds lack has fewer, and its own row says so."""
        return max(map(_count, self.rows))

    @property
    def gated(self) -> bool:
        """Whether every earlier gate had passed."""
        return all(row.get("gated", True) is not False for row in self.rows)

    @property
    def sentence(self) -> str:
        """Which measures fell which way: "better on dead latents; equivalent on explained variance"."""
        found = {name: [row for row in self.rows if word(row) == name] for name in WORDS}
        if len(self.rows) > 1 and self.rows in found.values():
            return f"{word(self.rows[0])} on all {len(self.rows)} measures"
        return "; ".join(f"{name} on {', '.join(_measures(on))}" for name, on in found.items() if on)

    @property
    def outlook(self) -> str:
        """What would change the verdicts, in a sentence or two."""
        if self.n_seeds < MIN_SEEDS_FOR_VERDICT:
            return f"Below {MIN_SEEDS_FOR_VERDICT} seeds nothing is decided: more seeds."
        if not all(map(_finite, self.rows)):
            return "An interval is missing, so nothing can be said."
        cramped = [row for row in self.rows if isinstance(row.get("room"), float) and row["room"] <= row["delta"]]
        on = " and ".join(_measures(cramped))
        tight = f" No start could be better on {on}: the rival is within the margin of perfect." if cramped else ""
        undecided = [row for row in self.rows if word(row) == "undecided"]
        if not undecided:
            return f"More seeds would not; another model, layer, size or length of training may.{tight}"
        needed = max(map(_seeds_needed, undecided))
        seeds = "Many more seeds" if needed > MANY else f"About {needed} seeds"
        return f"{seeds} would decide what is undecided, if means stayed as they are.{tight}"


def profile_of(record: dict[str, Any]) -> tuple[str, str | None]:
    """Return a run's profile, and its variant, which a profile may name after two dashes."""
    profile, _, variant = str(record.get("profile") or "").partition("--")
    return profile or "unknown", record.get("variant") or variant or None


def answers(record: dict[str, Any]) -> list[Answer]:
    """Return the answers of one run record, in its order; contrasts without a hypothesis had no verdict to give."""
    judged: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("verdicts") or []:
        if row.get("hypothesis"):
            judged.setdefault(row["hypothesis"], []).append(row)
    return [Answer(name, rows) for name, rows in judged.items()]


def word(row: dict[str, Any]) -> str:
    """Return the verdict of one recorded difference, by its interval, its margin and its seeds."""
    return verdict_word(row["low"], row["high"], row["delta"], _count(row)) if _finite(row) else "undecided"


def _measures(rows: list[dict[str, Any]]) -> list[str]:
    """Return the measures of recorded rows in words, each once."""
    return list(dict.fromkeys(in_words(str(row.get("metric"))) for row in rows))


def _count(row: dict[str, Any]) -> int:
    """A row's number of seeds; a record that gives none, or text, counts as none."""
    n = row.get("n_seeds")
    return int(n) if isinstance(n, int | float) and math.isfinite(n) else 0


def _finite(row: dict[str, Any]) -> bool:
    values = [row.get(name) for name in ("difference", "low", "high", "delta")]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _seeds_needed(row: dict[str, Any]) -> int:
    """How many seeds would bring the nearer margin outside the interval: its width shrinks with their root."""
    half, distance = (row["high"] - row["low"]) / 2, abs(abs(row["difference"]) - row["delta"])
    return MANY + 1 if distance * math.sqrt(MANY) <= half else math.ceil(row["n_seeds"] * (half / distance) ** 2)


def in_one_sentence(record: dict[str, Any]) -> str:
    """Return the answer to the report's question from its deciding run, 04 (empty where that was not run).

    A record may hold ``withdrawn``, why what it says cannot be kept: then that is the answer.
    """
    if record.get("withdrawn"):
        return f"Withdrawn: {record['withdrawn']}"
    judged = answers(record)
    if not judged:
        return f"Not answered yet: {JUDGED_BY} has given no verdict."
    seeds = max(answer.n_seeds for answer in judged)
    ungated = "" if all(answer.gated for answer in judged) else ", ungated"
    profile, _ = profile_of(record)
    small = f"This {profile} run settles nothing. " if profile in PROVISIONAL else ""
    rows = [row for answer in judged for row in answer.rows]
    told = [(str(row.get("metric")), rival_of(row.get("contrast")), word(row)) for row in rows]
    return f"{small}On {place(record)} ({seeds} seeds{ungated}). {in_short(told)}"


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
    numbers = [p.get(name) for name in ("expansion", "k", "steps", "batch_size", "n_tokens")]
    if "architecture" not in p or not all(isinstance(value, int | float) for value in [*numbers, p.get("l1") or 0.0]):
        return ""
    sparsity = f"penalty {p['l1']:g}" if p.get("l1") is not None else f"{p['k']} active"
    return (
        f"Each SAE: {p['architecture']}, {p['expansion']:g} latents for each dimension of the activations, {sparsity} "
        f"a token, {p['steps']:,} steps of {p['batch_size']:,} tokens out of {p['n_tokens']:,} captured. A seed has "
        "its own random start, order of training tokens and documents to mine."
    )


def grid_of(record: dict[str, Any]) -> Markup | None:
    """Return a run's verdicts at a glance as an HTML table, its text escaped; None without any.

    A row a hypothesis (where one has several rivals, a row a rival), a column a measure, a word in each cell.
    """
    judged = [(answer.hypothesis, str(row.get("metric")), row) for answer in answers(record) for row in answer.rows]
    if not judged:
        return None
    if len({(hypothesis, measure) for hypothesis, measure, _ in judged}) < len(judged):
        judged = [(f"against {rival_of(row.get('contrast'))}", measure, row) for _, measure, row in judged]
    cells = {(name, measure): _grid_cell(row) for name, measure, row in reversed(judged)}  # of two the first counts
    measures = list(dict.fromkeys(measure for _, measure, _ in judged))
    names = list(dict.fromkeys(name for name, _, _ in judged))
    rows = [(name, [cells.get((name, measure)) for measure in measures]) for name in names]
    return blocks().verdict_grid(list(map(in_words, measures)), rows)


def _grid_cell(row: dict[str, Any]) -> dict[str, str]:
    """What stands in a cell, and as ``numbers`` on its hover: the interval, the margin and the seeds."""
    said, difference, numbers = word(row), "", "no interval"
    if _finite(row):
        difference, low, high = (f"{row[name]:+.3g}".replace("-", "−") for name in ("difference", "low", "high"))
        numbers = f"difference {difference} ({low} to {high}), margin ±{row['delta']:.3g}"
    told = {"word": said, "mark": MARKS[said], "difference": difference}
    return told | {"numbers": f"{numbers}, {_count(row)} seeds"}
