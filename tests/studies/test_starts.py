"""``rkcnn mine`` writes the very start that 04 trains from, says how it was made, and overwrites nothing."""

import json

import pytest
import torch

from rkcnn_lib.cli import main
from rkcnn_lib.runs.params import resolve
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.activations import invented_store
from rkcnn_lib.studies.cells import initial_sae

GIVEN = {"expansion": 1.0, "k": 4, "n_tokens": 20_000, "mining_rows": 4000, "device": "cpu"}
WORDS = ["mine", "--model", "planted", "--layer", "0", "--hook", "resid_pre"]
WORDS += [word for name, value in GIVEN.items() for word in ("-p", name, str(value))]


@pytest.mark.slow
def test_the_weights_written_are_the_start_of_the_arm_and_the_record_holds_its_funnel(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path / "outputs"))
    assert main([*WORDS, "--out", str(tmp_path / "start")]) == 0
    p = resolve("04_sae_compare", GIVEN | {"model": "planted", "layer": 0, "hook": "resid_pre"})
    start, written = (
        initial_sae(invented_store("planted", 20_000), p, "rkcnn", 0, "cpu"),
        load_saelens(tmp_path / "start"),
    )
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], tensor)
    record = json.loads((tmp_path / "start" / "start.json").read_text(encoding="utf-8"))
    assert record["mined"] + record["fill"] == 64 and record["parameters"]["k"] == 4
    assert all(row["candidates"] >= 3 * row["places"] for row in record["funnel"])
    assert main([*WORDS, "--out", str(tmp_path / "start")]) == 2 and "exists" in capsys.readouterr().err


def test_bad_parameters_are_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path / "outputs"))
    assert main([*WORDS, "-p", "k", "100", "--out", str(tmp_path / "start")]) == 2
    assert "64 latents" in capsys.readouterr().err and not list(tmp_path.iterdir())
