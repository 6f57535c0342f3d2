"""The smoke report, looked at: figures drawn, records whole, nothing run twice."""

import json
import re

import nbformat
import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from rkcnn_lib import cli
from rkcnn_lib.figures.display import MIMETYPE as PLOTLY
from rkcnn_lib.figures.display import TITLE
from rkcnn_lib.runs.params import NOTEBOOKS, ROOT

pytestmark = pytest.mark.slow

FIGURES = {
    "01_toy_superposition": 6,
    "02_probe_validation": 4,
    "03_gpt2_cache": 4,
    "04_sae_compare": 10,
    "05_multilayer": 4,
    "06_causal_checks": 7,
}
EACH = pytest.mark.parametrize("notebook", NOTEBOOKS)


def outputs_of(folder):
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@EACH
def test_every_figure_is_drawn_with_data(report, notebook):
    figures = [o for o in outputs_of(report.run_folder(notebook)) if PLOTLY in o.get("data", {})]
    assert len(figures) >= FIGURES[notebook]
    assert all(figure["data"][PLOTLY]["data"] and figure["metadata"][TITLE] for figure in figures)


@EACH
def test_the_record_is_whole(report, notebook):
    record = json.loads((report.run_folder(notebook) / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["headline"] and record["wall_seconds"] > 0
    assert record["gate"]["verdict"] in ("PASS", "FAIL") and record["gate"]["checks"]
    assert set(record["parameters"]) == set(NOTEBOOKS[notebook].model_fields)
    assert record["provenance"]["packages"]["torch"]
    assert set(record["earlier_gates"]) == set(list(NOTEBOOKS)[: list(NOTEBOOKS).index(notebook)])


@EACH
def test_metrics_are_tidy_and_finite(report, notebook):
    table = pd.read_parquet(report.run_folder(notebook) / "metrics.parquet")
    assert {"metric", "value"} <= set(table.columns) and len(table)
    assert pd.api.types.is_float_dtype(table["value"]) and table["value"].notna().mean() > 0.99


@pytest.mark.parametrize("notebook", ["03_gpt2_cache", "04_sae_compare", "05_multilayer", "06_causal_checks"])
def test_gates_of_bookkeeping_pass_even_at_smoke_sizes(report, notebook):
    gate = json.loads((report.run_folder(notebook) / "run.json").read_text(encoding="utf-8"))["gate"]
    assert gate["verdict"] == "PASS", gate["checks"]


@pytest.mark.parametrize("notebook", ["04_sae_compare", "05_multilayer", "06_causal_checks"])
def test_two_seeds_settle_nothing(report, notebook):
    verdicts = json.loads((report.run_folder(notebook) / "run.json").read_text(encoding="utf-8"))["verdicts"]
    assert verdicts and {row["verdict"] for row in verdicts} == {"undecided"}


def test_smoke_runs_carry_a_banner(report):
    html = "".join(
        str(o.get("data", {}).get("text/html", "")) for o in outputs_of(report.run_folder("01_toy_superposition"))
    )
    assert "A smoke run" in html and "no conclusions" in html


def test_the_pages_list_all_six(report):
    index = (report.outputs / "report" / "index.html").read_text(encoding="utf-8")
    assert all(name in index for name in NOTEBOOKS)


def test_a_second_report_starts_no_kernel(report, capsys):
    assert cli.main(["report", "params/smoke", "--force"]) == 0
    again = capsys.readouterr().out
    assert len(re.findall(r"finished before \(\w+\), not run again", again)) == len(NOTEBOOKS)
    assert ": running as " not in again


def test_a_failed_gate_stops_the_notebooks_after_it_unless_forced(report, capsys):
    folder = report.run_folder("03_gpt2_cache")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = json.dumps(record)
    record["gate"]["verdict"] = "FAIL"
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    try:
        words = ["run", "06_causal_checks", "-f", "params/smoke/06_causal_checks.yaml", "-p", "n_pairs", "17"]
        assert cli.main(words) == 1
        told = capsys.readouterr().err
        assert "GateFailed" in told and "03_gpt2_cache" in told
    finally:
        (folder / "run.json").write_text(kept, encoding="utf-8")


def test_plain_papermill_refuses_an_unknown_name(tmp_path, monkeypatch):
    """That it runs a notebook from any folder is tested with 04, in tests/worlds/test_hub_notebook.py."""
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    with pytest.raises(PapermillExecutionError, match="did you mean 'layer'"):
        papermill.execute_notebook(
            ROOT / "notebooks/03_gpt2_cache.ipynb",
            tmp_path / "out.ipynb",
            {"layr": 8},
            cwd=tmp_path,
            progress_bar=False,
        )
