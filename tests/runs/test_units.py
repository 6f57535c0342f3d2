"""Finished units are found again; unfinished or changed ones are not."""

import time

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.runs import units
from rkcnn_lib.runs.units import Unit, cached_unit, unit_folder


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    monkeypatch.setitem(units.VERSIONS, "demo", 1)
    return tmp_path


def made(scratch):
    return Unit(
        scalars={"value": 1.5},
        tables={"history": pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})},
        arrays={"directions": torch.eye(3)},
        save_extra=lambda folder: (folder / "extra.txt").write_text("kept", encoding="utf-8"),
    )


def test_a_unit_comes_back_as_it_was_made():
    unit = cached_unit("demo", {"seed": 0}, made)
    assert unit.scalars == {"value": 1.5}
    assert torch.equal(unit.arrays["directions"], torch.eye(3))
    assert list(unit.tables["history"]["loss"]) == [2.0, 1.0]
    assert (unit.folder / "extra.txt").read_text(encoding="utf-8") == "kept"


def test_a_finished_unit_is_not_computed_again():
    cached_unit("demo", {"seed": 0}, made)

    def forbidden(scratch):
        raise AssertionError("computed twice")

    cached_unit("demo", {"seed": 0}, forbidden)
    with pytest.raises(AssertionError):
        cached_unit("demo", {"seed": 1}, forbidden)


def test_a_unit_that_died_leaves_its_scratch_and_no_result():
    def dies(scratch):
        (scratch / "checkpoint").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_unit("demo", {"seed": 0}, dies)
    assert not unit_folder("demo", {"seed": 0}).exists()

    def resumes(scratch):
        assert (scratch / "checkpoint").read_text(encoding="utf-8") == "half"
        return made(scratch)

    cached_unit("demo", {"seed": 0}, resumes)
    assert [path.name for path in unit_folder("demo", {"seed": 0}).parent.iterdir()] == [
        unit_folder("demo", {"seed": 0}).name
    ]


@pytest.mark.parametrize("content", [b"", b'{"scalars": {', b"[]", b"{}"])
@pytest.mark.parametrize("file", ["unit.json", "arrays.safetensors", "history.parquet"])
def test_a_damaged_unit_is_named_and_computed_again(file, content, capsys):
    folder = cached_unit("demo", {"seed": 0}, made).folder
    (folder / file).write_bytes(content)
    again = cached_unit("demo", {"seed": 0}, made)
    assert again.scalars == {"value": 1.5} and torch.equal(again.arrays["directions"], torch.eye(3))
    assert "computed again" in capsys.readouterr().err and str(folder) == str(again.folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_process_left_that_was_killed_after_it_had_saved_goes(outputs):
    folder = cached_unit("demo", {"seed": 0}, made).folder
    folder.with_name(folder.name + ".scratch").mkdir()
    cached_unit("demo", {"seed": 0}, made)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_numbers_of_numpy_are_stored_as_numbers():
    def compute(scratch):
        return Unit(scalars={"k": np.int64(5), "loss": np.float32(0.5)})

    assert cached_unit("demo", {"k": np.int64(5)}, compute).scalars == {"k": 5, "loss": 0.5}
    assert unit_folder("demo", {"k": np.int64(5)}) == unit_folder("demo", {"k": 5})


def _counted(log):
    def compute(scratch):
        with open(log, "a", encoding="utf-8") as file:
            file.write("computed\n")
        time.sleep(1)
        return made(scratch)

    return cached_unit("demo", {"seed": 0}, compute).scalars


def test_two_processes_that_want_one_unit_compute_it_once(tmp_path):
    with joblib.parallel_config(backend="multiprocessing", n_jobs=3):
        found = joblib.Parallel()(joblib.delayed(_counted)(tmp_path / "log") for _ in range(3))
    assert found == [{"value": 1.5}] * 3
    assert (tmp_path / "log").read_text(encoding="utf-8") == "computed\n"


def test_another_version_of_a_kind_or_of_what_it_is_built_on_is_another_unit(monkeypatch):
    folders = [unit_folder("toy_mining", {"seed": 0})]
    for kind in ("toy_mining", "toy_models", "saes"):
        with monkeypatch.context() as patch:
            patch.setitem(units.VERSIONS, kind, 99)
            folders.append(unit_folder("toy_mining", {"seed": 0}))
    assert folders[0] == folders[3] and len(set(folders)) == 3
