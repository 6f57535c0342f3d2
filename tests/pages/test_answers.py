"""The index answers what the runs' own verdicts say, says how sure it is, and never promises more."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from rkcnn_lib import figures
from rkcnn_lib.figures.style import METRIC_LABELS
from rkcnn_lib.pages import answers
from rkcnn_lib.pages.render import safe_html
from rkcnn_lib.studies.verdicts import judge, strongest_other


def row(baseline="random", difference=0.0, half=0.002, delta=0.01, verdict="not supported", alone=None, n_seeds=5):
    return {
        "hypothesis": "fewer dead latents", "metric": "dead", "contrast": f"rkcnn - {baseline}",
        "difference": difference, "low": difference - half, "high": difference + half, "delta": delta,
        "verdict": verdict, "contrast_verdict": alone or verdict, "n_seeds": n_seeds, "gated": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (["not supported", "not supported"], "No: of 2 hypotheses 0 supported, 2 not supported"),
        (["not supported", "inconclusive"], "No: of 2 hypotheses 0 supported, 1 not supported, 1 inconclusive"),
        (["inconclusive", "inconclusive"], "Undecided: all 2 hypotheses are inconclusive"),
        (["supported", "inconclusive"], "In part: of 2 hypotheses 1 supported, 1 inconclusive"),
        (["supported"] * 2 + ["not supported"], "In part: of 3 hypotheses 2 supported, 1 not supported"),
        (["supported", "supported"], "Yes: all 2 hypotheses are supported"),
    ],
)
def test_the_sentence_counts_verdicts_as_they_are(verdicts, told):
    rows = [row(verdict=verdict) | {"hypothesis": str(i)} for i, verdict in enumerate(verdicts)]
    record = {"verdicts": rows, "parameters": {"model": "atlas"}}
    assert answers.in_one_sentence(record).startswith(f"{told} (atlas, 5 seeds).")
    quick = answers.in_one_sentence(record | {"profile": "quick--x"})
    assert quick.startswith(f"In this quick run, which settles nothing, {told[0].lower()}{told[1:]} (atlas")


def test_the_sentence_tells_rivals_apart_and_names_ungated_verdicts():
    rows = [row("random", 0.05, alone="supported") | {"gated": False}, row("rkcnn_unscored")]
    told = answers.in_one_sentence({"verdicts": rows})
    assert "5 seeds, ungated" in told
    assert "better than random ones in 1 of 1, worse in 0." in told
    assert "better than the same search without its score (rkcnn_unscored) in 0 of 1, worse in 0." in told


@pytest.mark.parametrize(
    ("difference", "half", "told"),
    [
        (0.02, 0.005, "better"),
        (-0.02, 0.005, "worse"),
        (0.001, 0.005, "no difference worth having"),
        (0.006, 0.003, "better, by less than the margin"),
        (-0.006, 0.003, "worse, by less than the margin"),
        (0.01, 0.005, "better, undecided by how much"),
        (-0.01, 0.005, "worse, undecided by how much"),
        (-0.01, 0.015, "not better"),
        (0.0, 0.05, "undecided"),
        (0.02, float("nan"), "undecided"),
    ],
)
def test_a_contrast_says_in_words_where_its_interval_lies(difference, half, told):
    assert answers.reading(row(difference=difference, half=half)) == told


def test_a_hypothesis_without_room_says_that_it_could_not_be_supported():
    values = {"a": dict.fromkeys(range(5), 0.001), "b": dict(enumerate([0.002, 0.003, 0.002, 0.003, 0.002]))}
    rows = judge("less loss", values, "a", ("b",), metric="delta_ce", delta=0.01, lower_is_better=True, bound=0.0)
    assert rows[0]["room"] == pytest.approx(0.0024) and rows[0]["baseline"] == pytest.approx(0.0024)
    assert "could not be supported here: b left room for 0.0024 only" in answers.outlook(rows)
    told = answers.in_one_sentence({"verdicts": [*rows, row()]})
    assert told.startswith(
        "No: of 2 hypotheses 0 supported, 2 not supported; 1 of those not supported had no room to be ("
    )
    roomy = judge("less loss", values, "a", ("b",), metric="delta_ce", delta=0.002, lower_is_better=True, bound=0.0)
    assert "could not" not in answers.outlook(roomy)


def test_without_a_verdict_there_is_no_answer():
    assert answers.in_one_sentence(None).startswith("Not answered yet")
    assert answers.answers({"verdicts": [row() | {"hypothesis": None}]}) == []
    assert answers.overview({}) is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(n_seeds=3)], "more seeds"),
        ([row(difference=0.05, verdict="supported")], "would fall"),
        ([row(difference=-0.3)], "Against random it is worse"),
        ([row(difference=0.001), row("rkcnn_unscored", 0.05)], "the interval against random ends short"),
        (
            [row(difference=0.008, half=0.004, verdict="inconclusive")],
            "about 20 seeds would settle it as not supported",
        ),
        ([row(difference=0.0101, half=0.05, verdict="inconclusive")], "many more seeds"),
        ([row(half=float("nan"))], "interval is missing"),
    ],
)
def test_what_would_change_a_verdict_follows_from_its_intervals(rows, told):
    assert told in answers.outlook(rows)


def test_the_forecast_of_seeds_is_about_right_where_the_mean_is_known():
    rng = np.random.default_rng(0)
    few, many = (
        {"a": dict(enumerate(rng.normal(0.004, 0.012, n))), "b": dict.fromkeys(range(n), 0.0)} for n in (10, 90)
    )
    before = judge("x", few, "a", ("b",), metric="m", delta=0.01)
    assert before[0]["verdict"] == "inconclusive" and answers._seeds_needed(before[0]) < 90
    assert judge("x", many, "a", ("b",), metric="m", delta=0.01)[0]["verdict"] == "not supported"


def test_what_was_trained_is_told_only_where_the_record_holds_its_numbers():
    p = {"architecture": "topk", "expansion": 4.0, "k": 32, "steps": 4000, "batch_size": 4096, "n_tokens": 10**6}
    whole = {"parameters": p | {"fraction_mined": 0.5, "l1": None}}
    assert answers.setting(whole).startswith(
        "Each SAE: topk, 4 latents for each dimension of the activations, 32 active"
    )
    for name, wrong in [("steps", "many"), ("expansion", None), ("l1", "small")]:
        assert answers.setting({"parameters": whole["parameters"] | {name: wrong}}) == ""
    assert answers.setting({"parameters": p}) == answers.setting({}) == ""


def test_the_overview_shows_every_contrast_in_multiples_of_its_margin():
    rows = [row(difference=0.02), row("rkcnn_unscored", -0.01)]
    shown = answers.overview({"verdicts": rows})
    spec = shown["figure"]
    dots = [trace["x"][0] for trace in spec["data"] if trace.get("mode") == "markers+text"]
    assert dots == pytest.approx([2.0, -1.0])
    assert [trace["text"] for trace in spec["data"] if trace.get("mode") == "markers+text"] == [
        ["better"], ["worse, undecided by how much"]
    ]  # fmt: skip
    assert "than random in 1, rkcnn_unscored in none of 1 measures" in shown["title"]
    with pytest.raises(ValueError, match="margins must be positive"):
        figures.verdict_overview(pd.DataFrame([row(delta=0.0) | {"reading": "better"}]))


def test_one_far_contrast_does_not_squeeze_the_others_of_the_overview():
    rows = [row(difference=-0.44), row("rkcnn_unscored", 0.005), row("kmeans", 0.12)]
    table = pd.DataFrame([one | {"reading": answers.reading(one)} for one in rows])
    fig = figures.verdict_overview(table)
    low, high = fig.layout.xaxis.range
    assert -10 <= low < 0 < 1 < high <= 10
    notes = {note.text: (note.x, note.y) for note in fig.layout.annotations}
    assert notes == {"◀ worse, by 44 margins": (low, 0), "better, by 12 margins ▶": (high, 2)}
    dots = [trace.x[0] for trace in fig.data if trace.mode == "markers+text"]
    assert dots == pytest.approx([-44, 0.5, 12])  # the data under the figure stay true


def test_the_strongest_other_start_is_the_best_by_mean_in_either_direction():
    values = {"mined": {0: 0.5, 1: 0.52}, "low": {0: 0.1, 1: 0.12}, "high": {0: 0.9, 1: 0.91}}
    best = strongest_other(values, "mined")
    assert best["strongest"] == "high" and best["difference"] == pytest.approx(-0.395) and best["n_others"] == 2
    assert strongest_other(values, "mined", lower_is_better=True)["strongest"] == "low"
    assert strongest_other({"mined": {0: 1.0}}, "mined") is None


def test_the_best_of_equal_starts_excludes_zero_in_at_most_a_twentieth_of_worlds():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        values = {name: dict(enumerate(rng.normal(size=5))) for name in "mabcdef"}
        found = strongest_other(values, "m")
        wrong += found["high"] < 0 or found["low"] > 0
    assert wrong <= 30  # 20 expected at most; above 30 has probability 0.01


def grid_row(word="better", **changed):
    return {
        "hypothesis": "H1", "measure": "dead", "word": word, "difference": 0.02, "low": 0.01, "high": 0.03,
        "delta": 0.005, "n_seeds": 5,
    } | changed  # fmt: skip


def test_the_grid_of_verdicts_says_each_in_word_mark_and_colour_with_its_numbers_on_hover():
    rows = [grid_row(), grid_row("worse", measure="<i>ev", difference=-0.02, low=-0.03, high=-0.01),
            grid_row("undecided", hypothesis="<b>H2", low=-np.inf, high=np.inf)]  # fmt: skip
    page = BeautifulSoup(str(answers.verdict_grid(pd.DataFrame(rows))), "html.parser")
    assert [th.get_text() for th in page.select("thead th")] == ["Hypothesis", METRIC_LABELS["dead"], "<i>ev"]
    assert [th.get_text() for th in page.select("tbody th")] == ["H1", "<b>H2"] and not page.select("i")
    better, worse, undecided, none = page.select("tbody td")
    assert better["class"] == ["better"] and better.find("b").get_text() == "▲ better"
    assert better["title"] == "difference +0.02 (+0.01 to +0.03), margin ±0.005, 5 seeds"
    assert worse["class"] == ["worse"] and "▼ worse" in worse.get_text() and "−0.02" in worse.get_text()
    assert "no interval" in undecided["title"] and none.get_text() == "not judged"
    assert len(set(answers.MARKS.values())) == len(answers.MARKS) == 4


def test_the_grid_of_verdicts_stays_whole_where_a_notebook_s_output_is_made_safe():
    grid = str(answers.verdict_grid(pd.DataFrame([grid_row()])))
    cell = BeautifulSoup(safe_html(grid), "html.parser").select_one("table.verdict-grid td")
    assert cell["class"] == ["better"] and cell["title"].startswith("difference")


def test_the_grid_of_verdicts_refuses_nothing_half_a_table_and_two_verdicts_on_one_question():
    with pytest.raises(ValueError, match="no rows"):
        answers.verdict_grid(pd.DataFrame([grid_row()]).iloc[:0])
    with pytest.raises(ValueError, match="lacks"):
        answers.verdict_grid(pd.DataFrame([{"hypothesis": "H1"}]))
    with pytest.raises(ValueError, match="twice"):
        answers.verdict_grid(pd.DataFrame([grid_row(), grid_row("worse")]))
