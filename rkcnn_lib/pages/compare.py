"""The comparison page: key metrics of every run of a site in one table, a row for each arm of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rkcnn_lib.figures.style import METRIC_LABELS, style_of
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.pages.page import Page
from rkcnn_lib.runs.gates import own_file


class Measure(NamedTuple):
    """One column of numbers: which rows of a run's metrics it is made of, and how it is called."""

    key: str  # of the column, shared by notebooks that measure the same
    better: str = ""  # "higher", "lower" or neither
    named: str | None = None  # as metrics.parquet names it, if not as the key
    where: dict[str, Any] = {}  # noqa: RUF012 (values that other columns must have; None: empty, or no such column)
    label: str | None = None

    @property
    def heading(self) -> str:
        """The header of its column: its name with its unit, and an arrow that says which way is better."""
        label = self.label or METRIC_LABELS.get(self.key, self.key)
        return label + {"higher": " ↑", "lower": " ↓"}.get(self.better, "")


class Layout(NamedTuple):
    """How one notebook's metrics are told apart: the columns of arm and part, and the measures worth a column.

    A part is what only like is compared with like in: the layer in 05, the world in 02.
    """

    arm: str | None
    part: str | None
    measures: tuple[Measure, ...]


class Cell(NamedTuple):
    """One number: the mean over seeds, its 95 % interval where there are two seeds or more, chance if known."""

    mean: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None


@dataclass
class Row:
    """One arm of one run (or the run itself, where it has no arms)."""

    page: Page
    arm: str
    part: str
    model: str
    place: str
    cells: dict[str, Cell]  # by key of the measure

    def __post_init__(self) -> None:
        self.run = self.page.file.removesuffix(".html")  # what the run is called in the page
        self.colour = style_of(self.arm).colour  # the arm's in every figure


def _all(better: str, *keys: str, **where: Any) -> tuple[Measure, ...]:
    return tuple(Measure(key, better, where=where) for key in keys)


_SAE = (*_all("higher", "explained_variance", "live"), *_all("lower", "dead", "untrained_dead", "delta_ce"))
_ACCURACY = "higher", "balanced_accuracy"
LAYOUTS = {
    # the curves over other settings hold the same metrics: they have an ``axis``
    "01_toy_superposition": Layout(
        "miner", None,
        _all("higher", "matched_cosine", "recovery_rate", "precision", axis=None, probability=None),
    ),
    "02_probe_validation": Layout("group", "world", (
        Measure("accuracy_knn", *_ACCURACY, {"probe": ("kNN", "RkCNN")},
                "balanced accuracy, nearest neighbours (share)"),
        Measure("accuracy_logistic", *_ACCURACY, {"probe": ("logistic",)}, "balanced accuracy, logistic (share)"),
    )),
    "03_gpt2_cache": Layout(None, None, (
        Measure("model_loss", "lower", "loss", label="loss of the model (nats a token)"),
        Measure("gamma"),
        Measure("beyond_null", "", "share_of_directions_beyond_null", label="directions beyond their null (share)"),
    )),
    "04_sae_compare": Layout("arm", None, (
        *_SAE, Measure("l0_at_equal_ev", "lower"), Measure("pw_mcc", "higher", "PW-MCC, whitened after training"),
    )),
    "05_multilayer": Layout("arm", "layer", (*_SAE, Measure("pw_mcc", "higher"))),
    "06_causal_checks": Layout("subspace", None, _all("higher", "cause", "isolate", "disentangle")),
}  # fmt: skip


def comparison(rows: list[Row]) -> dict[str, Any]:
    """What the page's template needs, of all runs' rows in the order of the pages."""
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

    ValueError if its ``metrics.parquet`` cannot be read.
    """
    parameters, layout = page.record.get("parameters") or {}, LAYOUTS.get(page.notebook)
    model = str((page.record.get("model") or {}).get("name") or parameters.get("model") or "")
    by_layer = layout is not None and layout.part == "layer"  # else a part is a world: 02 has no model but those
    rows = []
    for (arm, part), cells in (_units(layout, folder) or {("", ""): {}}).items():
        layer = part if by_layer and part else parameters.get("layer")
        where = [f"layer {layer}"] if layer is not None else []
        where += [str(parameters["hook"])] if parameters.get("hook") else []
        rows.append(Row(page, arm, part, model if by_layer else part or model, ", ".join(where), cells))
    return rows


def _units(layout: Layout | None, folder: Path) -> dict[tuple[str, str], dict[str, Cell]]:
    """Cells by (arm, part), in the order in which the metrics name them."""
    path = own_file(folder, "metrics.parquet")
    if layout is None or path is None:
        return {}
    try:
        table = pd.read_parquet(path).reset_index(drop=True)
    except Exception as error:  # pyarrow raises several kinds
        raise ValueError(f"{path} cannot be read as a table of metrics: {error}") from error
    if not {"metric", "value", *filter(None, layout[:2])} <= set(table.columns):
        return {}
    # What lacks the arm that this notebook tells apart is summed up elsewhere.
    arms, parts = (table[name].map(_name) if name else pd.Series("", table.index) for name in layout[:2])
    kept = table["value"].notna() & ((arms != "") | (layout.arm is None))
    units: dict[tuple[str, str], dict[str, Cell]] = {}
    for measure in layout.measures:
        measured = table[kept & (table["metric"].astype(str) == (measure.named or measure.key))]
        for column, wanted in measure.where.items():
            values = measured.get(column, pd.Series(index=measured.index, dtype=object))
            measured = measured[values.isna() if wanted is None else values.isin(wanted)]
        for unit, rows in measured.groupby([arms, parts], sort=False):
            if (cell := _cell(rows)) is not None:
                units.setdefault(unit, {})[measure.key] = cell
    return dict(sorted(units.items(), key=lambda item: item[0][1]))


def _name(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(rows: pd.DataFrame) -> Cell | None:
    """Mean over seeds of the mean within each: labels and pairs of one seed are no replication."""
    seeded = "seed" in rows and rows["seed"].notna().all()
    values = (rows.groupby("seed")["value"].mean() if seeded else rows["value"]).to_numpy(dtype=float)
    if not np.isfinite(values).all():
        return None
    chance = rows["chance_mean"].mean() if "chance_mean" in rows else np.nan
    mean, low, high = mean_interval(values) if seeded and len(values) >= 2 else (values.mean(), None, None)
    return Cell(*(None if number is None or pd.isna(number) else float(number) for number in (mean, low, high, chance)))
