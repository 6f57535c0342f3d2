"""Gates of earlier notebooks: looked up when a notebook starts, and again when pages are made of its run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rkcnn_lib.files import DamagedFile, outputs_root, read_json
from rkcnn_lib.runs.params import NOTEBOOKS
from rkcnn_lib.worlds.toy import INVENTED_MODELS

PASS, NOT_RUN = "PASS", "NOT RUN"
Recorded = tuple[Path, dict[str, Any]]  # a run's folder and its run.json


class _Gate(BaseModel):
    verdict: str | None = None
    checks: list[dict[str, Any]] | None = None


class _Made(BaseModel):
    git_commit: str | None = None


class _Record(BaseModel):
    """What those fields of a run.json are that others look into; any of them may be missing or null."""

    notebook: str | None = None
    profile: str | None = None
    key: str | None = None
    variant: str | None = None
    parameters: dict[str, Any] | None = None
    gate: _Gate | None = None
    earlier_gates: dict[str, Any] | None = None
    gates_since: list[str] | None = None
    verdicts: list[dict[str, Any]] | None = None
    strongest: list[dict[str, Any]] | None = None
    provenance: _Made | None = None
    model: dict[str, Any] | None = None
    seeds: list[Any] | None = None


def own_file(folder: Path, name: str) -> Path | None:
    """Return a file of a run folder, None if it has none; what a link leads to is not the run's to read or publish."""
    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DamagedFile(f"{path} is a link or no file: a run's files lie in its own folder, put a copy there")
    return path if path.exists() else None


def record_of(folder: Path) -> dict[str, Any] | None:
    """Return a run folder's ``run.json``, None if it has none; raise DamagedFile if a field is of another kind."""
    path = own_file(folder, "run.json")
    if path is None:
        return None
    record = read_json(path)
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedFile(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return record


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return a run folder's ``run.json``; None if it has none, or a damaged one, which is named."""
    try:
        return record_of(folder)
    except (DamagedFile, OSError) as error:
        print(f"{error}: this run counts as not finished", file=sys.stderr)
        return None


def judged(record: dict[str, Any]) -> str:
    """Return PASS, FAIL, or NOT RUN where a run has judged no gate."""
    return (record.get("gate") or {}).get("verdict") or NOT_RUN


def all_passed(gates: dict[str, str]) -> bool:
    """Whether every earlier gate was run and passed; if not, verdicts are marked *ungated*."""
    return all(verdict == PASS for verdict in gates.values())


def latest_run(notebook: str, profile: str) -> Path | None:
    """Return the folder of the run of this notebook and profile that finished last, or None."""
    return _latest(_kept(notebook), notebook, profile)[0]


def next_number(notebook: str) -> int:
    """Return a number above those of all runs of this notebook: it tells the last although a clock went back."""
    return 1 + max((record.get("number") or 0 for _, record in _kept(notebook)), default=0)


def earlier_gates(notebook: str, profile: str, model: str | None = None) -> dict[str, str]:
    """Return PASS, FAIL or NOT RUN for each notebook before this one, under the same profile and model.

    Runs on another model are passed over; notebooks that name no model always count. Activations made here are no
    model's: 03, which captures a model's, has no gate for them.
    """
    before = [name for name in list(NOTEBOOKS)[: list(NOTEBOOKS).index(notebook)] if _applies(name, model)]
    return {name: judged(_latest(_kept(name), name, profile, model)[1]) for name in before}


def gates_since(record: dict[str, Any], others: list[Recorded]) -> dict[str, Any]:
    """Return a run's record with the gates that were NOT RUN when it started as ``others`` have judged them since.

    A gate says whether a method works, not what came out, so it counts the same before and after. What failed stays
    failed. ``gates_since`` in the result names the gates that came later, for pages to say so.
    """
    profile, model = str(record.get("profile")), (record.get("parameters") or {}).get("model")
    gates = {name: verdict for name, verdict in (record.get("earlier_gates") or {}).items() if _applies(name, model)}
    missing = [name for name, verdict in gates.items() if verdict == NOT_RUN]
    came = {name: judged(_latest(others, name, profile, model)[1]) for name in missing}
    came = {name: verdict for name, verdict in came.items() if verdict != NOT_RUN}
    if not came:
        return record
    gates |= came
    verdicts = [row | {"gated": all_passed(gates)} for row in record.get("verdicts") or []]
    return record | {"earlier_gates": gates, "gates_since": sorted(came), "verdicts": verdicts}


def _applies(notebook: str, model: str | None) -> bool:
    return notebook != "03_gpt2_cache" or model not in INVENTED_MODELS


def _kept(notebook: str) -> list[Recorded]:
    folders = [path.parent for path in (outputs_root() / "runs" / notebook).glob("*/run.json")]
    return [(folder, record) for folder in folders if (record := read_run(folder))]


def _latest(
    runs: list[Recorded], notebook: str, profile: str, model: str | None = None
) -> Recorded | tuple[None, dict[str, Any]]:
    """Return the run of a notebook that finished last, among those of a profile (without variant) and a model."""
    fitting = [
        (folder, record)
        for folder, record in runs
        if record.get("notebook") == notebook
        and record.get("profile") == profile.split("--")[0]
        and record.get("status") == "finished"
        and (model is None or (record.get("parameters") or {}).get("model", model) == model)
    ]
    return max(fitting, key=lambda run: (run[1].get("number") or 0, str(run[1].get("finished"))), default=(None, {}))
