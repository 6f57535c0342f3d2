"""The comparison page: key metrics of every run of a site in one table, a row for each arm of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rkcnn_lib.figures.style import METRIC_LABELS, style_of
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.runs.gates import own_file

if TYPE_CHECKING:
    from rkcnn_lib.pages.page import Page


@dataclass(frozen=True)
class Measure:
    """One column of numbers: which rows of a run's metrics it is made of, and how it is called.

    ``where`` names the values that other columns must have; a column that is None must be empty in a row, or
    not there at all. ``better`` is "higher", "lower", or "" where neither is.
    """

    key: str  # of the column, shared by notebooks that measure the same
    metric: str  # as metrics.parquet names it
    better: str = ""
    where: tuple[tuple[str, Any], ...] = ()
    label: str | None = None

    @property
    def said(self) -> str:
        """What it is called, with its unit."""
        return self.label or METRIC_LABELS.get(self.key, self.key)

    @property
    def heading(self) -> str:
        """The header of its column: the same with an arrow that says which way is better."""
        return self.said + {"higher": " ↑", "lower": " ↓"}.get(self.better, "")


@dataclass(frozen=True)
class Layout:
    """How one notebook's metrics are told apart: the columns of arm and part, and the measures worth a column.

    A part is what only like is compared with like in: the layer in 05, the world in 02.
    """

    arm: str | None
    part: str | None
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Cell:
    """One number: the mean over seeds, its 95 % interval where there are two seeds or more, chance if known."""

    mean: float
    low: float | None = None
    high: float | None = None
    n_seeds: int = 0
    chance: float | None = None


@dataclass
class Row:
    """One arm of one run (or the run itself, where it has no arms)."""

    page: Page
    arm: str = ""
    part: str = ""
    model: str = ""
    place: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)  # by key of the measure

    @property
    def run(self) -> str:
        """What the run is called in the page: its file without the ending."""
        return self.page.file.removesuffix(".html")

    @property
    def colour(self) -> str:
        """The arm's colour in every figure."""
        return style_of(self.arm).colour


# The curves over other settings hold the same metrics: they have an ``axis``.
_TOY = (("axis", None), ("probability", None))
_SAE = (
    Measure("explained_variance", "explained_variance", "higher"),
    Measure("live", "live", "higher"),
    Measure("dead", "dead", "lower"),
    Measure("untrained_dead", "untrained_dead", "lower"),
    Measure("delta_ce", "delta_ce", "lower"),
)
LAYOUTS: dict[str, Layout] = {
    "01_toy_superposition": Layout(
        "miner",
        None,
        (
            Measure("matched_cosine", "matched_cosine", "higher", _TOY),
            Measure("recovery_rate", "recovery_rate", "higher", _TOY),
            Measure("precision", "precision", "higher", _TOY),
        ),
    ),
    "02_probe_validation": Layout(
        "group",
        "world",
        (
            Measure(
                "accuracy_knn", "balanced_accuracy", "higher", (("probe", ("kNN", "RkCNN")),),
                "balanced accuracy, nearest neighbours (share)",
            ),
            Measure(
                "accuracy_logistic", "balanced_accuracy", "higher", (("probe", "logistic"),),
                "balanced accuracy, logistic (share)",
            ),
        ),
    ),
    "03_gpt2_cache": Layout(
        None,
        None,
        (
            Measure("model_loss", "loss", "lower", (), "loss of the model (nats a token)"),
            Measure("gamma", "gamma"),
            Measure("beyond_null", "share_of_directions_beyond_null", "", (), "directions beyond their null (share)"),
        ),
    ),
    "04_sae_compare": Layout(
        "arm",
        None,
        (
            *_SAE,
            Measure("l0_at_equal_ev", "l0_at_equal_ev", "lower"),
            Measure("pw_mcc", "PW-MCC after training", "higher"),
        ),
    ),
    "05_multilayer": Layout("arm", "layer", (*_SAE, Measure("pw_mcc", "pw_mcc", "higher"))),
    "06_causal_checks": Layout(
        "subspace",
        None,
        (
            Measure("cause", "cause", "higher"),
            Measure("isolate", "isolate", "higher"),
            Measure("disentangle", "disentangle", "higher"),
        ),
    ),
}  # fmt: skip


