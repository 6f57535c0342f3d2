"""Finished pieces of work on disk: computed once, written whole or not at all, found again by their inputs.

A *unit* is one arm x seed x layer (or one mining, one toy model). Its key is a hash of everything that decides
its numbers: the inputs given and the code that computes it. So a second run, a run with one more seed or a
notebook that shares units with another recomputes nothing, and a change of code never meets a stale number.
"""

from __future__ import annotations

import ast
import functools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pyarrow import ArrowInvalid
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rkcnn_lib.files import (
    DamagedFile,
    alone_at,
    digest,
    outputs_root,
    read_json,
    remove_folder,
    whole_folder,
    write_json,
)

PACKAGE = Path(__file__).resolve().parents[1]
# What a unit's numbers depend on; report/ only arranges and shows them, but for the module named.
COMPUTING = ("probe", "sae", "measure", "worlds", "report/studies", "tensors.py")


@functools.cache
def fingerprint(*places: str) -> str:
    """Hash the code under ``rkcnn_lib`` (all of it, or the places named), without comments and docstrings.

    A reworded docstring must not throw away hours of finished units; a changed statement must.
    """
    return digest([(str(path.relative_to(PACKAGE)), _code(path)) for path in _files(*places or (".",))])


def _files(*places: str) -> list[Path]:
    files: list[Path] = []
    for place in places:
        path = PACKAGE / place
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


@functools.cache
def code_behind(module: str) -> tuple[str, ...]:
    """Return the files of :data:`COMPUTING` that a module rests on, itself among them, as `fingerprint` takes them.

    A figure's new title must not throw away SAEs: a unit depends on what the module that computes it imports, directly
    or not, inside functions or not. A module from elsewhere may depend on everything.
    """
    computing = {path.relative_to(PACKAGE) for path in _files(*COMPUTING)}
    found: set[Path] = set()
    waiting = {_file_of(module)} & computing
    if not waiting:
        return COMPUTING
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= (_imports(PACKAGE / file) & computing) - found
    return tuple(sorted(map(str, found)))


def _file_of(module: str) -> Path:
    """Return where a module of the package lies in it; one that is not there gives a file that is not there."""
    path = Path(*module.split(".")[1:])
    return path / "__init__.py" if (PACKAGE / path).is_dir() else path.with_suffix(".py")


def _imports(path: Path) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith(f"{PACKAGE.name}.")}
    parents = {name.rsplit(".", depth)[0] for name in ours for depth in range(1, name.count("."))}
    return {_file_of(name) for name in ours | parents}


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_documented and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]
    return ast.dump(tree)


class DamagedUnit(DamagedFile):
    """A finished unit whose files cannot be read."""


@dataclass
class Unit:
    """What one piece of work left: single numbers, tidy tables, tensors and, where there is one, an SAE."""

    scalars: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None  # where it lies once saved
    save_extra: Callable[[Path], None] | None = None  # writes further files, e.g. an SAE in SAELens format


def unit_folder(kind: str, inputs: dict[str, Any], computed_by: Callable[..., Any]) -> Path:
    """Return where the unit of this kind with these inputs lies, whether it is finished or not."""
    code = fingerprint(*code_behind(computed_by.__module__))
    return outputs_root() / "units" / kind / digest({"inputs": inputs, "code": code})


def cached_unit(
    kind: str, inputs: dict[str, Any], compute: Callable[[Path], Unit], computed_by: Callable[..., Any] | None = None
) -> Unit:
    """Return the finished unit with these inputs, computing and saving it if there is none.

    Parameters
    ----------
    kind : str
        Name of the folder under ``outputs/units``.
    inputs : dict
        Everything that decides the result, as JSON can hold it.
    compute : callable
        Called with a scratch folder (for checkpoints, kept when the process dies) if the unit is not there.
    computed_by : callable, optional
        Whose module, with all that it imports, is the code behind the numbers; ``compute`` itself by default. Needed
        where ``compute`` only passes on a function of another module.
    """
    folder = unit_folder(kind, inputs, computed_by or compute)
    scratch = folder.with_name(folder.name + ".scratch")
    if (unit := _whole(folder)) is not None:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed after it had saved
        return unit
    with alone_at(folder, f"is computing {kind}/{folder.name}"):
        if (unit := _whole(folder)) is not None:  # a killed run's workers may still have been at it
            return unit
        if folder.exists():
            remove_folder(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        _save(compute(scratch), folder, {"kind": kind, "inputs": inputs})
        shutil.rmtree(scratch, ignore_errors=True)
    return load_unit(folder)


def _whole(folder: Path) -> Unit | None:
    """Return the finished unit, or None if there is none; one that is damaged is named and taken for none."""
    if not folder.exists():
        return None
    try:
        return load_unit(folder)
    except DamagedUnit as error:
        print(f"{error}: computed again", file=sys.stderr, flush=True)
        return None


def _save(unit: Unit, folder: Path, about: dict[str, Any]) -> None:
    with whole_folder(folder) as part:
        for name, table in unit.tables.items():
            table.to_parquet(part / f"{name}.parquet")
        if unit.arrays:
            save_file({k: v.detach().cpu().contiguous() for k, v in unit.arrays.items()}, part / "arrays.safetensors")
        if unit.save_extra:
            unit.save_extra(part)
        write_json(part / "unit.json", about | {"scalars": unit.scalars})


def unit_scalars(folder: Path) -> dict[str, Any]:
    """Read only the single numbers of a finished unit; raise DamagedUnit if that cannot be done."""
    try:
        return read_json(folder / "unit.json")["scalars"]
    except (DamagedFile, KeyError, OSError) as error:
        raise DamagedUnit(f"the unit {folder} is damaged ({error})") from None


def load_unit(folder: Path) -> Unit:
    """Read a finished unit back from its folder; raise DamagedUnit if that cannot be done."""
    arrays, scalars = folder / "arrays.safetensors", unit_scalars(folder)
    try:
        return Unit(
            scalars=scalars,
            tables={path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")},
            arrays=load_file(arrays) if arrays.is_file() else {},
            folder=folder,
        )
    except (ArrowInvalid, SafetensorError, OSError) as error:
        raise DamagedUnit(f"the unit {folder} is damaged ({error})") from None
