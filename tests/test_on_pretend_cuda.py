"""The library and the notebooks on the pretend CUDA device: nothing mixes what is on a GPU with what is not.

Each group runs in one process of its own (see `tests.pretend_cuda`); a failure names the project's file and line.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rkcnn_lib import measure
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from tests.pretend_calls import CALLS, FURTHER

ROOT = Path(__file__).resolve().parents[1]
NUMBERS_ONLY = {"statistics"}  # the module of rkcnn_lib.measure that sees no tensors


def public_names() -> set[str]:
    """``room.name`` of all that the tensor rooms offer: their ``__all__``, and functions of the modules of measure."""
    names = {
        f"{room}.{name}"
        for room in ("probe", "sae", "measure")
        for name in importlib.import_module(f"rkcnn_lib.{room}").__all__
    }
    for found in pkgutil.iter_modules(measure.__path__):
        if found.name not in NUMBERS_ONLY:
            module = importlib.import_module(f"rkcnn_lib.measure.{found.name}")
            functions = inspect.getmembers(module, inspect.isfunction)
            names |= {
                f"measure.{name}"
                for name, f in functions
                if f.__module__ == module.__name__ and not name.startswith("_")
            }
    return names


def tried(*command: str, **environment: str) -> dict[str, str]:
    """{case: what came of it} that a module of the tests prints, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# --- every public call


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return tried("tests.pretend_calls")


def test_every_public_call_is_made():
    assert set(CALLS) == public_names()


@pytest.mark.slow
@pytest.mark.parametrize("case", CALLS | FURTHER)
def test_a_public_call_takes_tensors_on_cuda(outcomes, case):
    assert outcomes[case] == ""


# --- the notebooks

SMALLER = {
    "01_toy_superposition": {
        "plane_steps": 20, "toy_steps": 50, "n_samples": 600, "n_subsets": 36, "n_directions": 12,
        "curve_features": [8], "miners": ["random", "kmeans", "rkcnn_coordinate", "rkcnn"], "null": None,
    },
    "02_probe_validation": {"toy_steps": 50, "n_samples": 500, "n_contexts": 8, "n_ensemble": 2, "curve_sizes": [4]},
    "03_gpt2_cache": {"n_tokens": 6000, "n_statistics": 1000},
    "04_sae_compare": {
        "n_tokens": 6000, "arms": ["random", "rkcnn"], "steps": 6, "expansion": 0.25, "n_neighbours": 4,
        "n_subsets": 400, "n_stages": 3, "lr_search": [1e-3],
        "mining_rows": 400, "heldout_rows": 200, "splice_contexts": 2, "frozen_rows": 100,
        "n_cards": 8,
    },
    "05_multilayer": {
        "n_tokens": 6000, "arms": ["random", "rkcnn"], "layers": [0], "steps": 6, "expansion": 0.25,
        "n_subsets": 400, "n_stages": 3, "n_neighbours": 4, "mining_rows": 400, "heldout_rows": 200,
        "splice_contexts": 2,
    },
    "06_causal_checks": {
        "n_tokens": 6000, "n_subsets": 36, "n_directions": 12, "mining_rows": 400, "ranks": [2, 4], "n_pairs": 8,
        "sae_steps": 4, "das_steps": 2,
    },
}  # fmt: skip
ON_A_POD = {  # what a machine with a GPU is asked for beside the smoke report
    "06 on modular addition": (
        "06_causal_checks",
        "quick/06_causal_checks--modadd",
        {"n_seeds": 2, "n_subsets": 36, "n_directions": 12, "n_tokens": 12_000},
    ),
    "04 with relu": ("04_sae_compare", None, {"architecture": "relu", "other_architecture": "topk"}),
    "04 with batchtopk and AuxK": (
        "04_sae_compare",
        None,
        {"architecture": "batchtopk", "aux_k": 16, "other_architecture": None},
    ),
    "04 on the MLP's hidden layer": ("04_sae_compare", None, {"hook": "mlp_post", "expansion": 0.0625}),
    "04 with a published SAE": ("04_sae_compare", None, {"published": ["PUBLISHED"]}),
    "04 with one seed": ("04_sae_compare", None, {"n_seeds": 1}),
    "04 on the toy model": ("04_sae_compare", None, {"model": "toy", "expansion": 2.0}),
    "04 on planted directions": ("04_sae_compare", None, {"model": "planted", "expansion": 0.5}),
}


def run_of(notebook: str, file: str | None = None, given: dict | None = None) -> tuple[str, dict]:
    """A notebook and its parameters: of its smoke run or another file, made smaller, with some of one's own."""
    values = yaml.safe_load((ROOT / "params" / f"{file or 'smoke/' + notebook}.yaml").read_text(encoding="utf-8"))
    fixed = {"device": "cuda", "n_jobs": 1, "force": True}
    return notebook, values | SMALLER[notebook] | (given or {}) | fixed


def all_run(runs: dict[str, tuple[str, dict]], folder: Path) -> dict[str, str]:
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    return tried(
        "tests.pretend_notebooks", str(folder / "runs.json"), RKCNN_OUTPUTS=str(folder / "out"), OMP_NUM_THREADS="1"
    )


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> dict[str, str]:
    return all_run({name: run_of(name) for name in SMALLER}, tmp_path_factory.mktemp("pretend"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", SMALLER)
def test_a_notebook_runs_on_cuda(notebooks, notebook):
    assert notebooks[notebook] == ""


@pytest.fixture(scope="module")
def on_a_pod(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pretend-pod")
    width = 128  # of the embedded model's MLP output
    save_saelens(SAE(SAEConfig(width, 64, k=8)), folder / "published", {"hook_name": "blocks.2.hook_mlp_out"})
    runs = {name: run_of(*asked) for name, asked in ON_A_POD.items()}
    runs["04 with a published SAE"][1]["published"] = [str(folder / "published")]
    return all_run(runs, folder)


@pytest.mark.long
@pytest.mark.parametrize("run", ON_A_POD)
def test_what_a_pod_is_asked_for_runs_on_cuda(on_a_pod, run):
    assert on_a_pod[run] == ""
