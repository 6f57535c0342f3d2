"""Runs a notebook's code cells one after the other in this process, without a kernel: seconds less a notebook."""

from __future__ import annotations

import contextlib
import io
import re

from rkcnn_lib.runs.params import NOTEBOOK_FOLDER


def run_cells(notebook: str, parameters: dict) -> None:
    """Execute a notebook with these parameters over its defaults; what a cell raises has a note with the cell's line.

    What cells print or display is thrown away. RKCNN_OUTPUTS says where the run goes.
    """
    source = NOTEBOOK_FOLDER / f"{notebook}.py"
    space: dict = {"__name__": notebook}
    line = 1
    for cell in re.split(r"^(?=# %%)", source.read_text(encoding="utf-8"), flags=re.MULTILINE):
        head = cell.split("\n", 1)[0]
        if head.startswith("# %%") and "[markdown]" not in head:
            body = "\n" * (line - 1) + cell  # so that a traceback gives the line in the notebook
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(body, str(source), "exec"), space)
            except Exception as raised:
                raised.add_note(f"cell at line {line} of {notebook}")
                raise
            if "parameters" in head:
                space |= parameters
        line += cell.count("\n")
