"""Run one notebook headlessly: papermill on the .py source, output streamed, result in the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat

from rkcnn_lib.files import give_name
from rkcnn_lib.runs.params import NOTEBOOK_FOLDER
from rkcnn_lib.runs.run import finished, run_folder, run_key
from rkcnn_lib.runs.schemas import Parameters


def execute(notebook: str, values: Parameters, again: bool = False, cell_timeout: int | None = None) -> Path | None:
    """Run a notebook with papermill, unless this very run is finished; return its folder, or None if a cell failed.

    The executed notebook is ``notebook.ipynb`` in the run folder; while it runs, or when it fails, it is
    ``notebook.running.ipynb`` there.

    Raises ParameterError before any kernel starts, for what the model, the text or this machine cannot give.
    """
    key = run_key(notebook, values)
    folder = run_folder(notebook, key)
    if finished(notebook, key) and not again:
        print(f"{notebook}: finished before ({folder.name}), not run again", flush=True)
        return folder
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    source, running = folder / "notebook.source.ipynb", folder / "notebook.running.ipynb"
    nbformat.write(jupytext.read(NOTEBOOK_FOLDER / f"{notebook}.py"), source)
    print(f"{notebook}: running as {folder.name} (profile {values.profile})", flush=True)
    began = time.monotonic()
    try:
        with own_kernel() as kernel:
            papermill.execute_notebook(
                source, running, parameters=values.model_dump(), kernel_name=kernel, progress_bar=True,
                execution_timeout=cell_timeout, stdout_file=sys.stdout, stderr_file=sys.stderr,
            )  # fmt: skip
    except PapermillExecutionError as error:
        print(f"{notebook}: {error.ename}: {error.evalue}\n(see {running})", file=sys.stderr)
        return None
    finally:
        source.unlink(missing_ok=True)
    give_name(running, folder / "notebook.ipynb")
    print(f"{notebook}: done in {time.monotonic() - began:.0f} s", flush=True)
    return folder


@contextlib.contextmanager
def own_kernel() -> Iterator[str]:
    """Yield the name of a kernel that is this interpreter, whatever kernels of that name others have installed."""
    with tempfile.TemporaryDirectory(prefix="rkcnn-kernel-") as folder:
        about = Path(folder) / "kernels" / "python3" / "kernel.json"
        about.parent.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about.write_text(
            json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}), encoding="utf-8"
        )
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
        try:
            yield "python3"
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before
