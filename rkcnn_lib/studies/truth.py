"""Trained SAEs against what is known: 04's panels of true directions, where activations were made here, and of labels.

Do latents say what the grammar of the embedded language model says? Its labels are read on documents of their own:
latents and probes are chosen on one stream, judged on another.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine, precision, recovery_rate
from rkcnn_lib.measure.probing import detection, k_sparse_probing, splitting_and_absorption
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.runs.grid import process_count, run_cells
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.cells import live_rows, model_of
from rkcnn_lib.studies.comparison import Compared, in_order
from rkcnn_lib.studies.verdicts import listed, means
from rkcnn_lib.vocabulary import MINED, UNMINED
from rkcnn_lib.worlds import capture
from rkcnn_lib.worlds.atlas import labelled_contexts

RECOVERED = 0.9  # cosine from which a true direction counts as recovered
CHANCE_SEED = 71_003
RARE = 3  # tenths of the true directions, by firing rate, that are called rare
LABELS = ("topic", "kind", "number", "owed", "in_quotes", "in_brackets", "fact")
PARENTS = ("landmark", "city", "country", "person")  # kinds, whose children are the entities of that kind
STREAMS = (71_001, 71_002)  # documents to choose on, and to judge on
N_CONTEXTS, LEAST_CONTEXTS, CONTEXT_SIZE = 120, 16, 128  # of each; in fewer some labels are missing
RARE_CLASS = 0.002  # classes rarer than this in either stream are left out
OF_LABELS = ("one_latent_f1", "five_latents_f1", "gap_to_dense_f1", "detection_f1", "absorbed", "splitting")


def recovery(compared: Compared, store: Any) -> pd.DataFrame | None:
    """Compare decoders with the true directions, beside as many random ones; None where none are known.

    Of live latents after training: recovery_rate, precision, matched_cosine and, where rates are known,
    rare_recovery_rate, that of the three tenths that fire least; of all latents before: untrained_recovery_rate.
    """
    truth = getattr(store, "truth", None)
    if truth is None:
        return None
    rare = rarest_first(store)[: RARE * len(truth) // 10]
    measures = {measure.__name__: measure for measure in (recovery_rate, precision, matched_cosine)}
    if len(rare):
        measures["rare_recovery_rate"] = lambda D, T: float(recovered(D, T)[rare].mean())
    n_latents = len(next(iter(compared.units.values())).arrays["W_dec_start"])
    level = {  # by a seed that no world is made with: its draws would be the truth
        name: chance(measure, n_latents, len(truth), store.d_in, n_draws=20, random_state=CHANCE_SEED, truth=truth)
        for name, measure in measures.items()
    }
    rows = []
    for cell, unit in compared.units.items():
        decoder = live_rows(unit)
        rows += [(*cell, name, measure(decoder, truth), *level[name]) for name, measure in measures.items()]
        untrained = recovery_rate(unit.arrays["W_dec_start"], truth)
        rows.append((*cell, "untrained_recovery_rate", untrained, *level["recovery_rate"]))
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value", "chance_mean", "chance_upper"])


def recovery_by_rate(compared: Compared, store: Any) -> pd.DataFrame:
    """Return each arm's share of true directions recovered in each tenth by rate, 1 (rarest) to 10; no rates: empty."""
    order = rarest_first(store)
    if not len(order):
        return pd.DataFrame()
    hits = [recovered(live_rows(unit), store.truth)[order] for unit in compared.units.values()]
    shares = [[float(tenth.mean()) for tenth in np.array_split(hit, 10)] for hit in hits]
    table = pd.DataFrame(shares, columns=range(1, 11)).assign(arm=[arm for arm, _ in compared.units])
    return table.groupby("arm", sort=False).mean().round(3)


def rarest_first(store: Any) -> np.ndarray:
    """Return the order of a store's true directions by firing rate, (n_true,); empty where rates are not known."""
    return np.argsort(getattr(store, "rates", ()), kind="stable")


