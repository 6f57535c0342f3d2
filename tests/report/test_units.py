"""Finished units are found again; unfinished or changed ones are not."""

import time

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.report import units
from rkcnn_lib.report.units import Unit, cached_unit, unit_folder


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
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
    assert not unit_folder("demo", {"seed": 0}, made).exists()

    def resumes(scratch):
        assert (scratch / "checkpoint").read_text(encoding="utf-8") == "half"
        return made(scratch)

    cached_unit("demo", {"seed": 0}, resumes)
    assert [path.name for path in unit_folder("demo", {"seed": 0}, made).parent.iterdir()] == [
        unit_folder("demo", {"seed": 0}, made).name
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
    assert unit_folder("demo", {"k": np.int64(5)}, compute) == unit_folder("demo", {"k": 5}, compute)


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


def test_changed_code_is_another_unit_and_a_changed_docstring_is_not(tmp_path):
    source = tmp_path / "module.py"
    texts = ['def f():\n    """One."""\n    return 1\n', 'def f():\n    """Two."""\n    return 1  # why\n']
    codes = []
    for text in [*texts, "def f():\n    return 2\n"]:
        source.write_text(text, encoding="utf-8")
        codes.append(units._code(source))
    assert codes[0] == codes[1] != codes[2]


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    files = {
        "sae/__init__.py": "from rkcnn_lib.sae.train import go", "sae/train.py": "go = 1",
        "report/studies/compute.py": "def f():\n    from rkcnn_lib.sae import go\n    import rkcnn_lib.report.runs",
        "report/studies/show.py": "from rkcnn_lib.report.studies import compute", "report/runs.py": "x = 1",
    }  # fmt: skip
    package = tmp_path / "rkcnn_lib"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(units, "PACKAGE", package)
    monkeypatch.setattr(units, "COMPUTING", ("sae", "report/studies"))
    yield package
    units.code_behind.cache_clear()
    units.fingerprint.cache_clear()


def key_of(module):
    units.code_behind.cache_clear()
    units.fingerprint.cache_clear()
    return units.fingerprint(*units.code_behind(f"rkcnn_lib.{module}"))


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("sae/train.py", True),  # reached through a package, inside a function
        ("report/studies/compute.py", True),
        ("report/studies/show.py", False),
        ("report/runs.py", False),
    ],
)
def test_a_unit_depends_on_what_its_module_imports_and_on_no_other_code(edited, changed, small_package):
    before = key_of("report.studies.compute")
    (small_package / edited).write_text("go = 2", encoding="utf-8")
    after = key_of("report.studies.compute")
    assert (before != after) == changed


def test_what_shows_a_unit_depends_on_what_computes_it(small_package):
    assert set(units.code_behind("rkcnn_lib.report.studies.show")) == {
        "sae/__init__.py", "sae/train.py", "report/studies/compute.py", "report/studies/show.py",
    }  # fmt: skip


def test_a_unit_of_a_module_from_elsewhere_depends_on_all_code_that_computes(small_package):
    units.code_behind.cache_clear()
    assert units.code_behind("somewhere.else") == ("sae", "report/studies")
