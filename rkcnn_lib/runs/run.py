"""Runs of notebooks: executed by papermill, with checked parameters, a folder, provenance, gates, verdicts.

``outputs/runs/NOTEBOOK/KEY/`` holds ``run.json`` (parameters, gate, verdicts, provenance), ``metrics.parquet``
(tidy) and, when papermill ran it, the executed ``notebook.ipynb``. The key is a hash of the resolved
parameters, the model's files and the code's version, so the same question asked twice lands in the same folder.
"""

import contextlib
import functools
import html
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML, display

from rkcnn_lib.files import digest, give_name, outputs_root, sha256_of, write_json, write_whole
from rkcnn_lib.runs.gates import all_passed, earlier_gates, next_number, read_run
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import NOTEBOOK_FOLDER, NOTEBOOKS, ROOT, ParameterError, check_notebook, resolve
from rkcnn_lib.runs.published import read_tables
from rkcnn_lib.runs.schemas import NOT_DECIDING, Parameters
from rkcnn_lib.worlds import pick_device
from rkcnn_lib.worlds.toy import INVENTED_MODELS

PACKAGES = ("torch", "transformer-lens", "transformers", "scikit-learn", "numpy", "scipy", "plotly", "papermill")


class GateFailed(RuntimeError):
    """An earlier notebook's gate failed, so what this one would show rests on nothing."""


@dataclass(frozen=True)
class Check:
    """One requirement of a gate: what was measured, what was asked of it, what chance gives."""

    name: str
    value: float | int | str
    requirement: str
    passed: bool
    chance: float | str | None = None


def run_key(notebook: str, values: Parameters, identity: dict[str, Any] | None = None) -> str:
    """Hash what decides a run: parameters (not the device), :func:`input_identity`, the code, the notebook."""
    identity = identity or input_identity(notebook, values)
    source = (NOTEBOOK_FOLDER / f"{notebook}.py").read_text(encoding="utf-8")
    return digest([notebook, values.model_dump(exclude=NOT_DECIDING), identity, code_version(), source])


