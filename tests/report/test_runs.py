"""A run's folder, its key, the gates before it, and what refuses to start."""

import json

import pandas as pd
import pytest

from rkcnn_lib.report import runs
from rkcnn_lib.report.gates import earlier_gates
from rkcnn_lib.report.params import ParameterError, defaults, read_parameter_file, resolve
from rkcnn_lib.report.runs import ROOT, Check, GateFailed, run_folder, run_key, start_run
from rkcnn_lib.worlds import ModelUnavailable


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    return tmp_path


def smoke(notebook, **changes):
    given = read_parameter_file(ROOT / "params" / "smoke" / f"{notebook}.yaml")
    return defaults(notebook) | given | changes


def finished_run(notebook, verdict, **changes):
    run = start_run(notebook, smoke(notebook, **changes))
    run.gate([Check("a check", 1.0, "= 1", verdict == "PASS")])
    run.finish("done")
    return run


def test_a_finished_run_holds_gate_verdicts_metrics_and_provenance():
    run = finished_run("01_toy_superposition", "PASS")
    run.metrics(pd.DataFrame({"metric": ["x"], "value": [1.0]}))
    record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["gate"]["verdict"] == "PASS" and record["headline"] == "done"
    assert record["provenance"]["packages"]["torch"] and record["parameters"]["profile"] == "smoke"
    assert pd.read_parquet(run.folder / "metrics.parquet")["value"].tolist() == [1.0]


def test_an_empty_table_does_not_make_text_of_the_numbers():
    run = start_run("01_toy_superposition", smoke("01_toy_superposition"))
    for table in (pd.DataFrame(columns=["metric", "value"]), pd.DataFrame({"metric": ["x"], "value": [1.0]})):
        run.metrics(table)
    assert pd.api.types.is_float_dtype(pd.read_parquet(run.folder / "metrics.parquet")["value"])


def test_the_key_follows_parameters_but_not_device_or_force():
    base = resolve("01_toy_superposition")
    same = resolve("01_toy_superposition", {"device": "cpu", "force": True})
    other = resolve("01_toy_superposition", {"n_seeds": 3})
    assert run_key("01_toy_superposition", base) == run_key("01_toy_superposition", same)
    assert run_key("01_toy_superposition", base) != run_key("01_toy_superposition", other)


def test_one_failed_check_fails_the_gate_and_no_check_is_no_gate():
    run = start_run("01_toy_superposition", smoke("01_toy_superposition"))
    run.gate([Check("good", 1, "= 1", True), Check("bad", 0, "= 1", False)])
    assert run.record["gate"]["verdict"] == "FAIL"
    with pytest.raises(ValueError, match="at least one check"):
        run.gate([])


def test_a_failed_gate_stops_what_comes_after_unless_forced():
    finished_run("01_toy_superposition", "FAIL")
    with pytest.raises(GateFailed, match="01_toy_superposition"):
        start_run("02_probe_validation", smoke("02_probe_validation"))
    run = start_run("02_probe_validation", smoke("02_probe_validation", force=True))
    assert run.record["earlier_gates"] == {"01_toy_superposition": "FAIL"} and not run.gated


def test_a_gate_that_was_not_run_lets_pass_but_leaves_verdicts_ungated():
    run = start_run("02_probe_validation", smoke("02_probe_validation"))
    assert run.record["earlier_gates"] == {"01_toy_superposition": "NOT RUN"} and not run.gated
    finished_run("01_toy_superposition", "PASS")
    assert start_run("02_probe_validation", smoke("02_probe_validation")).gated


def test_controls_other_profiles_and_other_models_do_not_gate():
    finished_run("01_toy_superposition", "FAIL", profile="smoke--gaussian", control="gaussian")
    finished_run("01_toy_superposition", "FAIL", profile="other")
    finished_run("03_gpt2_cache", "FAIL", model="atlas")
    assert earlier_gates("04_sae_compare", "smoke", "planted")["03_gpt2_cache"] == "NOT RUN"
    assert set(earlier_gates("04_sae_compare", "smoke", "atlas").values()) == {"FAIL", "NOT RUN"}


@pytest.mark.parametrize(("layer", "told"), [(99, "layer = 99"), (-5, "layer = -5")])
def test_a_layer_the_model_lacks_is_refused_by_name_and_value(layer, told):
    with pytest.raises(ParameterError, match=told) as refusal:
        start_run("04_sae_compare", smoke("04_sae_compare", layer=layer))
    assert "3" in str(refusal.value)  # atlas has layers 0 to 3


def test_a_text_that_is_no_file_and_a_context_too_long_are_refused():
    with pytest.raises(ParameterError, match="no such file"):
        start_run("03_gpt2_cache", smoke("03_gpt2_cache", text="/absent.txt"))
    with pytest.raises(ParameterError, match="context_size = 4096"):
        start_run("03_gpt2_cache", smoke("03_gpt2_cache", context_size=4096))


def test_modular_addition_is_refused_where_it_cannot_work():
    with pytest.raises(ParameterError, match="context_size = 128: modadd reads at most 3"):
        start_run("04_sae_compare", smoke("04_sae_compare", model="modadd", layer=0))
    asked = {"model": "modadd", "layer": 0, "context_size": 3, "isolated": None}
    with pytest.raises(ParameterError, match="is asked for the relation 'sum', and no other model is"):
        start_run("06_causal_checks", smoke("06_causal_checks", **asked))
    with pytest.raises(ParameterError, match="is asked for the relation 'sum', and no other model is"):
        start_run("06_causal_checks", smoke("06_causal_checks", relation="sum"))
    with pytest.raises(ParameterError, match="of a pair only the = carries the sum; choose last"):
        start_run("06_causal_checks", smoke("06_causal_checks", **asked, relation="sum", positions="both"))


def test_a_model_that_is_nowhere_names_the_ways_on(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable) as refusal:
        start_run("04_sae_compare", smoke("04_sae_compare", model="gpt2-that-is-not-there"))
    assert all(way in str(refusal.value) for way in ("atlas", "folder", "gemma"))


def test_an_unknown_name_that_papermill_injected_is_refused(monkeypatch):
    monkeypatch.setattr(runs, "_injected", lambda: {"layr": 8})
    with pytest.raises(ParameterError, match="did you mean 'layer'"):
        start_run("04_sae_compare", smoke("04_sae_compare"))


def test_nothing_is_written_for_a_refused_run(outputs):
    values = resolve("04_sae_compare", smoke("04_sae_compare"))
    with pytest.raises(ParameterError):
        start_run("04_sae_compare", smoke("04_sae_compare", k=0))
    assert not run_folder("04_sae_compare", run_key("04_sae_compare", values)).exists()
