"""Cells that run in several processes give what they give in one, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rkcnn_lib.report import sweep
from rkcnn_lib.report.sweep import Records, Workers, process_count, run_cells, run_recorded


def _square(x):
    return x * x, os.getpid(), torch.get_num_threads()


def _refuse(x):
    if x == 2:
        raise ValueError("cell 2 is bad")
    return x


def test_results_come_in_the_order_of_the_cells_whatever_the_number_of_processes():
    cells = [(x,) for x in range(7)]
    alone, pooled = run_cells(_square, cells, 1, "cells"), run_cells(_square, cells, 2, "cells")
    assert [found[0] for found in alone] == [found[0] for found in pooled] == [x * x for x in range(7)]
    assert {found[1] for found in alone} == {os.getpid()} and os.getpid() not in {found[1] for found in pooled}


def test_processes_share_the_cores_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    n_jobs = process_count(None, "cpu")
    if n_jobs == 1:
        pytest.skip("one core: cells run in this process")
    assert {found[2] for found in run_cells(_square, [(x,) for x in range(4)], n_jobs, "cells")} == {1}


def test_an_error_in_a_cell_reaches_the_caller():
    for n_jobs in (1, 2):
        with pytest.raises(ValueError, match="cell 2 is bad"):
            run_cells(_refuse, [(x,) for x in range(4)], n_jobs, "cells")


def test_a_gpu_is_given_to_one_process_unless_more_are_asked_for():
    assert process_count(3, "cuda") == 3 and process_count(None, "cpu") >= 1
    assert process_count(None, "cuda") == max(1, torch.cuda.device_count())


def _kill(folder, x):
    """Return x squared; the first worker that comes to 2 dies at it, and every worker that comes to 3."""
    if x == 3 or (x == 2 and not (folder / "killed").exists()):
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def _fail(x, error):
    if x == 3:
        raise error("no more")
    return x * x


def test_a_killed_worker_costs_no_cell_and_a_cell_that_kills_every_worker_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ALONE_AFTER", 1)
    monkeypatch.setattr(sweep, "GIVEN_UP_AFTER", 2)
    cells = {f"cell{x}": (tmp_path, x) for x in range(6)}
    found = run_recorded(_kill, cells, tmp_path / "records", Workers(2), "cells")
    assert "died 2 times" in found.pop("cell3")["error"]
    assert found == {f"cell{x}": {"value": x * x} for x in range(6) if x != 3}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_cell_is_recorded_with_its_traceback_and_tried_again_when_asked(tmp_path, n_jobs):
    cells = {f"cell{x}": (x, KeyError) for x in range(5)}
    found = run_recorded(_fail, cells, tmp_path, Workers(n_jobs), "cells")
    assert found["cell3"]["error"] == "KeyError: 'no more'" and "in _fail" in found["cell3"]["traceback"]
    assert [key for key, record in found.items() if "error" in record] == ["cell3"]
    again = run_recorded(_square_alone, {key: (cell[0],) for key, cell in cells.items()}, tmp_path, Workers(1), "cells")
    assert again == found, "records are read, not computed again"
    Records(tmp_path).forget_failures()
    again = run_recorded(_square_alone, {key: (cell[0],) for key, cell in cells.items()}, tmp_path, Workers(1), "cells")
    assert again["cell3"] == {"value": 9}


def _square_alone(x):
    return x * x


def test_a_full_disk_fails_a_cell_and_is_told_although_nothing_can_be_recorded(tmp_path, monkeypatch):
    def full(self, key, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Records, "write", full)
    found = run_recorded(_square_alone, {"cell": (2,)}, tmp_path, Workers(1), "cells")
    assert "No space left" in found["cell"]["error"]


DRIVER = """
import sys, time
from pathlib import Path
from rkcnn_lib.report.sweep import Workers, run_recorded

def work(folder, x):
    time.sleep(0.4)
    with open(folder / "log", "a") as log:
        log.write(f"{x}\\n")
    return x * x

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = run_recorded(work, {f"cell{x}": (folder, x) for x in range(12)}, folder / "records", Workers(2), "cells")
    assert [record["value"] for record in found.values()] == [x * x for x in range(12)]
    print("whole")
"""


def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    words = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path)]
    records = tmp_path / "records"

    def finished():
        return {path.name: path.stat().st_mtime_ns for path in records.glob("*.done")}

    driver = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while len(finished()) < 4 and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1.0)  # its workers finish the cell they are at
    before = finished()
    assert 4 <= len(before) < 12, "killed in the middle"
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "whole" in done.stdout
    assert before.items() <= finished().items(), "finished cells were not computed again"
    assert len(json.loads((records / "cell11.done").read_text(encoding="utf-8"))) == 1
    called = (tmp_path / "log").read_text(encoding="utf-8").split()
    assert len(set(called)) == 12 and len(called) <= 12 + 2, "only what was in work is called twice"
