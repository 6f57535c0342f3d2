"""A run's folder, its key, the gates before it, and what refuses to start."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from papermill.parameterize import translate_parameters

from rkcnn_lib.runs import limits
from rkcnn_lib.runs.gates import earlier_gates, read_run
from rkcnn_lib.runs.params import ParameterError, defaults, read_parameter_file, resolve
from rkcnn_lib.runs.run import ROOT, Check, GateFailed, execute, run_folder, run_key, start_run
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from rkcnn_lib.worlds import ModelFacts, ModelUnavailable


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


def test_one_failed_check_fails_the_gate():
    run = start_run("01_toy_superposition", smoke("01_toy_superposition"))
    run.gate([Check("good", 1, "= 1", True), Check("bad", 0, "= 1", False)])
    assert run.record["gate"]["verdict"] == "FAIL"


def test_a_failed_gate_stops_what_comes_after_unless_forced():
    finished_run("01_toy_superposition", "FAIL")
    with pytest.raises(GateFailed, match="01_toy_superposition"):
        start_run("02_probe_validation", smoke("02_probe_validation"))
    run = start_run("02_probe_validation", smoke("02_probe_validation", force=True))
    assert run.record["earlier_gates"] == {"01_toy_superposition": "FAIL"} and not run.verdicts([{}])["gated"].any()


def test_a_gate_that_was_not_run_lets_pass_but_leaves_verdicts_ungated():
    run = start_run("02_probe_validation", smoke("02_probe_validation"))
    assert run.record["earlier_gates"] == {"01_toy_superposition": "NOT RUN"} and not run.verdicts([{}])["gated"].any()
    finished_run("01_toy_superposition", "PASS")
    assert start_run("02_probe_validation", smoke("02_probe_validation")).verdicts([{}])["gated"].all()


def test_controls_other_profiles_and_other_models_do_not_gate():
    finished_run("01_toy_superposition", "FAIL", profile="smoke--gaussian", control="gaussian")
    finished_run("01_toy_superposition", "FAIL", profile="other")
    finished_run("03_gpt2_cache", "FAIL", model="atlas")
    assert earlier_gates("04_sae_compare", "smoke", "gpt2")["03_gpt2_cache"] == "NOT RUN"
    assert "03_gpt2_cache" not in earlier_gates("04_sae_compare", "smoke", "planted")  # no model to capture
    assert set(earlier_gates("04_sae_compare", "smoke", "atlas").values()) == {"FAIL", "NOT RUN"}


# What the model, the text or the memory of a machine of 16 GiB cannot give, on atlas at smoke sizes: 4 blocks, 128
# wide, 256 latents.
TOO_MUCH = {
    "01_toy_superposition": {
        "n_hidden": [10**5], "n_subsets": [10**12], "n_samples": [10**12], "n_features": [10**10],
        "plane_instances": [10**10], "curve_n_samples": [[10**12]], "curve_n_subsets": [[10**12]],
    },
    "02_probe_validation": {"n_contexts": [10**9], "n_hidden": [10**5], "n_subsets": [10**12], "atlas_layer": [4, -5]},
    "03_gpt2_cache": {
        "layer": [99, -5], "context_size": [4096], "n_tokens": [2000, 10**12], "model": ["/absent", "a b", "planted"],
        "text": ["/absent.txt", "wiki.csv", "/", "x" * 5000 + ".txt"], "revision": ["main"],
    },
    "04_sae_compare": {
        "k": [257], "front_k": [[4, 257]], "frozen_k": [[4, 100_000]], "batch_size": [60_000, 10**12],
        "subset_size": [129], "expansion": [1e-9, 1e-3], "published": [["/absent"], ["toy"]],
        "text": ["/absent.txt", "wiki"], "n_subsets": [100, 10**12], "layer": [99, -5],
        "n_tokens": [10**12], 
    },
    "05_multilayer": {
        "layers": [[0, 4], [3, -1]], "k": [257], "batch_size": [20_000], "sweep": ["/absent", "damaged"],
        "model": ["toy"], "subset_size": [129],
    },
    "06_causal_checks": {
        "relation": ["nonsense", "ioi", "sum", "capital"], "isolated": ["person_job", "agreement", "nonsense"],
        "ranks": [[2, 129], [25]], "sae_k": [10_000], "das_layers": [[99], [-5], [0, -4]], "sae_expansion": [1e-9],
        "subset_size": [129], "model": ["planted"],
    },
}  # fmt: skip


@pytest.fixture
def small_machine(outputs, monkeypatch):
    """16 GiB, and in the working directory a text in Latin-1, an SAE of another width and half a sweep."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16 * 2**30, available=8 * 2**30))
    monkeypatch.chdir(outputs)
    (outputs / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    save_saelens(SAE(SAEConfig(5, 8, k=2)), outputs / "toy")
    (outputs / "damaged").mkdir()
    (outputs / "damaged" / "sweep.json").write_text("{}", encoding="utf-8")
    (outputs / "damaged" / "metrics.parquet").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("notebook", "name"), [(notebook, name) for notebook in TOO_MUCH for name in TOO_MUCH[notebook]]
)
def test_what_the_model_the_text_or_the_memory_cannot_give_is_refused_before_a_kernel(notebook, name, small_machine):
    for value in TOO_MUCH[notebook][name]:
        values = resolve(notebook, smoke(notebook, **{name: value}))
        with pytest.raises(ParameterError):
            run_key(notebook, values)