def comparison(rows: list[Row]) -> dict[str, Any]:
    """What the page's template needs: rows in the order of the pages, and the columns that any of them fills.

    Parameters
    ----------
    rows : list of Row
        Of all runs, see :func:`run_rows`.

    Returns
    -------
    dict
        ``rows`` (list of Row), ``measures`` (list of Measure), and the choices ``runs`` (list of Page),
        ``notebooks``, ``profiles`` and ``arms`` (lists of str).
    """
    filled = {key for row in rows for key in row.cells}
    known = {measure.key: measure for layout in LAYOUTS.values() for measure in layout.measures}
    return {
        "rows": rows,
        "measures": [measure for key, measure in known.items() if key in filled],
        "runs": list({row.run: row.page for row in rows}.values()),
        "notebooks": list(dict.fromkeys(row.page.notebook for row in rows)),
        "profiles": list(dict.fromkeys(row.page.profile for row in rows)),
        "arms": sorted({row.arm for row in rows if row.arm}),
    }


def run_rows(page: Page, folder: Path) -> list[Row]:
    """The rows of one run; one without numbers where its metrics hold none of the declared measures.

    Raises
    ------
    ValueError
        If its ``metrics.parquet`` cannot be read.
    """
    parameters = page.record.get("parameters") or {}
    model = str((page.record.get("model") or {}).get("name") or parameters.get("model") or "")
    layer, hook = parameters.get("layer"), parameters.get("hook")
    place = ", ".join([*([f"layer {layer}"] if layer is not None else []), *([str(hook)] if hook else [])])
    rows = []
    for arm, part, cells in _units(LAYOUTS.get(page.notebook), folder):
        row = Row(page, arm, part, model, place, cells)
        if part and page.notebook == "05_multilayer":
            row.place = ", ".join(["layer " + part, *([str(hook)] if hook else [])])
        elif part:
            row.model = part  # 02's worlds
        rows.append(row)
    return rows or [Row(page, model=model, place=place)]


def _units(layout: Layout | None, folder: Path) -> list[tuple[str, str, dict[str, Cell]]]:
    """(arm, part, cells) in the order in which the metrics name them."""
    path = own_file(folder, "metrics.parquet")
    if layout is None or path is None:
        return []
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises several kinds
        raise ValueError(f"{path} cannot be read as a table of metrics: {error}") from error
    if not {"metric", "value"} <= set(table.columns):
        return []
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for measure in layout.measures:
        part = _selected(table, measure)
        for unit, rows in _grouped(part, layout):
            if (cell := _cell(rows)) is not None:
                found.setdefault(unit, {})[measure.key] = cell
    return [(arm, part, cells) for (arm, part), cells in sorted(found.items(), key=lambda item: item[0][1])]


def _selected(table: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    kept = (table["metric"].astype(str) == measure.metric) & table["value"].notna()
    for column, wanted in measure.where:
        if column not in table:
            kept &= wanted is None
        elif wanted is None:
            kept &= table[column].isna()
        else:
            kept &= table[column].isin(wanted if isinstance(wanted, tuple) else (wanted,)).fillna(False)
    return table[kept.astype(bool)]


def _grouped(table: pd.DataFrame, layout: Layout) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Rows by (arm, part); what lacks the arm that this notebook tells apart is summed up elsewhere."""
    columns = [name for name in (layout.arm, layout.part) if name]
    if not columns:
        return [(("", ""), table)] if len(table) else []
    if not set(columns) <= set(table.columns):
        return []
    named = {name: table[name].map(_name) for name in columns}
    arm, part = named[columns[0]], named.get(layout.part, pd.Series("", index=table.index))
    groups = [(unit, rows) for unit, rows in table.groupby([arm.rename("a"), part.rename("p")], sort=False)]
    return [((str(unit[0]), str(unit[1])), rows) for unit, rows in groups if unit[0]]


def _name(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(rows: pd.DataFrame) -> Cell | None:
    """Mean over seeds of the mean within each: labels and pairs of one seed are no replication."""
    seeded = "seed" in rows and rows["seed"].notna().all()
    values = (rows.groupby("seed")["value"].mean() if seeded else rows["value"]).to_numpy(dtype=float)
    if not len(values) or not np.isfinite(values).all():
        return None
    chance = rows["chance_mean"].mean() if "chance_mean" in rows else np.nan
    cell = {"n_seeds": len(values) if seeded else 0, "chance": None if pd.isna(chance) else float(chance)}
    if seeded and len(values) >= 2:
        mean, low, high = mean_interval(values)
        return Cell(float(mean), float(low), float(high), **cell)
    return Cell(float(values.mean()), **cell)
