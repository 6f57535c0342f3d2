"""``rkcnn sweep`` from file to tables: everything once, failures told, what is finished kept."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from rkcnn_lib import cli
from rkcnn_lib.studies import cells, comparison
from rkcnn_lib.studies.sweeps import read_sweep

SMALL = {
    "profile": "smoke", "model": "planted", "arms": ["random", "rkcnn"], "n_tokens": 4000, "expansion": 1.0,
    "steps": 8, "batch_size": 128, "lr": 1e-3, "mining_rows": 400,
    "heldout_rows": 300, "n_jobs": 1,
}  # fmt: skip
AXES = {"layers": [0], "seeds": [0, 1], "k": [2, 4], "subset_size": [None, 6]}


@pytest.fixture(scope="module", autouse=True)
def outputs(tmp_path_factory):
    """One place for all tests: units are found again, as they are across sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("outputs")
        patch.setenv("RKCNN_OUTPUTS", str(folder))
        yield folder


def written(folder, **entries):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"parameters": SMALL, "axes": AXES} | entries), encoding="utf-8")
    return path


def run(path, out, *more):
    return cli.main(["sweep", str(path), "--out", str(out), "--yes", *more])


def metrics(out):
    return pd.read_parquet(out / "metrics.parquet")


def test_every_cell_is_in_the_table_once_with_the_values_that_were_swept(tmp_path, outputs):
    assert run(written(tmp_path), tmp_path / "out") == 0
    table = metrics(tmp_path / "out")
    cells = ["setting", "k", "subset_size", "steps", "layer", "hook", "arm", "seed"]
    assert len(table.drop_duplicates(cells)) == 4 * 2 * 2 and not table.duplicated([*cells, "metric"]).any()
    assert set(table["k"]) == {2, 4} and table["subset_size"].isna().any() and set(table["steps"]) == {8}
    assert (table[table["metric"] == "l0"]["value"] <= table[table["metric"] == "l0"]["k"] + 1e-6).all()
    record = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    # the subset size is nothing to the random arm: its SAEs are found again, not trained twice
    assert record["counts"] == {"cells": 16, "failed": 0, "units": 12} and record["status"] == "finished"
    assert not len(pd.read_parquet(tmp_path / "out" / "failures.parquet"))
    assert "training_seconds" in pd.read_parquet(tmp_path / "out" / "times.parquet")


def test_resuming_reads_what_is_finished_and_gives_the_same_table(tmp_path, outputs, monkeypatch):
    path, out = written(tmp_path), tmp_path / "out"
    assert run(path, out) == 0
    first, units = (out / "metrics.parquet").read_bytes(), outputs / "units" / "saes"
    times = {folder.name: (folder / "unit.json").stat().st_mtime_ns for folder in units.iterdir()}

    def forbidden(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(cells, "train_sae", forbidden)
    monkeypatch.setattr(cells, "mine", forbidden)
    assert run(path, out, "--resume") == 0
    assert (out / "metrics.parquet").read_bytes() == first
    assert times == {folder.name: (folder / "unit.json").stat().st_mtime_ns for folder in units.iterdir()}


def test_what_was_deleted_or_damaged_is_computed_again_and_a_sweep_that_failed_throughout_has_tables(
    tmp_path, outputs, monkeypatch
):
    axes = {"layers": [0], "seeds": [7]}
    path, out = written(tmp_path, axes=axes), tmp_path / "out"

    def fails(*_):
        raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "matched_unit", fails)
        assert run(path, out) == 1
    assert metrics(out).empty and len(pd.read_parquet(out / "failures.parquet")) == 2
    assert run(path, out, "--resume") == 0
    first = (out / "metrics.parquet").read_bytes()
    shutil.rmtree(outputs / "units" / "saes")
    assert run(path, out, "--resume") == 0
    assert (out / "metrics.parquet").read_bytes() == first
    next((outputs / "units" / "saes").glob("*/unit.json")).write_bytes(b"")
    (out / "sweep.json").write_bytes(b'{"file": ')
    assert run(path, out) == 2 and run(path, out, "--resume") == 0
    assert (out / "metrics.parquet").read_bytes() == first
    assert {path.name for path in out.iterdir()} == {
        "sweep.json", "metrics.parquet", "times.parquet", "failures.parquet"
    }  # fmt: skip


def test_a_unit_that_fails_is_recorded_with_its_traceback_and_the_rest_finishes(tmp_path, monkeypatch, capsys):
    path, out, sound = written(tmp_path), tmp_path / "out", comparison.matched_unit

    def fails(store, p, arm, seed, *more):
        if (p.k, p.subset_size, arm, seed) == (4, 6, "rkcnn", 1):
            raise MemoryError("too large")
        return sound(store, p, arm, seed, *more)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "matched_unit", fails)
        assert run(path, out) == 1
    assert "MemoryError: too large" in capsys.readouterr().out
    (failure,) = pd.read_parquet(out / "failures.parquet").to_dict("records")
    assert (failure["k"], failure["subset_size"], failure["arm"], failure["seed"]) == (4, 6, "rkcnn", 1)
    assert "in fails" in failure["traceback"]
    assert len(metrics(out).drop_duplicates(["setting", "arm", "seed"])) == 15
    assert run(path, out, "--resume") == 0, "what failed is tried again"
    assert len(metrics(out).drop_duplicates(["setting", "arm", "seed"])) == 16


def test_a_search_that_fails_fails_its_own_arm_alone(tmp_path, monkeypatch):
    path, out, sound = written(tmp_path), tmp_path / "out", cells.directions_unit

    def fails(store, p, arm, wanted, seed, *more):
        if (p.k, p.subset_size, seed) == (4, 6, 1):
            raise ValueError("nothing found")
        return sound(store, p, arm, wanted, seed, *more)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "directions_unit", fails)
        assert run(path, out) == 1
    (failure,) = pd.read_parquet(out / "failures.parquet").to_dict("records")
    assert (failure["arm"], failure["error"]) == ("rkcnn", "ValueError: nothing found")
    trained = metrics(out).query("k == 4 and subset_size == 6 and seed == 1")
    assert set(trained["arm"]) == {"random"}


def test_a_sweep_is_not_begun_twice_unasked(tmp_path, capsys):
    path, out = written(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps({"file": read_sweep(path).file.model_dump()}), encoding="utf-8")
    assert run(path, out) == 2 and "add --resume" in capsys.readouterr().err


def test_a_folder_with_something_else_in_it_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    assert run(written(tmp_path), out) == 2 and "holds no sweep" in capsys.readouterr().err
    (out / "sweep.json").write_text(json.dumps({"file": {"other": 1}}), encoding="utf-8")
    assert run(written(tmp_path), out, "--resume") == 2 and "another sweep" in capsys.readouterr().err


def test_a_layer_that_the_model_lacks_is_refused_and_the_end_may_be_counted_from(tmp_path, capsys):
    axes = {"layers": [0, 99], "seeds": [0]}
    path = written(tmp_path, axes=axes, parameters=SMALL | {"model": "atlas"})
    assert run(path, tmp_path / "out") == 2 and "99" in capsys.readouterr().err
    path = written(tmp_path, axes={"layers": [-1], "seeds": [0]}, parameters=SMALL | {"model": "atlas"})
    assert read_sweep(path).layers == [-1]


def test_the_plan_is_told_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rkcnn_lib.studies.plan.ASK_FROM_SECONDS", 0.0)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert cli.main(["sweep", str(written(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "4 setting(s) of k, subset_size" in said.out and "GiB memory" in said.out and "--yes" in said.err
    assert not (tmp_path / "out").exists()