@pytest.mark.parametrize("notebook", ["03_gpt2_cache", "04_sae_compare", "05_multilayer", "06_causal_checks"])
def test_a_text_that_cannot_be_read_is_refused_before_a_kernel(notebook, small_machine):
    with pytest.raises(ParameterError, match=r"latin\.txt"):
        run_key(notebook, resolve(notebook, smoke(notebook, text="latin.txt")))


def test_a_refused_run_starts_no_kernel_and_leaves_no_folder(outputs):
    with pytest.raises(ParameterError, match="k = 257: expansion = 2 gives 256 latents at width 128"):
        execute("04_sae_compare", resolve("04_sae_compare", smoke("04_sae_compare", k=257)))
    assert not (outputs / "runs").exists()


@pytest.mark.parametrize(
    ("notebook", "changes", "told"),
    [
        ("06_causal_checks", {"das_layers": [99]}, "das_layers = 99: atlas has 4 blocks, allowed are -4 to 3"),
        ("05_multilayer", {"layers": [3, -1]}, r"layers = \[3, -1\]: two of them are the same of 4 blocks"),
        ("04_sae_compare", {"expansion": 1e-9}, "expansion = 1e-09 gives 0 latents"),
        ("04_sae_compare", {"batch_size": 60_000}, "batch_size = 60000, n_tokens = 60000: at most half of about"),
        ("06_causal_checks", {"n_tokens": 2000, "context_size": 2}, "the SAE is trained on batches of 1024"),
        ("04_sae_compare", {"published": ["toy"]}, "reads 5 dimensions; the activations have 128"),
        ("02_probe_validation", {"n_contexts": 10**9}, "n_contexts = 1000000000: about .* GiB of memory"),
        ("06_causal_checks", {"isolated": "person_job"}, "can be asked landmark_city, landmark_material"),
        ("06_causal_checks", {"relation": "capital"}, "known for atlas are landmark_city"),
    ],
)
def test_a_refusal_says_what_is_there(notebook, changes, told, small_machine):
    with pytest.raises(ParameterError, match=told):
        start_run(notebook, smoke(notebook, **changes))


WIDTHS = {  # blocks, width, tokens of a context
    "gpt2": (12, 768, 1024), "gpt2-medium": (24, 1024, 1024), "gpt2-large": (36, 1280, 1024),
    "gemma": (18, 640, 32_768),
}  # fmt: skip
FILES = sorted((ROOT / "params").glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_parameter_file_asks_for_what_its_model_or_16_gib_cannot_give(path, small_machine, monkeypatch):
    p = resolve(path.stem.partition("--")[0], read_parameter_file(path))
    if getattr(p, "model", None) in WIDTHS:
        n, d, longest = WIDTHS[p.model]
        facts = ModelFacts(p.model, p.model, "hub", "commit:0", n, d, 4 * d, longest, 50_257, True)
        monkeypatch.setattr(limits, "_facts", lambda p: facts)
        monkeypatch.setattr("rkcnn_lib.runs.limits.open_published", lambda p, d_in: {})
    limits.check(p)


def test_the_worlds_that_are_known_run_in_04_and_in_sweeps_alone():
    for model in ("toy", "planted"):
        run = finished_run("04_sae_compare", "PASS", model=model, frozen_k=[2])
        assert read_run(run.folder)["model"] == {"name": model}
        with pytest.raises(ParameterError, match="only 04_sae_compare and sweeps run on it"):
            start_run("06_causal_checks", smoke("06_causal_checks", model=model))


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
    with pytest.raises(ParameterError, match=r"context_size = 128: .* 3"):
        start_run("04_sae_compare", smoke("04_sae_compare", model="modadd", layer=0))
    asked = {"model": "modadd", "layer": 0, "context_size": 3, "isolated": None}
    for changes, told in (
        ({"hook": "resid_pre"}, "before the only block"),
        ({"text": "atlas"}, "nothing but its pairs"),
    ):
        with pytest.raises(ParameterError, match=told):
            given = {"model": "modadd", "layer": 0, "context_size": 3} | changes
            start_run("04_sae_compare", smoke("04_sae_compare", **given))
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


def test_an_unknown_name_that_papermill_injected_is_refused():
    given = {"layr": 8, "k": 16, "model": "a\nb = 3"}
    cell = translate_parameters("python3", "python", given, "Parameters")
    namespace = smoke("04_sae_compare") | given | {"In": ["", "import os", cell], "other": 1}
    with pytest.raises(ParameterError, match="layr = 8: no such parameter; did you mean 'layer'") as refusal:
        start_run("04_sae_compare", namespace)
    assert str(refusal.value).count("\n") == 1


def test_names_of_the_notebooks_own_are_no_parameters():
    assert start_run("01_toy_superposition", smoke("01_toy_superposition") | {"layr": 8, "In": ["layr = 8"]}).p.n_seeds


def test_nothing_is_written_for_a_refused_run(outputs):
    values = resolve("04_sae_compare", smoke("04_sae_compare"))
    with pytest.raises(ParameterError):
        start_run("04_sae_compare", smoke("04_sae_compare", k=0))
    assert not run_folder("04_sae_compare", run_key("04_sae_compare", values)).exists()
