"""The comparison of initialisations that 04 and 05 run; what it is held against, others' SAEs; starts for others.

All arms of a seed share the rows that are mined, the order of training tokens, the held-out rows, and what fills the
latents that an arm cannot supply; each has the learning rate and the encoder that suit it best on a seed of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from rkcnn_lib.files import outputs_root, sha256_of, whole_folder, write_json
from rkcnn_lib.measure import quality
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.runs.published import CENTRED
from rkcnn_lib.runs.run import Run, provenance
from rkcnn_lib.runs.schemas import Comparison, SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit, load_unit, unit_scalars
from rkcnn_lib.sae import SAE, save_saelens
from rkcnn_lib.sae.disk import CONFIG_FILE, WEIGHTS_FILE
from rkcnn_lib.studies.activations import opened
from rkcnn_lib.studies.cells import about, initial_sae, matched_unit, mined_unit, rate_unit, searched, splice
from rkcnn_lib.vocabulary import ARMS, MINED, base_arm
from rkcnn_lib.worlds import pick_device

QUALITIES = ("explained_variance", "explained_variance_standardised", "dead", "live")  # shown along the budgets


@dataclass(frozen=True)
class Grid:
    """What a grid of cells left.

    ``supply`` has layer, arm, seed, supply, wanted, seconds, rows; of the arms that select also their funnel, summed
    over rounds (drawn, candidates, places, kept) and candidates_a_place, in the tightest round.
    """

    supply: pd.DataFrame
    folders: dict[tuple[int, str, int], Path]  # (layer, arm, seed) to its finished SAE unit
    rates: pd.DataFrame  # arm, lr, encoder, explained_variance, chosen: what suits each arm; empty without a search


def run_grid(
    stores: dict[int, Any], p: Comparison, device: str, trained: Sequence[str] | None = None,
    rates: pd.DataFrame | None = None,
) -> Grid:  # fmt: skip
    """Mine, train and measure every layer, seed and arm, several processes at once; finished units are only read.

    ``stores`` are the activations of each layer, ``trained`` the arms and variants to train if not all, ``rates`` a
    search for learning rates to go by (see :attr:`Grid.rates`) instead of one with these parameters.
    """
    arms = [arm for arm in (*p.arms, *p.variants) if trained is None or arm in trained]
    if rates is None:  # a search whose score selects nothing is refused before anything is trained
        searching = [arm for arm in arms if ARMS[base_arm(arm)].searches]
        mined = [(store, p, arm, 0, device) for store in stores.values() for arm in searching]
        run_cells(_mine, mined, process_count(p.n_jobs, device), "directions of the first seed")
        rates = _search_rates(stores, p, arms, device)
    chosen = rates[rates["chosen"]].itertuples()
    own = {row.arm: p.model_copy(update={"lr": row.lr, "encoder": row.encoder}) for row in chosen}
    grid = [(layer, arm, seed) for layer in stores for seed in range(p.n_seeds) for arm in arms]
    cells = [(stores[layer], own.get(arm, p), arm, seed, device) for layer, arm, seed in grid]
    folders, supplies = zip(*run_cells(cell, cells, process_count(p.n_jobs, device), "SAEs"), strict=True)
    supply = pd.DataFrame([
        {"layer": layer, "arm": arm, "seed": seed} | supplied
        for (layer, arm, seed), supplied in zip(grid, supplies, strict=True) if arm in p.arms and supplied
    ])  # fmt: skip
    return Grid(supply, dict(zip(grid, folders, strict=True)), rates)


def _mine(store: Any, p: Comparison, arm: str, seed: int, device: str) -> None:
    mined_unit(store, p, arm, seed, device)


def _search_rates(stores: dict[int, Any], p: Comparison, arms: list[str], device: str) -> pd.DataFrame:
    """Try learning rates and encoders with every arm at the middle layer, on a seed of its own: :attr:`Grid.rates`."""
    grid = [(arm, *pair) for arm in arms for pair in searched(p) if len(searched(p)) > 1]
    store = stores[sorted(stores)[len(stores) // 2]]
    cells = [(store, p.model_copy(update={"lr": lr, "encoder": how}), arm, device) for arm, lr, how in grid]
    units = run_cells(rate_unit, cells, process_count(p.n_jobs, device), "learning rates")
    rates = pd.DataFrame(grid, columns=["arm", "lr", "encoder"])
    rates["explained_variance"] = [unit.scalars["explained_variance"] for unit in units]
    rates["chosen"] = rates.index.isin(rates.groupby("arm")["explained_variance"].idxmax())
    return rates


def cell(store: Any, p: Comparison, arm: str, seed: int, device: str) -> tuple[Path, dict[str, Any]]:
    """Mine, train and measure one arm of one seed; return its SAE unit's folder, and what it supplied (see `Grid`)."""
    folder = matched_unit(store, p, arm, seed, device).folder
    mined = mined_unit(store, p, arm, seed, device)
    if mined is None or "funnel" not in mined.tables:
        return folder, {} if mined is None else mined.scalars
    funnel = mined.tables["funnel"]
    selected = funnel[["drawn", "candidates", "places", "kept"]].sum().to_dict()
    selected["candidates_a_place"] = float((funnel["candidates"] / funnel["places"]).min())
    return folder, mined.scalars | selected


@dataclass(frozen=True)
class Compared:
    """Everything a comparison found: units by (arm, seed) and tidy tables of them."""

    units: dict[tuple[str, int], Unit]
    supply: pd.DataFrame
    metrics: pd.DataFrame  # arm, seed, metric, value
    rates: pd.DataFrame  # as in `Grid`
    budgets: pd.DataFrame  # arm, seed, tokens, metric, value: trainings of several lengths, the full one last


