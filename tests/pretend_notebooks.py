"""Runs notebooks' cells on the pretend CUDA device, one after the other, in this process.

``python -m tests.pretend_notebooks RUNS.json`` takes {run: [notebook, parameters over the notebook's defaults]} and
prints {run: what went wrong, "" if nothing} as JSON: the cell, the exception, and device mistakes that were caught on
the way. RKCNN_OUTPUTS says where runs go.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from tests import pretend_cuda
from tests.notebook_cells import run_cells


def run(notebook: str, parameters: dict) -> str:
    """Execute a notebook's code cells; returns what went wrong first."""
    caught = len(pretend_cuda.MISTAKES)
    try:
        run_cells(notebook, parameters)
    except Exception as raised:
        return f"{raised.__notes__[-1]}: {type(raised).__name__}: {raised}"
    return "; ".join(pretend_cuda.MISTAKES[caught:])


if __name__ == "__main__":
    # what looks for a GPU, or defines kernels for one, when it is imported
    import sklearn  # noqa: F401
    import transformer_lens.model_bridge.sources.native  # noqa: F401

    from rkcnn_lib.studies import planes, truth

    # what is no parameter of 04: 20 seeds of 2,000 steps on the toy model, 2 x 120 labelled contexts of atlas
    planes.seed_study.__defaults__ = (2, 30)
    truth.N_CONTEXTS = 16
    pretend_cuda.install()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps({name: run(notebook, parameters) for name, (notebook, parameters) in runs.items()}))
