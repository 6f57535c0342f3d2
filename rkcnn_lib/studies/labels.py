"""Do latents say what the grammar of the embedded language model says? 04's panel where every token's labels are known.

Labels are read on documents of their own: latents and probes are chosen on one stream, judged on another.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure.probing import detection, k_sparse_probing, splitting_and_absorption
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.worlds import capture, load_model

LABELS = ("topic", "kind", "number", "owed", "in_quotes", "in_brackets", "fact")
PARENTS = ("landmark", "city", "country", "person")  # kinds, whose children are the entities of that kind
STREAMS = (71_001, 71_002)  # documents to choose on, and to judge on
N_CONTEXTS = 120
RARE = 0.002  # classes rarer than this in either stream are left out
SHOWN = ("one_latent_f1", "five_latents_f1", "detection_f1", "absorbed", "splitting")


class Labelled(NamedTuple):
    """One stream: activations (n, d), labels (n, n_labels) bool, and of each parent its tokens (n,) bool."""

    X: torch.Tensor
    labels: np.ndarray
    parents: np.ndarray


def labels(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Return arm, seed, metric, value, chance_mean, chance_upper; empty but on the embedded language model."""
    if run.p.model != "atlas":
        return pd.DataFrame()
    cells = [(unit.folder, store.manifest["layer"], run.p, run.device) for unit in compared.units.values()]
    tables = run_cells(_cell, cells, process_count(run.p.n_jobs, run.device), "labels")
    parts = [table.assign(arm=arm, seed=seed) for (arm, seed), table in zip(compared.units, tables, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    order = table["metric"].map(SHOWN.index)
    return table.loc[order.sort_values(kind="stable").index]


def _cell(folder: Path, layer: int, p: SaeCompare, device: str) -> pd.DataFrame:
    def compute(scratch: Path) -> Unit:
        sae = load_saelens(folder / "sae")
        chosen, judged = _streams(layer, p.hook, device)
        with torch.no_grad():
            Z = [sae.encode(stream.X.to(sae.W_dec.device)).cpu().numpy() for stream in (chosen, judged)]
        told = (Z[0], chosen.labels, Z[1], judged.labels)
        sparse, detected = k_sparse_probing(*told, n_permutations=5), detection(*told)
        rows = [
            ("one_latent_f1", sparse.f1[0].mean(), sparse.chance[0]),
            ("five_latents_f1", sparse.f1[1].mean(), sparse.chance[1]),
            ("detection_f1", detected.mean, detected.chance),
        ]
        split = [
            splitting_and_absorption(
                Z[0], chosen.X, chosen.parents[:, i], Z[1], judged.X, judged.parents[:, i], sae.W_dec.data
            )
            for i in range(len(PARENTS))
        ]
        table = pd.DataFrame([
            {"metric": name, "value": float(value), "chance_mean": level.mean, "chance_upper": level.upper}
            for name, value, level in rows
        ] + [
            {"metric": "absorbed", "value": float(np.mean([one.absorbed for one in split])),
             "chance_mean": float(np.mean([one.chance.mean for one in split])),
             "chance_upper": float(np.mean([one.chance.upper for one in split]))},
            {"metric": "splitting", "value": float(np.mean([one.splitting for one in split]))},
        ])  # fmt: skip
        return Unit(tables={"labels": table})

    return cached_unit("labels", {"unit": folder.name, "layer": layer, "hook": p.hook}, compute).tables["labels"]


@functools.lru_cache(maxsize=1)
def _streams(layer: int, hook: str, device: str) -> list[Labelled]:
    """Both streams, with the labels that are frequent enough in both."""
    from rkcnn_lib.worlds.atlas import labelled_contexts

    lm, found = load_model("atlas", device=device), []
    for seed in STREAMS:
        contexts = labelled_contexts(N_CONTEXTS, seed=seed)
        X = capture(lm, contexts.token_ids, layer=layer, hook=hook).float().cpu()
        rows = (np.arange(contexts.token_ids.shape[1]) > 0)[None].repeat(len(contexts.token_ids), 0).ravel()
        columns = [
            np.asarray(contexts.labels[name]).ravel()[rows] == value
            for name in LABELS for value in range(1, len(contexts.names[name]))
        ]  # fmt: skip
        kinds = np.asarray(contexts.labels["kind"]).ravel()[rows]
        parents = [kinds == contexts.names["kind"].index(name) for name in PARENTS]
        found.append(Labelled(X[rows], np.stack(columns, 1), np.stack(parents, 1)))
    frequent = np.minimum(*(stream.labels.mean(0) for stream in found)) >= RARE
    return [stream._replace(labels=stream.labels[:, frequent]) for stream in found]


def title(table: pd.DataFrame) -> str:
    """Return how well one latent tells a label, by arm, beside chance."""
    one = table[table["metric"] == SHOWN[0]].groupby("arm")[["value", "chance_mean"]].mean().sort_values("value")
    return (
        f"One latent tells a label at F1 {one['value'].iloc[-1]:.2f} ({one.index[-1]}) to {one['value'].iloc[0]:.2f} "
        f"({one.index[0]}); chance {one['chance_mean'].mean():.2f}"
    )