def compare(store: Any, p: SaeCompare, device: str, trained: Sequence[str] | None = None) -> Compared:
    """Run the grid of one layer (see `run_grid`), once for each budget, and read back everything it left."""
    grid = run_grid({p.layer: store}, p, device, trained)
    units = {(arm, seed): load_unit(folder) for (_, arm, seed), folder in grid.folders.items()}
    metrics = tidy({cell: unit.scalars for cell, unit in units.items()})
    arms, budgets = [arm for arm in p.arms if trained is None or arm in trained], []
    for share in sorted(share for share in p.budgets if share < 1):  # each with a learning-rate decay of its own
        shorter = p.model_copy(update={"steps": max(1, round(share * p.steps)), "splice_contexts": 0})
        budgets.append(metrics_of(store, shorter, device, arms, grid.rates).assign(tokens=shorter.steps * p.batch_size))
    along = pd.concat([*budgets, metrics.assign(tokens=p.steps * p.batch_size)])
    return Compared(units, grid.supply.drop(columns="layer"), metrics, grid.rates, in_order(along, "metric", QUALITIES))


def metrics_of(store: Any, p: SaeCompare, device: str, trained: Sequence[str], rates: pd.DataFrame) -> pd.DataFrame:
    """Return arm, seed, metric, value of the SAEs of one layer (see `run_grid`)."""
    folders = run_grid({p.layer: store}, p, device, trained, rates).folders
    return tidy({(arm, seed): unit_scalars(folder) for (_, arm, seed), folder in folders.items()})


def tidy(found: dict[tuple, dict[str, Any]], names: tuple[str, ...] = ("arm", "seed")) -> pd.DataFrame:
    """Return one row a cell, whose parts have ``names``, and metric."""
    return pd.DataFrame([
        dict(zip(names, cell, strict=True)) | {"metric": metric, "value": float(value)}
        for cell, scalars in found.items()
        for metric, value in scalars.items()
    ])  # fmt: skip


def in_order(table: pd.DataFrame, column: str, order: Sequence[str]) -> pd.DataFrame:
    """Return the rows whose ``column`` is in an order, in that order, the first first: figures offer them so."""
    rows = table[table[column].isin(order)]
    return rows.sort_values(column, key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def unit_list(compared: Compared) -> list[dict[str, Any]]:
    """Return where each SAE of a comparison lies, for run.json."""
    root = outputs_root()
    return [{"arm": a, "seed": s, "folder": str(u.folder.relative_to(root))} for (a, s), u in compared.units.items()]


# ---------------------------------------------------------------- SAEs of others


def centred(sae: SAE) -> SimpleNamespace:
    """Return an SAE that reads activations less their mean over dimensions, as after TransformerLens's weight centring.

    Layer norms that subtract it, as GPT-2's do, do not see it either: a reconstruction without it may be spliced in.
    """
    return SimpleNamespace(encode=lambda x: sae.encode(x - x.mean(1, keepdim=True)), decode=sae.decode)


def judge_published(opened: dict[str, tuple[Path, SAE]], store: Any, run: Run) -> pd.DataFrame:
    """Return arm, seed, metric, value: the quality of each on the rows and contexts that judge the arms."""
    p, qualities = run.p, {}
    for name, (folder, sae) in opened.items():
        inputs = {
            "files": [sha256_of(folder / file) for file in (WEIGHTS_FILE, CONFIG_FILE)], "data": store.key,
            "centred": name.endswith(CENTRED), "heldout": p.heldout_rows, "splice": p.splice_contexts,
            "device": run.device,
        }  # fmt: skip

        def compute(scratch: Path, name: str = name, sae: SAE = sae) -> Unit:
            judged, held_out = sae.to(run.device), store.matrix("heldout", n_rows=p.heldout_rows).to(run.device)
            if name.endswith(CENTRED):
                judged, held_out = centred(judged), held_out - held_out.mean(1, keepdim=True)
            measured = quality(judged, held_out, **splice(store, p, run.device))
            return Unit(scalars={name: value for name, value in measured.items() if isinstance(value, int | float)})

        qualities[name, 0] = cached_unit("published", inputs, compute).scalars
    return tidy(qualities)


# ---------------------------------------------------------------- starts for others


def write_start(given: dict[str, Any], out: Path) -> Path:
    """Mine directions and write the SAE that starts from them, as the arm ``rkcnn`` of 04 does for seed 0.

    ``given`` are parameters of 04. The new folder ``out`` holds SAELens's ``cfg.json`` and
    ``sae_weights.safetensors``, plain tensors in units of the raw activations (W_enc (d_in, d_sae), W_dec (d_sae, d_in)
    of unit rows, b_enc, b_dec), and ``start.json``: how they were made, with the search's funnel. ParameterError for
    parameters that cannot work, a folder that is there, or a search that has nothing to select from.
    """
    p = resolve("04_sae_compare", given)
    check(p)
    if out.exists():
        raise ParameterError(f"{out} exists: give another --out")
    device = str(pick_device(p.device))
    store = opened(p, device)
    mined, sae = mined_unit(store, p, MINED, 0, device), initial_sae(store, p, MINED, 0, device)
    record = {
        "parameters": p.model_dump(), "data": store.manifest, "provenance": provenance(device),
        "mined": int(mined.scalars["supply"]), "fill": sae.config.d_sae - int(mined.scalars["supply"]),
        "funnel": mined.tables["funnel"].to_dict("records"),
    }  # fmt: skip
    with whole_folder(out) as work:
        save_saelens(sae, work, about(store, MINED, 0))
        write_json(work / "start.json", record)
    return out
