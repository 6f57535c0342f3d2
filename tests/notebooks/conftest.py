"""One smoke report, run once through the command line in a folder of its own, for all tests that look at it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Report:
    outputs: Path

    def run_folder(self, notebook: str) -> Path:
        (path,) = (self.outputs / "runs" / notebook).glob("*/run.json")
        return path.parent


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Report:
    outputs = tmp_path_factory.mktemp("outputs")
    # --force: at smoke sizes a gate may fail; which ones pass is tested where sizes allow it
    done = subprocess.run(
        [sys.executable, "-m", "rkcnn_lib.cli", "report", "params/smoke", "--force"],
        cwd=ROOT, env=os.environ | {"RKCNN_OUTPUTS": str(outputs)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Report(outputs)


@pytest.fixture
def report(made, monkeypatch) -> Report:
    """The report, in a process that is turned to its folder."""
    monkeypatch.setenv("RKCNN_OUTPUTS", str(made.outputs))
    return made
