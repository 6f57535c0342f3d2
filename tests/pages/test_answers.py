"""The index answers what the runs' own verdicts say, says how sure it is, and never promises more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bs4 import BeautifulSoup

from rkcnn_lib.pages import answers
from rkcnn_lib.pages.render import safe_html
from rkcnn_lib.studies.verdicts import Claim, judge, strongest_other


def row(rival="random", difference=0.0, half=0.002, delta=0.01, metric="dead", n_seeds=5, hypothesis="H1: it helps"):
    return {
        "hypothesis": hypothesis, "metric": metric, "contrast": f"rkcnn - {rival}", "difference": difference,
        "low": difference - half, "high": difference + half, "delta": delta, "n_seeds": n_seeds, "gated": True,
    }  # fmt: skip


BETTER, WORSE, EQUIVALENT, OPEN = (
    {"difference": 0.05}, {"difference": -0.05}, {"difference": 0.001}, {"difference": 0.01, "half": 0.005},
)  # fmt: skip


def test_the_answer_says_what_mined_starts_beat_equal_and_lose_to():
    rows = [
        row(**BETTER), row(**EQUIVALENT, metric="explained_variance"), row(**OPEN, metric="delta_ce"),
        row("covariance", **WORSE, hypothesis="H1c: x"),
        row("covariance", **BETTER, metric="explained_variance", hypothesis="H1c: x"),
    ]  # fmt: skip
    told = answers.in_one_sentence({"verdicts": rows, "parameters": {"model": "atlas"}})
    assert told == (
        "On atlas (5 seeds). After training SAEs from mined directions explain more variance than covariance, as much "
        "variance as random. They leave fewer latents dead than random, more latents dead than covariance. The table "
        "has the rest."
    )
    nothing = answers.in_one_sentence({"verdicts": [row(**OPEN), row(**EQUIVALENT, metric="delta_ce")]})
    assert nothing.endswith("Nothing about variance or dead latents is decided.")
    quick = answers.in_one_sentence({"verdicts": rows, "profile": "quick--x"})
    assert quick.startswith("This quick run settles nothing. On unknown model")
    assert "5 seeds, ungated" in answers.in_one_sentence({"verdicts": [row() | {"gated": False}]})


def test_each_hypothesis_names_the_measures_that_fell_each_way():
    rows = [row(**BETTER), row(**WORSE, metric="explained_variance"), row(**OPEN, metric="delta_ce")]
    (answer,) = answers.answers({"verdicts": rows})
    assert answer.sentence == ("better on dead latents; worse on explained variance; undecided on loss when spliced in")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (BETTER, "better"),
        (WORSE, "worse"),
        (EQUIVALENT, "equivalent"),
        (OPEN, "undecided"),
        (BETTER | {"n_seeds": 4}, "undecided"),
        (BETTER | {"half": float("nan")}, "undecided"),
    ],
)
def test_the_word_follows_from_the_interval_whatever_was_recorded(given, told):
    assert answers.word(row(**given) | {"verdict": "supported"}) == told


def test_a_measure_without_room_says_that_nothing_could_be_better_there():
    claim = Claim("H", "a", "b", "delta_ce", 0.01, lower_is_better=True, bound=0.0)
    values = {"a": dict.fromkeys(range(5), 0.001), "b": dict(enumerate([0.002, 0.003, 0.002, 0.003, 0.002]))}
    rows = judge([claim], {"delta_ce": values})
    assert rows[0]["room"] == pytest.approx(0.0024) and rows[0]["baseline"] == pytest.approx(0.0024)
    assert "No start could be better on loss when spliced in" in answers.Answer("H", rows).outlook
    wider = judge([replace(claim, delta=0.002)], {"delta_ce": values})
    assert "No start" not in answers.Answer("H", wider).outlook


def test_without_a_verdict_there_is_no_answer():
    assert answers.in_one_sentence({}).startswith("Not answered yet")
    assert answers.answers({"verdicts": [row() | {"hypothesis": None}]}) == []
    assert answers.grid_of({}) is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(n_seeds=3)], "more seeds"),
        ([row(**BETTER)], "More seeds would not"),
        ([row(**OPEN | {"difference": 0.008, "half": 0.004})], "About 20 seeds would decide"),
        ([row(**OPEN | {"difference": 0.0101, "half": 0.05})], "Many more seeds"),
        ([row(half=float("nan"))], "interval is missing"),
    ],
)
def test_what_would_change_a_verdict_follows_from_its_intervals(rows, told):
    assert told in answers.Answer("H", rows).outlook


def test_the_forecast_of_seeds_is_about_right_where_the_mean_is_known():
    rng = np.random.default_rng(0)
    few, many = (
        {"a": dict(enumerate(rng.normal(0.004, 0.012, n))), "b": dict.fromkeys(range(n), 0.0)} for n in (10, 90)
    )
    claim = Claim("x", "a", "b", "m", 0.01)
    (before,), (after,) = judge([claim], {"m": few}), judge([claim], {"m": many})
    assert before["verdict"] == "undecided" and answers._seeds_needed(before) < 90
    assert after["verdict"] == "equivalent"


def test_what_was_trained_is_told_only_where_the_record_holds_its_numbers():
    p = {"architecture": "topk", "expansion": 4.0, "k": 32, "steps": 4000, "batch_size": 4096, "n_tokens": 10**6}
    whole = {"parameters": p | {"l1": None}}
    assert answers.setting(whole).startswith(
        "Each SAE: topk, 4 latents for each dimension of the activations, 32 active"
    )
    for name, wrong in [("steps", "many"), ("expansion", None), ("l1", "small")]:
        assert answers.setting({"parameters": whole["parameters"] | {name: wrong}}) == ""
    assert answers.setting({}) == ""


def test_the_grid_of_a_run_has_a_row_a_hypothesis_or_where_that_has_several_a_row_a_rival():
    rows = [row(**BETTER), row("covariance", **WORSE, hypothesis="H1c: x"), row(**OPEN, metric="delta_ce")]
    page = BeautifulSoup(str(answers.grid_of({"verdicts": rows})), "html.parser")
    assert [th.get_text() for th in page.select("tbody th")] == ["H1: it helps", "H1c: x"]
    assert [td.get_text().split()[1] for td in page.select("tbody td")] == ["better", "undecided", "worse", "judged"]
    older = BeautifulSoup(str(answers.grid_of({"verdicts": [row(), row("covariance")]})), "html.parser")
    assert [th.get_text() for th in older.select("tbody th")] == ["against random", "against covariance"]


def test_the_strongest_other_start_is_the_best_by_mean_in_either_direction():
    values = {"mined": {0: 0.5, 1: 0.52}, "low": {0: 0.1, 1: 0.12}, "high": {0: 0.9, 1: 0.91}}
    best = strongest_other(values, "mined")
    assert best["strongest"] == "high" and best["difference"] == pytest.approx(-0.395) and best["n_others"] == 2
    assert strongest_other(values, "mined", lower_is_better=True)["strongest"] == "low"


def test_the_best_of_equal_starts_excludes_zero_in_at_most_a_twentieth_of_worlds():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        values = {name: dict(enumerate(rng.normal(size=5))) for name in "mabcdef"}
        found = strongest_other(values, "m")
        wrong += found["high"] < 0 or found["low"] > 0
    assert wrong <= 30  # 20 expected at most; above 30 has probability 0.01


def test_the_grid_of_verdicts_says_each_in_word_mark_and_colour_with_its_numbers_on_hover():
    rows = [row(difference=0.05, delta=0.005), row(**WORSE, metric="<i>ev"), row(half=np.inf, hypothesis="<b>H2")]
    page = BeautifulSoup(str(answers.grid_of({"verdicts": rows})), "html.parser")
    assert [th.get_text() for th in page.select("thead th")] == ["Hypothesis", "dead latents", "<i>ev"]
    assert [th.get_text() for th in page.select("tbody th")] == ["H1: it helps", "<b>H2"] and not page.select("i")
    better, worse, undecided, none = page.select("tbody td")
    assert better["class"] == ["better"] and better.find("b").get_text() == "▲ better"
    assert better["title"] == "difference +0.05 (+0.048 to +0.052), margin ±0.005, 5 seeds"
    assert worse["class"] == ["worse"] and "▼ worse" in worse.get_text() and "−0.05" in worse.get_text()
    assert "no interval" in undecided["title"] and none.get_text() == "not judged"
    assert len(set(answers.MARKS.values())) == len(answers.MARKS) == 4


def test_the_grid_of_verdicts_stays_whole_where_a_notebook_s_output_is_made_safe():
    grid = str(answers.grid_of({"verdicts": [row(**BETTER)]}))
    cell = BeautifulSoup(safe_html(grid, []), "html.parser").select_one("table.verdict-grid td")
    assert cell["class"] == ["better"] and cell["title"].startswith("difference")
