"""Gates of earlier notebooks, looked up when a notebook starts and again when pages are made."""

from pathlib import Path

import pytest

from rkcnn_lib.files import write_json
from rkcnn_lib.pages.site import build_site
from rkcnn_lib.runs.gates import earlier_gates, gates_since, next_number
from rkcnn_lib.runs.run import finished
from tests.pages.pages import VERDICT, read, write_run

UNGATED = {
    "notebook": "04_sae_compare", "profile": "full", "parameters": {"model": "atlas"}, "verdicts": [VERDICT],
    "earlier_gates": {"01_toy_superposition": "NOT RUN", "03_gpt2_cache": "PASS"},
}  # fmt: skip

DAMAGED = (b"", b'{"notebook": "01_', b"[]", b"null", b"\xff\xfe")


def toy(verdict="PASS", notebook="01_toy_superposition", **changes):
    base = {"notebook": notebook, "profile": "full", "status": "finished", "finished": "2026-01-01",
            "gate": {"verdict": verdict}}  # fmt: skip
    return Path("run"), base | changes


def test_a_gate_that_passed_later_lifts_the_mark_and_is_named():
    record = gates_since(UNGATED, [toy()])
    assert record["earlier_gates"] == {"01_toy_superposition": "PASS", "03_gpt2_cache": "PASS"}
    assert record["verdicts"][0]["gated"] and record["gates_since"] == ["01_toy_superposition"]
    assert not UNGATED["verdicts"][0]["gated"], "the record itself says how it was"


def test_a_gate_that_failed_later_leaves_the_verdict_ungated():
    record = gates_since(UNGATED, [toy("FAIL")])
    assert record["earlier_gates"]["01_toy_superposition"] == "FAIL" and not record["verdicts"][0]["gated"]


def test_of_several_later_runs_the_last_that_finished_counts():
    first, last = toy("PASS", finished="2026-01-01"), toy("FAIL", finished="2026-01-02")
    assert gates_since(UNGATED, [last, first])["earlier_gates"]["01_toy_superposition"] == "FAIL"


def test_the_last_run_counts_although_the_clock_went_back():
    first, last = toy("PASS", finished="2026-01-02", number=1), toy("FAIL", finished="2026-01-01", number=2)
    assert gates_since(UNGATED, [first, last])["earlier_gates"]["01_toy_superposition"] == "FAIL"


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_named_and_stops_no_other_notebook(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    write_json(tmp_path / "runs" / "01_toy_superposition" / "whole" / "run.json", toy(number=4)[1])
    damaged = tmp_path / "runs" / "01_toy_superposition" / "other" / "run.json"
    damaged.parent.mkdir()
    damaged.write_bytes(content)
    assert earlier_gates("02_probe_validation", "full") == {"01_toy_superposition": "PASS"}
    assert str(damaged) in capsys.readouterr().err
    assert next_number("01_toy_superposition") == 5
    assert not finished("01_toy_superposition", "other")


@pytest.mark.parametrize(
    "other",
    [
        toy(profile="quick"), toy(profile="full--gaussian"), toy(status="running"), toy(gate=None),
        toy(parameters={"model": "gemma"}), toy(notebook="02_probe_validation"),
    ],
)  # fmt: skip
def test_other_profiles_variants_models_and_unfinished_runs_lift_nothing(other):
    assert gates_since(UNGATED, [other]) == UNGATED


def test_a_gate_that_failed_before_is_not_lifted_by_a_later_pass():
    failed = UNGATED | {"earlier_gates": {"01_toy_superposition": "FAIL", "03_gpt2_cache": "NOT RUN"}}
    record = gates_since(failed, [toy(), toy(notebook="03_gpt2_cache")])
    assert record["earlier_gates"] == {"01_toy_superposition": "FAIL", "03_gpt2_cache": "PASS"}
    assert not record["verdicts"][0]["gated"]


@pytest.mark.slow
def test_pages_show_a_gate_that_was_run_later_and_no_mark(tmp_path):
    runs = [
        write_run(tmp_path / "runs", "04_sae_compare", **{k: v for k, v in UNGATED.items() if k != "notebook"}),
        write_run(tmp_path / "runs", "01_toy_superposition"),
    ]
    alone, both = (build_site(given, tmp_path / name) for name, given in (("alone", runs[:1]), ("both", runs)))
    assert "ungated" in read(alone).select_one(".answers li").get_text()
    assert "ungated" not in read(both).select_one(".answers li").get_text()
    line = read(both.with_name("04_sae_compare.html")).select_one(".gateline").get_text(" ", strip=True)
    assert "01 PASS (run later)" in line and "03 PASS (run later)" not in line
