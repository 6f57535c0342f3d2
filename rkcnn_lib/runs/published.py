"""What parameters name that was made before: SAEs that others trained, here or on the hub, and finished sweeps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rkcnn_lib.files import read_json
from rkcnn_lib.runs.fields import ParameterError
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.sae import SAE, load_saelens
from rkcnn_lib.sae.disk import CONFIG_FILE, WEIGHTS_FILE
from rkcnn_lib.worlds.models.hub import ModelUnavailable, fetched

CENTRED = "#centred"


def folder_of(spec: str) -> Path:
    """Return an SAE's folder, a local one or ``owner/repository:path`` on the hub; raise ParameterError if none is."""
    name = spec.removesuffix(CENTRED)
    local = Path(name).expanduser()
    if (local / CONFIG_FILE).is_file():
        return local
    if ":" not in name:
        raise ParameterError(f"published = {spec!r}: no folder with a cfg.json (on the hub: 'owner/repository:path')")
    repository, path = name.split(":", 1)
    weights = f"{path}/{WEIGHTS_FILE}"
    files = [f"{path}/{CONFIG_FILE}", weights]
    try:
        folder = fetched(repository, None, files, lambda here: None if (here / weights).is_file() else weights)
    except ModelUnavailable as error:
        raise ParameterError(f"published = {spec!r}: {error}") from error
    if not (folder / weights).is_file():
        raise ParameterError(f"published = {spec!r}: the repository has no {weights}")
    return folder / path


def open_published(p: SaeCompare, d_in: int) -> dict[str, tuple[Path, SAE]]:
    """Return each SAE that is asked for; raise ParameterError for one that is not there, damaged or of another width.

    Its name is that of its folder, after as much of the path as tells it from the others and from the arms: SAELens
    names folders after hooks, so those of two trainings have the same name.
    """
    opened: dict[tuple[str, ...], tuple[Path, SAE]] = {}
    for spec in p.published:
        folder = folder_of(spec)
        try:
            sae = load_saelens(folder)
        except ValueError as error:
            raise ParameterError(f"published = {spec!r}: {error}") from error
        if sae.config.d_in != d_in:
            raise ParameterError(
                f"published = {spec!r} reads {sae.config.d_in} dimensions; the activations have {d_in}: "
                "is it of this model, layer and hook?"
            )
        opened[_path_of(spec, folder)] = folder, sae
    others = [(arm,) for arm in p.arms]
    return {_shortest_end(path, [*opened, *others]): folder_and_sae for path, folder_and_sae in opened.items()}


def _path_of(spec: str, folder: Path) -> tuple[str, ...]:
    """Return the parts of a published SAE's path: here from the root on, on the hub from the owner on."""
    name = spec.removesuffix(CENTRED)
    local = folder == Path(name).expanduser()
    parts = Path(os.path.abspath(folder) if local else name.replace(":", "/", 1)).parts
    return (*parts[:-1], parts[-1] + spec[len(name) :])


def _shortest_end(path: tuple[str, ...], among: list[tuple[str, ...]]) -> str:
    """Return the shortest end of a path that no other ends in; all of it, if all of it is the end of another."""
    alone = (n for n in range(1, len(path)) if sum(other[-n:] == path[-n:] for other in among) == 1)
    return "/".join(path[-next(alone, len(path)) :])


@dataclass(frozen=True)
class SweepTables:
    """A finished sweep: its metrics (one row a cell and metric), what was swept, how many cells failed."""

    metrics: pd.DataFrame
    swept: list[str]
    n_settings: int
    n_failed: int


def read_tables(folder: str | Path) -> SweepTables:
    """Read the folder that ``rkcnn sweep --out`` wrote; raise ParameterError if it holds no finished, whole sweep."""
    folder = Path(folder).expanduser()
    about, table = folder / "sweep.json", folder / "metrics.parquet"
    if not (about.is_file() and table.is_file()):
        how = "`rkcnn sweep FILE --out FOLDER` writes one"
        raise ParameterError(f"sweep = {str(folder)!r}: no finished sweep there; {how}")
    try:
        sweep = read_json(about)
        n_settings, n_failed = len(sweep["settings"]), sweep["counts"]["failed"]
        return SweepTables(pd.read_parquet(table), sweep["swept"], n_settings, n_failed)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ParameterError(f"sweep = {str(folder)!r} is damaged: {error}") from None
