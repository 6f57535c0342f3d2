"""Runs notebooks' cells on the pretend CUDA device, one after the other, in this process.

``python -m tests.pretend_notebooks RUNS.json`` takes {run: [notebook, parameters over the notebook's defaults]} and
prints {run: what went wrong, "" if nothing} as JSON: the cell, the exception, and device mistakes that were caught on
the way. What cells print or display is thrown away. RKCNN_OUTPUTS says where runs go.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from pathlib import Path

import torch

from tests import pretend_cuda

NOTEBOOKS = pretend_cuda.ROOT / "notebooks"


def run(notebook: str, parameters: dict) -> str:
    """Execute a notebook's code cells; returns what went wrong first."""
    source = NOTEBOOKS / f"{notebook}.py"
    space: dict = {"__name__": notebook}
    caught = len(pretend_cuda.MISTAKES)
    line = 1
    for cell in re.split(r"^(?=# %%)", source.read_text(encoding="utf-8"), flags=re.MULTILINE):
        head = cell.split("\n", 1)[0]
        if head.startswith("# %%") and "[markdown]" not in head:
            body = "\n" * (line - 1) + cell  # so that a traceback gives the line in the notebook
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(body, str(source), "exec"), space)
            except Exception as raised:
                return f"cell at line {line} of {notebook}: {type(raised).__name__}: {raised}"
            if "parameters" in head:
                space |= parameters
        line += cell.count("\n")
    return "; ".join(pretend_cuda.MISTAKES[caught:])


if __name__ == "__main__":
    # what looks for a GPU, or defines kernels for one, when it is imported
    import sklearn  # noqa: F401
    import transformer_lens.model_bridge.sources.native  # noqa: F401

    from rkcnn_lib.studies.planes import seed_study

    seed_study.__defaults__ = (2, 30)  # 20 seeds of 2,000 steps are no parameter of 04 on the toy model
    pretend_cuda.install()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps({name: run(notebook, parameters) for name, (notebook, parameters) in runs.items()}))
