"""Gates that noise does not pass: 01 and 02 on noise in place of activations, and on permuted truth."""

import json

import pytest

from rkcnn_lib.runs.params import ROOT, read_parameter_file
from tests.notebook_cells import run_cells

pytestmark = pytest.mark.slow

# what their gates do not read is made smaller still
CONTROLLED = {"01_toy_superposition": {"plane_steps": 20, "curve_features": [8]}, "02_probe_validation": {}}


@pytest.mark.parametrize("control", ["gaussian", "permuted"])
@pytest.mark.parametrize("notebook", CONTROLLED)
def test_noise_in_no_gate_passed(tmp_path, monkeypatch, notebook, control):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    run_cells(notebook, read_parameter_file(ROOT / f"params/smoke/{notebook}--{control}.yaml") | CONTROLLED[notebook])
    (path,) = (tmp_path / "runs" / notebook).glob("*/run.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["gate"]["verdict"] == "FAIL", record["gate"]["checks"]
