"""The cells of a sweep, what came of them, and the tables and the record that are written of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rkcnn_lib.files import write_json, write_whole
from rkcnn_lib.runs.run import provenance
from rkcnn_lib.runs.schemas import Multilayer
from rkcnn_lib.runs.units import VERSIONS
from rkcnn_lib.studies.sweep_file import Setting, Sweep

CELL = ("layer", "hook", "arm", "seed")


@dataclass(frozen=True)
class Cell:
    """One arm of one setting at one layer, hook and seed."""

    setting: Setting
    layer: int
    hook: str
    seed: int
    arm: str

    @property
    def p(self) -> Multilayer:
        """05's parameters for this cell."""
        return self.setting.p.model_copy(update={"hook": self.hook})

    @property
    def group(self) -> tuple[Any, ...]:
        """What the arms that are compared with each other share."""
        return self.setting.number, self.layer, self.hook, self.seed

    @property
    def columns(self) -> dict[str, Any]:
        """The cell's columns in the tables."""
        named = {"setting": self.setting.number} | self.setting.values | {"steps": self.setting.p.steps}
        return named | {name: getattr(self, name) for name in CELL}


@dataclass(frozen=True)
class Ended:
    """A cell and what came of it: the SAE's numbers and folder, or the stage that failed and why."""

    cell: Cell
    scalars: dict[str, Any]
    unit: str | None = None
    supply: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None


def finish(ended: list[Ended], planned: Sweep, out: Path) -> int:
    """Write the tables and say what came of the sweep."""
    tables = {"metrics": _metrics(ended), "times": _times(ended), "failures": _failures(ended)}
    failed, units = len(tables["failures"]), {e.unit for e in ended if e.unit}
    record = {
        "file": planned.file.model_dump(), "status": "failures" if failed else "finished",
        "counts": {"cells": len(ended), "failed": failed, "units": len(units)}, "swept": planned.swept,
        "settings": [{"setting": s.number} | s.values for s in planned.settings],
        "parameters": planned.p.model_dump(), "versions": VERSIONS, "provenance": provenance("cpu"),
    }  # fmt: skip
    try:
        for name, table in tables.items():
            write_whole(out / f"{name}.parquet", table.to_parquet)
        write_json(out / "sweep.json", record)
    except OSError as error:
        raise RuntimeError(
            f"{out} cannot be written: {error}. {len(ended) - failed} of {len(ended)} cells are finished and kept: "
            "go on with --resume"
        ) from None
    print(f"rkcnn: {len(ended) - failed} of {len(ended)} cells finished ({len(units)} distinct SAEs), {failed} failed; "
          f"tables in {out}")  # fmt: skip
    if failed:
        first = tables["failures"].iloc[0]
        print(f"rkcnn: the first failure: {first['error']}\nrkcnn: see failures.parquet; --resume tries them again")
    return int(failed > 0)


def _typed(ended: list[Ended], rows: list[dict[str, Any]], names: tuple[str, ...]) -> pd.DataFrame:
    """Return a table whose columns hold one kind of value each: parquet needs it, and 28 must not become 28.0."""
    return pd.DataFrame(rows, columns=[*ended[0].cell.columns, *names] if ended else None).convert_dtypes()


def _metrics(ended: list[Ended]) -> pd.DataFrame:
    rows = [
        e.cell.columns | {"metric": name, "value": float(value)}
        for e in ended
        for name, value in e.scalars.items()
        if name != "seconds"
    ]
    table = _typed(ended, rows, ("metric", "value"))
    return table.astype({"value": "float64"}) if len(table) else table


def _times(ended: list[Ended]) -> pd.DataFrame:
    names = ("mining_seconds", "training_seconds")
    rows = [
        e.cell.columns | dict(zip(names, ((e.supply or {}).get("seconds"), e.scalars["seconds"]), strict=True))
        for e in ended
        if e.scalars
    ]
    return _typed(ended, rows, names)


def _failures(ended: list[Ended]) -> pd.DataFrame:
    names = ("stage", "error", "traceback")
    rows = [e.cell.columns | {name: e.failure[name] for name in names} for e in ended if e.failure]
    return _typed(ended, rows, names)
