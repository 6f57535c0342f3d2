"""Cells that run in several processes give what they give in one, whatever dies on the way."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from rkcnn_lib.runs import grid
from rkcnn_lib.runs.grid import Workers, process_count, run_cells, try_cells


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
        with pytest.raises(ValueError, match="cell 2 is bad") as refusal:
            run_cells(_refuse, [(x,) for x in range(4)], n_jobs, "cells")
        assert refusal.value.__notes__ == ["cells: 1 of 4 failed; what is finished is kept"]


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


@pytest.mark.slow
def test_a_killed_worker_costs_no_cell_and_a_cell_that_kills_every_worker_is_given_up(tmp_path):
    found = try_cells(_kill, [(tmp_path, x) for x in range(6)], Workers(2), "cells")
    assert f"died {grid.TRIES} times" in found.pop(3).error
    assert found == [x * x for x in range(6) if x != 3]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_cell_is_told_with_its_traceback_and_the_others_are_finished(n_jobs):
    found = try_cells(_fail, [(x, KeyError) for x in range(5)], Workers(n_jobs), "cells")
    assert found[3].error == "KeyError: 'no more'" and "in _fail" in found[3].traceback
    assert isinstance(found[3].exception, KeyError) and found[:3] + found[4:] == [0, 1, 4, 16]


class Unsendable(Exception):
    def __init__(self, a, b):
        super().__init__("what went wrong")


def _unsendable(x):
    if x == 1:
        raise Unsendable(1, 2)
    return x


def test_an_error_that_no_process_can_send_is_told_all_the_same():
    with pytest.raises(RuntimeError, match="Unsendable: what went wrong"):
        run_cells(_unsendable, [(x,) for x in range(3)], 2, "cells")


DRIVER = """
import sys, time
from pathlib import Path
from rkcnn_lib.runs import units
from rkcnn_lib.runs.grid import Workers, try_cells

units.VERSIONS["demo"] = 1

def work(folder, x):
    units.VERSIONS["demo"] = 1

    def compute(scratch):
        time.sleep(0.4)
        with open(folder / "log", "a") as log:
            log.write(f"{x}\\n")
        return units.Unit(scalars={"value": x * x})

    return units.cached_unit("demo", {"x": x}, compute).scalars["value"]

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    assert try_cells(work, [(folder, x) for x in range(12)], Workers(2), "cells") == [x * x for x in range(12)]
    print("whole")
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was_and_its_workers_end(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    words = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path)]

    def finished():
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("units/demo/*/unit.json")}

    driver = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while len(finished()) < 4 and driver.poll() is None:
        time.sleep(0.02)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]
    before = finished()
    assert 4 <= len(before) < 12, "killed in the middle"
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "whole" in done.stdout
    assert before.items() <= finished().items() and len(finished()) == 12, "finished cells were not computed again"
    called = (tmp_path / "log").read_text(encoding="utf-8").split()
    assert len(set(called)) == 12 and len(called) <= 12 + 2, "only what was in work is called twice"