def input_identity(notebook: str, values: Parameters) -> dict[str, Any]:
    """Return what identifies the model, the local text and the sweep that parameters name.

    Raises ParameterError if one of them or the memory cannot give what is asked for, or the notebook needs a language
    model and is given activations made here; ModelUnavailable if the model is neither here nor can it be fetched.
    """
    model, text, sweep = (getattr(values, name, None) for name in ("model", "text", "sweep"))
    if model in INVENTED_MODELS and notebook != "04_sae_compare":
        raise ParameterError(f"model = {model!r}: no language model; only 04_sae_compare and sweeps run on it")
    facts = check(values)
    if facts is None:
        return {"model": model and {"name": model}}
    read: dict[str, Any] = {"text": text}
    if text not in (None, "auto", "atlas"):
        path = Path(text).expanduser()
        read = {"text": str(path.resolve()), "size": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    identity: dict[str, Any] = {"model": asdict(facts), "text": read}
    if sweep:
        read_tables(sweep)  # raises if it is damaged
        identity["sweep"] = sha256_of(Path(sweep).expanduser() / "metrics.parquet")
    return identity


def run_folder(notebook: str, key: str) -> Path:
    return outputs_root() / "runs" / notebook / key


def finished(notebook: str, key: str) -> bool:
    """Say whether this very run is finished and its executed notebook there."""
    folder = run_folder(notebook, key)
    return (read_run(folder) or {}).get("status") == "finished" and (folder / "notebook.ipynb").is_file()


def execute(notebook: str, values: Parameters, again: bool = False, cell_timeout: int | None = None) -> Path | None:
    """Run a notebook with papermill, unless this very run is finished; return its folder, or None if a cell failed.

    What :func:`input_identity` raises is raised before any kernel starts.
    """
    import jupytext
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    key = run_key(notebook, values)
    folder = run_folder(notebook, key)
    if finished(notebook, key) and not again:
        print(f"{notebook}: finished before ({folder.name}), not run again", flush=True)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    source, running = folder / "notebook.source.ipynb", folder / "notebook.running.ipynb"  # stays if it fails
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
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    before = os.environ.get("JUPYTER_PATH", "")
    with tempfile.TemporaryDirectory(prefix="rkcnn-kernel-") as folder:
        about = Path(folder) / "kernels" / "python3" / "kernel.json"
        write_json(about, {"argv": command, "display_name": "Python 3", "language": "python"})
        os.environ["JUPYTER_PATH"] = f"{folder}{os.pathsep}{before}".rstrip(os.pathsep)
        try:
            yield "python3"
        finally:
            os.environ["JUPYTER_PATH"] = before


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(ROOT), *words]
    try:
        return subprocess.check_output(command, encoding="utf-8", stderr=subprocess.DEVNULL, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_version() -> str:
    """Return git's own hash of the package, with what was changed since; without a checkout the package's version."""
    # pages must be of the code that they name; units have versions of their own
    tree, changed = _git("rev-parse", "HEAD:rkcnn_lib"), _git("diff", "HEAD", "--", "rkcnn_lib")
    return metadata.version("rkcnn") if tree is None else digest([tree, changed])


def provenance(device: str) -> dict[str, Any]:
    """Return what a reader needs to run this again."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
    }


class Run:
    """One run of a notebook: its checked parameters ``p``, its device and its record."""

    def __init__(self, notebook: str, values: Parameters):
        self.notebook, self.p = notebook, values
        identity = input_identity(notebook, values)
        self.key = run_key(notebook, values, identity)
        self.device = str(pick_device(values.device))
        self.folder = run_folder(notebook, self.key)
        self._began = time.monotonic()
        self._tables: list[pd.DataFrame] = []
        self.record: dict[str, Any] = {
            "format": 1, "notebook": notebook, "key": self.key, "profile": values.profile,
            "status": "running", "headline": None, "parameters": values.model_dump(),
            "gate": None, "verdicts": [], "data": None,
            "earlier_gates": earlier_gates(notebook, values.profile, getattr(values, "model", None)),
            "provenance": provenance(self.device), "model": identity["model"],
            "seeds": None, "started": _now(), "finished": None, "wall_seconds": None,
        }  # fmt: skip

    def note(self, **facts: Any) -> None:
        """Record facts such as ``data=store.manifest`` or ``seeds=[0, 1, 2]`` in run.json."""
        self.record.update(facts)
        write_json(self.folder / "run.json", self.record)

    def metrics(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add tidy rows (arm, seed, layer, metric, value ...) to metrics.parquet and return them."""
        if table.empty:  # its columns have no types, and would make text of everybody's numbers
            return table
        self._tables.append(table)
        everything = pd.concat(self._tables, ignore_index=True)
        texts = everything.select_dtypes(["object", "string"]).columns
        everything[texts] = everything[texts].astype("string")  # one type a column: parquet needs it
        write_whole(self.folder / "metrics.parquet", everything.to_parquet)
        return table

    def gate(self, checks: list[Check]) -> None:
        """Judge and show this notebook's gate: PASS if every check passed."""
        verdict = "PASS" if all(check.passed for check in checks) else "FAIL"
        self.note(gate={"verdict": verdict, "checks": [asdict(check) for check in checks]})
        rows = [asdict(check) | {"passed": "yes" if check.passed else "no"} for check in checks]
        shown = pd.DataFrame(rows).fillna("").to_html(index=False, float_format="{:.4g}".format, border=0)
        display(HTML(f"<p><b>Gate of {html.escape(self.notebook)}: {verdict}</b></p>{shown}"))

    def verdicts(self, contrasts: list[Any]) -> pd.DataFrame:
        """Record the contrasts behind each hypothesis's verdict and return them as a table."""
        gated = all_passed(self.record["earlier_gates"])
        rows = [dict(row) | {"gated": gated} for row in contrasts]
        self.note(verdicts=rows)
        return pd.DataFrame(rows)

    def finish(self, headline: str) -> None:
        """Close the run with one sentence that answers the notebook's question."""
        self.note(headline=headline, status="finished", finished=_now(), number=next_number(self.notebook),
                  wall_seconds=round(time.monotonic() - self._began, 1))  # fmt: skip
        display(HTML(f"<p><b>{html.escape(headline)}</b></p>"))


def start_run(notebook: str, namespace: dict[str, Any]) -> Run:
    """Check the parameters in a notebook's ``globals()``, show provenance and earlier gates, and open its run folder.

    Raises ParameterError for an unknown name or a value out of range; GateFailed if an earlier notebook's gate failed
    under the same profile and ``force`` is False.
    """
    cells = [source for source in namespace.get("In", []) if source.startswith("# Parameters\n")]
    injected = re.findall(r"^(\w+) = ", "\n".join(cells), re.MULTILINE)  # by papermill, misspelt names included
    asked = (*NOTEBOOKS[check_notebook(notebook)].model_fields, *injected)
    values = resolve(notebook, {name: namespace[name] for name in asked if name in namespace})
    run = Run(notebook, values)
    failed = [name for name, verdict in run.record["earlier_gates"].items() if verdict == "FAIL"]
    if failed and not values.force:
        raise GateFailed(
            f"the gate of {', '.join(failed)} failed under profile {values.profile!r}: see its page. "
            "To go on all the same, set force = True (rkcnn: --force); verdicts are then marked ungated."
        )
    run.note()
    _show_start(run)
    return run


def _show_start(run: Run) -> None:
    profile = run.p.profile.split("--")[0]
    if meaning := {"smoke": "sizes of seconds, no conclusions", "quick": "small models and few seeds"}.get(profile):
        display(HTML(f'<p class="banner"><b>A {profile} run:</b> {meaning}.</p>'))
    made = run.record["provenance"]
    gates = ", ".join(f"{name[:2]} {verdict}" for name, verdict in run.record["earlier_gates"].items())
    facts = {
        "run": f"{run.notebook}/{run.key}",
        "profile": run.p.profile,
        "commit": f"{(made['git_commit'] or 'unknown')[:10]}{' + uncommitted changes' if made['git_dirty'] else ''}",
        "device": f"{made['device']}, {made['threads']} threads",
        "versions": ", ".join(f"{name} {version}" for name, version in made["packages"].items()),
        "earlier gates": gates or "none: this is the first notebook",
    }
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    display(HTML(f'<table class="provenance">{rows}</table>'))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
