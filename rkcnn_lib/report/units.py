"""Finished pieces of work on disk: computed once, written whole or not at all, found again by their inputs.

A *unit* is one arm x seed x layer (or one mining, one toy model). Its key is a hash of everything that decides
its numbers: the inputs given and the code that computes it. So a second run, a run with one more seed or a
notebook that shares units with another recomputes nothing, and a change of code never meets a stale number.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from rkcnn_lib.worlds.store import outputs_root

PACKAGE = Path(__file__).resolve().parents[1]
# What a unit's numbers depend on; report/ only arranges and shows them, but for the module named.
COMPUTING = ("probe", "sae", "measure", "worlds", "report/studies", "tensors.py")


def digest(value: Any) -> str:
    """Return a 16-digit hash of anything JSON can hold; key order does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.startswith(f"{PACKAGE.name}.")}
    parents = {name.rsplit(".", depth)[0] for name in ours for depth in range(1, name.count("."))}
    return {_file_of(name) for name in ours | parents}


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_documented and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]
    return ast.dump(tree)


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
    if not (folder / "unit.json").is_file():
        with _alone_at(folder):
            if not (folder / "unit.json").is_file():
                scratch = folder.with_name(folder.name + ".scratch")
                scratch.mkdir(parents=True, exist_ok=True)
                _save(compute(scratch), folder, {"kind": kind, "inputs": inputs})
                shutil.rmtree(scratch)
    return load_unit(folder)


@contextmanager
def _alone_at(folder: Path) -> Iterator[None]:
    """Let one process at a time compute a unit: a killed run's workers may still be at it when the next one starts.

    The operating system frees the lock when its holder dies.
    """
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the process that computes {folder.parent.name}/{folder.name}", flush=True)
        lock.acquire()
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        lock.release()


def _save(unit: Unit, folder: Path, about: dict[str, Any]) -> None:
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, table in unit.tables.items():
        table.to_parquet(part / f"{name}.parquet")
    if unit.arrays:
        save_file({k: v.detach().cpu().contiguous() for k, v in unit.arrays.items()}, part / "arrays.safetensors")
    if unit.save_extra:
        unit.save_extra(part)
    (part / "unit.json").write_text(json.dumps(about | {"scalars": unit.scalars}, indent=1, default=str))
    part.rename(folder)  # atomic: a unit is there whole or not at all


def unit_scalars(folder: Path) -> dict[str, Any]:
    """Read only the single numbers of a finished unit."""
    return json.loads((folder / "unit.json").read_text())["scalars"]


def load_unit(folder: Path) -> Unit:
    """Read a finished unit back from its folder."""
    arrays = folder / "arrays.safetensors"
    return Unit(
        scalars=unit_scalars(folder),
        tables={path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")},
        arrays=load_file(arrays) if arrays.is_file() else {},
        folder=folder,
    )
