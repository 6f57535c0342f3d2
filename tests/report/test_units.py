"""Finished units are found again; unfinished or changed ones are not."""

import time

import joblib
import pandas as pd
import pytest
import torch

from rkcnn_lib.report import units
from rkcnn_lib.report.units import Unit, cached_unit, digest, unit_folder


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    return tmp_path


def made(scratch):
    return Unit(
        scalars={"value": 1.5},
        tables={"history": pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})},
        arrays={"directions": torch.eye(3)},
        save_extra=lambda folder: (folder / "extra.txt").write_text("kept"),
    )


def test_a_unit_comes_back_as_it_was_made():
    unit = cached_unit("demo", {"seed": 0}, made)
    assert unit.scalars == {"value": 1.5}
    assert torch.equal(unit.arrays["directions"], torch.eye(3))
    assert list(unit.tables["history"]["loss"]) == [2.0, 1.0]
    assert (unit.folder / "extra.txt").read_text() == "kept"


def test_a_finished_unit_is_not_computed_again():
    cached_unit("demo", {"seed": 0}, made)

    def forbidden(scratch):
        raise AssertionError("computed twice")

    cached_unit("demo", {"seed": 0}, forbidden)
    with pytest.raises(AssertionError):
        cached_unit("demo", {"seed": 1}, forbidden)


def test_a_unit_that_died_leaves_its_scratch_and_no_result():
    def dies(scratch):
        (scratch / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_unit("demo", {"seed": 0}, dies)
    assert not unit_folder("demo", {"seed": 0}).exists()

    def resumes(scratch):
        assert (scratch / "checkpoint").read_text() == "half"
        return made(scratch)

    cached_unit("demo", {"seed": 0}, resumes)
    assert [path.name for path in unit_folder("demo", {"seed": 0}).parent.iterdir()] == [
        unit_folder("demo", {"seed": 0}).name
    ]


def _counted(log):
    def compute(scratch):
        with open(log, "a") as file:
            file.write("computed\n")
        time.sleep(1)
        return made(scratch)

    return cached_unit("demo", {"seed": 0}, compute).scalars


def test_two_processes_that_want_one_unit_compute_it_once(tmp_path):
    with joblib.parallel_config(backend="multiprocessing", n_jobs=3):
        found = joblib.Parallel()(joblib.delayed(_counted)(tmp_path / "log") for _ in range(3))
    assert found == [{"value": 1.5}] * 3
    assert (tmp_path / "log").read_text() == "computed\n"


def test_changed_code_is_another_unit_and_a_changed_docstring_is_not(tmp_path):
    source = tmp_path / "module.py"
    texts = ['def f():\n    """One."""\n    return 1\n', 'def f():\n    """Two."""\n    return 1  # why\n']
    codes = []
    for text in [*texts, "def f():\n    return 2\n"]:
        source.write_text(text)
        codes.append(units._code(source))
    assert codes[0] == codes[1] != codes[2]


def test_digest_does_not_depend_on_key_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 2})
