"""Cells that run in several processes give what they give in one."""

import os

import pytest
import torch

from rkcnn_lib.report.sweep import process_count, run_cells


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
    assert process_count(None, "cuda") == 1 and process_count(3, "cuda") == 3 and process_count(None, "cpu") >= 1
