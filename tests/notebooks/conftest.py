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
    environment: dict
    log: str

    def rkcnn(self, *words: str, timeout: int = 600) -> subprocess.CompletedProcess:
        return rkcnn(*words, environment=self.environment, timeout=timeout)

    def run_folder(self, notebook: str, profile: str = "smoke") -> Path:
        import json

        for path in (self.outputs / "runs" / notebook).glob("*/run.json"):
            if json.loads(path.read_text(encoding="utf-8"))["profile"] == profile:
                return path.parent
        raise AssertionError(f"no run of {notebook} under {profile} in {self.outputs}")


def rkcnn(*words: str, environment: dict, timeout: int = 600) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rkcnn_lib.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Report:
    outputs = tmp_path_factory.mktemp("outputs")
    environment = os.environ | {"RKCNN_OUTPUTS": str(outputs)}
    # --force: at smoke sizes a gate may fail; which ones pass is tested where sizes allow it
    done = rkcnn("report", "params/smoke", "--force", environment=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Report(outputs, environment, done.stdout)