def recovered(D: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Return which of the true directions (n_true, d) have their partner in D (r, d) at cosine 0.9, (n_true,) bool."""
    pairs = match(D, truth)
    return np.isin(np.arange(len(truth)), pairs.columns[pairs.cosines >= RECOVERED])


def recovery_title(truth: pd.DataFrame) -> str:
    return f"True directions recovered at cosine 0.9: {listed(means(truth, 'recovery_rate')[[MINED, UNMINED]], '.0%')}"


# ---------------------------------------------------------------- labels


class Labelled(NamedTuple):
    """One stream: activations (n, d), labels (n, n_labels) bool, and of each parent its tokens (n, n_parents) bool."""

    X: torch.Tensor
    labels: np.ndarray
    parents: np.ndarray


def labels(compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Return arm, seed, metric, value, chance_mean, chance_upper; empty but on the embedded language model."""
    if run.p.model != "atlas":
        return pd.DataFrame()
    layer = store.manifest["layer"]
    cells = [(unit.folder, layer, run.p, run.device) for unit in compared.units.values()]
    units = run_cells(_labels_cell, cells, process_count(run.p.n_jobs, run.device), "labels")
    told = zip(compared.units, units, strict=True)
    table = pd.concat([unit.tables["labels"].assign(arm=arm, seed=seed) for (arm, seed), unit in told])
    five, columns = table[table["metric"] == "five_latents_f1"], ["value", "chance_mean", "chance_upper"]
    gap = five.assign(metric="gap_to_dense_f1", **(_dense_f1(layer, run.p, run.device) - five[columns]))
    return in_order(pd.concat([table, gap]), "metric", OF_LABELS)


def latent_f1(folder: Path, store: Any, run: Run) -> np.ndarray:
    """Return of each latent of an SAE unit the held-out F1 of the label that suits it best, (d_sae,); NaN if dead."""
    return _labels_cell(folder, store.manifest["layer"], run.p, run.device).arrays["latent_f1"].numpy()


def _dense_f1(layer: int, p: SaeCompare, device: str) -> float:
    """Return the mean F1 of the same probes that read all of an activation: what there is to find (cached)."""

    def compute(scratch: Path) -> Unit:
        chosen, judged = _streams(layer, p.hook, _n_contexts(p), device)
        width = chosen.X.shape[1]
        dense = k_sparse_probing(chosen.X, chosen.labels, judged.X, judged.labels, (width,), n_permutations=1)
        return Unit({"f1": float(dense.f1.mean())})

    return cached_unit("labels", {"dense": True} | _inputs(layer, p), compute).scalars["f1"]


def _n_contexts(p: SaeCompare) -> int:
    """No more tokens than SAEs are judged on."""
    return min(N_CONTEXTS, max(LEAST_CONTEXTS, p.heldout_rows // CONTEXT_SIZE))


def _inputs(layer: int, p: SaeCompare) -> dict[str, Any]:
    return {"layer": layer, "hook": p.hook, "n_contexts": _n_contexts(p)}


def _labels_cell(folder: Path, layer: int, p: SaeCompare, device: str) -> Unit:
    def compute(scratch: Path) -> Unit:
        sae = load_saelens(folder / "sae")
        chosen, judged = _streams(layer, p.hook, _n_contexts(p), device)
        with torch.no_grad():
            Z, Z_judged = (sae.encode(stream.X).numpy() for stream in (chosen, judged))
        told = (Z, chosen.labels, Z_judged, judged.labels)
        sparse, detected = k_sparse_probing(*told, n_permutations=5), detection(*told)
        parents = zip(chosen.parents.T, judged.parents.T, strict=True)
        split = [
            splitting_and_absorption((Z, chosen.X, a), (Z_judged, judged.X, b), sae.W_dec.data) for a, b in parents
        ]
        absorbed = [(one.absorbed, *one.chance) for one in split]
        rows = [
            ("one_latent_f1", sparse.f1[0].mean(), *sparse.chance[0]),
            ("five_latents_f1", sparse.f1[1].mean(), *sparse.chance[1]),
            ("detection_f1", detected.mean, *detected.chance),
            ("absorbed", *np.mean(absorbed, axis=0)),
            ("splitting", np.mean([len(one.main) for one in split]), np.nan, np.nan),
        ]
        table = pd.DataFrame(rows, columns=["metric", "value", "chance_mean", "chance_upper"])
        return Unit(tables={"labels": table}, arrays={"latent_f1": torch.from_numpy(detected.f1)})

    return cached_unit("labels", {"unit": folder.name} | _inputs(layer, p), compute)


@functools.lru_cache(maxsize=1)
def _streams(layer: int, hook: str, n_contexts: int, device: str) -> list[Labelled]:
    """Both streams, with the labels that are frequent enough in both."""
    lm, found = model_of("atlas", None, device), []
    for seed in STREAMS:
        contexts = labelled_contexts(n_contexts, seed=seed)
        X = capture(lm, contexts.token_ids, layer=layer, hook=hook).float().cpu().view(*contexts.token_ids.shape, -1)
        told = {name: np.asarray(contexts.labels[name])[:, 1:].ravel() for name in LABELS}  # nothing at position 0
        columns = [told[name] == value for name in LABELS for value in range(1, len(contexts.names[name]))]
        parents = [told["kind"] == contexts.names["kind"].index(name) for name in PARENTS]
        found.append(Labelled(X[:, 1:].flatten(0, 1), np.stack(columns, 1), np.stack(parents, 1)))
    frequent = np.minimum(*(stream.labels.mean(0) for stream in found)) >= RARE_CLASS
    return [stream._replace(labels=stream.labels[:, frequent]) for stream in found]


def labels_title(table: pd.DataFrame) -> str:
    one = table[table["metric"] == OF_LABELS[0]].groupby("arm")[["value", "chance_mean"]].mean().sort_values("value")
    (worst, low), *_, (best, high) = one["value"].items()
    by_chance = one["chance_mean"].mean()
    return f"One latent tells a label at F1 {high:.2f} ({best}) to {low:.2f} ({worst}); chance {by_chance:.2f}"
