"""Finished pieces of work on disk: computed once, written whole or not at all, found again by their inputs.

A *unit* is one arm x seed x layer (or one mining, one toy model). It is found again by its kind, that kind's version
and its inputs. So a second run, a run with one more seed or a notebook that shares units with another recomputes
nothing; code that gives other numbers gets another version (a test holds a small result of every kind to it).
"""

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

from rkcnn_lib import files

# Every kind of unit with the version of the code that computes it. Raise a kind's number when its numbers change for
# the same inputs: units made before are then computed again, and no others.
VERSIONS = {
    "agreement": 4, "causal_saes": 1, "directions": 2, "fourier": 1, "frozen": 3, "labels": 4, "learning_rates": 3,
    "neighbourhoods": 2, "plane_mining": 1, "probing": 2, "probing_controls": 2, "probing_sizes": 3, "published": 3,
    "saes": 4, "seed_study": 1, "seed_study_models": 1, "toy_curves": 1, "toy_mining": 1, "toy_model_sets": 1,
    "toy_models": 1, "toy_noise": 1, "toy_planes": 1, "toy_scores": 1,
}  # fmt: skip
# Kinds whose inputs name the sizes of another kind's result instead of the result itself.
BUILT_ON = {
    "neighbourhoods": "toy_models", "plane_mining": "toy_planes", "probing": "toy_models",
    "probing_controls": "toy_models", "probing_sizes": "toy_models", "toy_curves": "toy_model_sets",
    "toy_mining": "toy_models", "toy_noise": "toy_models", "toy_scores": "toy_models",
}  # fmt: skip


@dataclass
class Unit:
    """What one piece of work left: single numbers, tidy tables, tensors and, where there is one, an SAE."""

    scalars: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None  # where it lies once saved
    save_extra: Callable[[Path], None] | None = None  # writes further files, e.g. an SAE in SAELens format


def unit_folder(kind: str, inputs: dict[str, Any]) -> Path:
    """Return where the unit of this kind with these inputs lies, whether it is finished or not."""
    versions = [VERSIONS[kind], VERSIONS.get(BUILT_ON.get(kind, ""))]
    return files.outputs_root() / "units" / kind / files.digest({"inputs": inputs, "versions": versions})


def cached_unit(kind: str, inputs: dict[str, Any], compute: Callable[[Path], Unit]) -> Unit:
    """Return the finished unit with these inputs, computing and saving it if there is none, or a damaged one.

    ``inputs`` are everything that decides the result but the code, as JSON can hold it. ``compute`` is given a scratch
    folder for checkpoints, which stays when the process dies.
    """
    folder = unit_folder(kind, inputs)
    scratch = folder.with_name(folder.name + ".scratch")
    if (unit := _whole(folder)) is not None:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed after it had saved
        return unit
    with files.alone_at(folder, f"is computing {kind}/{folder.name}"):
        if (unit := _whole(folder)) is not None:  # a killed run's workers may still have been at it
            return unit
        if folder.exists():
            files.remove_folder(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        unit = compute(scratch)
        with files.whole_folder(folder) as part:
            for name, table in unit.tables.items():
                table.to_parquet(part / f"{name}.parquet")
            if unit.arrays:
                on_cpu = {name: array.detach().cpu().contiguous() for name, array in unit.arrays.items()}
                save_file(on_cpu, part / "arrays.safetensors")
            if unit.save_extra:
                unit.save_extra(part)
            files.write_json(part / "unit.json", {"kind": kind, "inputs": inputs, "scalars": unit.scalars})
        shutil.rmtree(scratch, ignore_errors=True)
    return load_unit(folder)


def _whole(folder: Path) -> Unit | None:
    """Return the finished unit, or None if there is none; one that is damaged is named and taken for none."""
    if not folder.exists():
        return None
    try:
        return load_unit(folder)
    except files.DamagedFile as error:
        print(f"{error}: computed again", file=sys.stderr, flush=True)
        return None


def unit_scalars(folder: Path) -> dict[str, Any]:
    """Read only the single numbers of a finished unit; raise DamagedFile if that cannot be done."""
    try:
        return files.read_json(folder / "unit.json")["scalars"]
    except (files.DamagedFile, KeyError, OSError) as error:
        raise files.DamagedFile(f"the unit {folder} is damaged ({error})") from None


def load_unit(folder: Path) -> Unit:
    """Read a finished unit back from its folder; raise DamagedFile if that cannot be done."""
    arrays = folder / "arrays.safetensors"
    try:
        tables = {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}
        return Unit(unit_scalars(folder), tables, load_file(arrays) if arrays.is_file() else {}, folder)
    except (ArrowInvalid, SafetensorError, OSError) as error:
        raise files.DamagedFile(f"the unit {folder} is damaged ({error})") from None
