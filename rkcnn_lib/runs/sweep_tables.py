"""What a finished sweep left, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rkcnn_lib.files import read_json
from rkcnn_lib.runs.yaml_values import ParameterError


@dataclass(frozen=True)
class SweepTables:
    """A finished sweep: its metrics (one row a cell and metric), what was swept, how many cells failed."""

    metrics: pd.DataFrame
    swept: list[str]
    n_settings: int
    n_failed: int


def read_tables(folder: str | Path) -> SweepTables:
    """Read the folder that ``rkcnn sweep --out`` wrote.

    Raises
    ------
    ParameterError
        If there is no finished sweep in it.
    """
    folder = Path(folder).expanduser()
    about, table = folder / "sweep.json", folder / "metrics.parquet"
    if not (about.is_file() and table.is_file()):
        raise ParameterError(
            f"sweep = {str(folder)!r}: no finished sweep there; `rkcnn sweep FILE --out FOLDER` writes one"
        )
    record = read_json(about)
    return SweepTables(
        pd.read_parquet(table), record["swept"], len(record["settings"]), record["counts"]["failed"]
    )  # fmt: skip
