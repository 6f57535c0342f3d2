"""One cell of a comparison, in finished units on disk.

``directions`` (arm x seed: what a miner supplies and what it cost), ``saes`` (arm x seed: the SAE trained from them and
its held-out quality) and ``learning_rates`` (arm x rate: its quality on other seeds).
"""

import functools
import itertools
import math
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import quality
from rkcnn_lib.probe import mine
from rkcnn_lib.probe.inputs import all_centred
from rkcnn_lib.probe.lift import refine
from rkcnn_lib.probe.search import SelectionWarning, selects_nothing
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.schemas import CausalChecks, Comparison
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAE, SAEConfig, TrainConfig, init_from_directions, load_saelens, save_saelens, train_sae
from rkcnn_lib.vocabulary import ARMS, DECODER_ONLY, FROZEN_DECODER, UNMINED, base_arm
from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.toy import INVENTED_MODELS

LONG = 2000  # steps from which a training shows a progress bar of its own
FIRST_L1 = 3.0  # where the search for a sparsity penalty begins, for inputs of mean norm sqrt(d)
L0_TOLERANCE = 0.02  # arms are compared at L0 matched within 2 %
MOST_TRIALS = 8
TWIN_SEED = 500  # added to a seed: that of the twin it is drawn towards, which no other seed shares
SEARCH_SEED = 1000  # learning rates are chosen on a seed that no verdict uses


def sae_config(p: Comparison, d_in: int) -> SAEConfig:
    """Return the SAE every arm trains; ``d_sae`` is ``expansion`` x ``d_in``."""
    sparsity = {"l1": p.l1 or FIRST_L1} if p.architecture == "relu" else {"k": p.k}
    d_sae = round(p.expansion * d_in)
    aux_k = None if p.aux_k is None or p.architecture == "relu" else min(p.aux_k, d_sae)
    return SAEConfig(d_in, d_sae, architecture=p.architecture, aux_k=aux_k, **sparsity)


def searched(p: Comparison) -> list[tuple[float, str]]:
    """Return the pairs of learning rate and encoder among which each arm's best is searched for; one: no search."""
    relu = p.architecture == "relu"  # its variance depends on its L0, which the penalty sets: no search by it
    encoders = [p.encoder] if p.encoder else ["fitted"] if relu else ["fitted", "tied"]
    return list(itertools.product([p.lr] if relu or not p.lr_search else p.lr_search, encoders))


def train_config(p: Comparison, arm: str, seed: int) -> TrainConfig:
    """Return the training settings of one seed, the same for all arms but the one with a frozen decoder."""
    shown = tuple(sorted({0, p.steps // 16, p.steps // 4, p.steps}))
    return TrainConfig(
        steps=p.steps, batch_size=p.batch_size, lr=p.lr, seed=seed, snapshot_steps=shown,
        train_decoder=arm != FROZEN_DECODER, cosine=p.cosine_decay, twin_weight=p.twin_weight,
    )  # fmt: skip


def mined_unit(store: Any, p: Comparison, arm: str, seed: int, device: str) -> Unit | None:
    """Return an arm's directions for one seed, as many as there are latents if it has them; None: random ones."""
    if base_arm(arm) == UNMINED:
        return None
    return directions_unit(store, p, base_arm(arm), round(p.expansion * store.d_in), seed, device)


def directions_unit(store: Any, p: Comparison | CausalChecks, arm: str, wanted: int, seed: int, device: str) -> Unit:
    """Return at most ``wanted`` directions of an arm, mined on that seed's own documents and subsets (cached).

    Arrays: ``directions``, and ``mined``, what they were before refinement where the arm has it.
    """
    how, options = ARMS[arm], {}
    if how.searches:
        n_subsets = p.subsets_for(wanted) if isinstance(p, Comparison) else p.n_subsets
        options = {"n_subsets": n_subsets, "subset_size": p.subset_size, "subsets": p.subsets}
    if how.searches and how.refined:
        options |= {name: getattr(p, name) for name in ("score", "rule", "n_stages", "n_neighbours", "n_shifts")}
        options["n_refinements"] = 0  # they follow below, as for the rivals
    n_refinements = p.n_refinements if how.refined else 0
    inputs = {
        "data": store.key, "method": how.method, "seed": seed, "wanted": wanted, "rows": p.mining_rows,
        "options": options, "n_refinements": n_refinements, "device": device,
    }  # fmt: skip

    def compute(scratch: Path) -> Unit:
        X = store.matrix("mine", seed=seed, n_rows=p.mining_rows).to(device)
        began, funnel = time.perf_counter(), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SelectionWarning)  # refused below, also where the unit is only read
            told = {"funnel": funnel} if how.searches else {}
            mined = mine(how.method, X, n_directions=wanted, random_state=seed, **options, **told)
        directions = refine(all_centred(X), mined, n_refinements)
        seconds = time.perf_counter() - began
        scalars = {"supply": len(directions), "wanted": wanted, "seconds": seconds, "rows": len(X)}
        arrays = {"directions": directions.float()} | ({"mined": mined.float()} if how.refined else {})
        return Unit(scalars, {"funnel": pd.DataFrame(funnel)} if how.searches else {}, arrays)

    unit = cached_unit("directions", inputs, compute)
    if how.searches and (problem := selects_nothing(unit.tables["funnel"].to_dict("records"))):
        raise ParameterError(f"{arm}, seed {seed}: {problem} (n_subsets, mining_rows, n_directions)")
    return unit


def initial_sae(store: Any, p: Comparison, arm: str, seed: int, device: str) -> SAE:
    """Return an arm's SAE before training, all through one function; what an arm cannot supply is the same for all."""
    X = store.matrix("mine", seed=seed, n_rows=p.mining_rows).to(device)
    mined = mined_unit(store, p, arm, seed, device)
    directions = None if mined is None else mined.arrays["directions"].to(device)
    encoder = "random" if arm == DECODER_ONLY else searched(p)[0][1]
    return init_from_directions(sae_config(p, store.d_in), directions, X=X, encoder=encoder, random_state=seed)


def rate_unit(store: Any, p: Comparison, arm: str, device: str) -> Unit:
    """Return how well an arm does with the learning rate and encoder of ``p`` on a seed of its own (cached).

    It is judged on rows that seed's SAE was not trained on and, where there are more, did not mine; held-out ones are
    left for the verdicts.
    """
    config, training = sae_config(p, store.d_in), replace(train_config(p, arm, SEARCH_SEED), twin_weight=0.0)
    inputs = _training_inputs(store, p, arm, mined_unit(store, p, arm, SEARCH_SEED, device), training, device)

    def compute(scratch: Path) -> Unit:
        n_rows, checkpoint = len(store.rows("mine", SEARCH_SEED)), scratch / "checkpoint"
        start = initial_sae(store, p, arm, SEARCH_SEED, device)
        sae = train_sae(store, config, training, init=start, checkpoint=checkpoint, device=device, progress=False)
        rows = store.matrix("mine", seed=SEARCH_SEED, n_rows=min(2 * p.mining_rows, n_rows))
        unmined = rows[p.mining_rows :] if n_rows > p.mining_rows else rows
        return Unit(scalars={"explained_variance": quality(sae, unmined.to(device))["explained_variance"]})

    return cached_unit("learning_rates", inputs, compute)


def _training_inputs(store: Any, p: Comparison, arm: str, mined: Any, training: TrainConfig, device: str) -> dict:
    return {
        "data": store.key, "arm": arm, "mined": mined and mined.folder.name, "encoder": searched(p)[0][1],
        "config": asdict(sae_config(p, store.d_in)), "training": asdict(training), "mining_rows": p.mining_rows,
        "device": device,
    }  # fmt: skip


def sae_unit(store: Any, p: Comparison, arm: str, seed: int, device: str) -> Unit:
    """Return one trained SAE with its history, its start and its held-out quality; computed once."""
    config, training = sae_config(p, store.d_in), train_config(p, arm, seed)
    mined = mined_unit(store, p, arm, seed, device)
    n_mined = 0 if mined is None else int(mined.scalars["supply"])
    inputs = _training_inputs(store, p, arm, mined, training, device)
    twin = None  # the SAE that the consistency penalty draws this one towards: the same arm, with a seed of its own
    if p.twin_weight:
        alone = p.model_copy(update={"twin_weight": 0.0, "splice_contexts": 0})
        twin = sae_unit(store, alone, arm, seed + TWIN_SEED, device)
    inputs |= {"seed": seed, "heldout": p.heldout_rows, "twin": twin and twin.folder.name}
    inputs["splice"] = None if p.model in INVENTED_MODELS else p.splice_contexts

    def compute(scratch: Path) -> Unit:
        start = initial_sae(store, p, arm, seed, device)
        began = time.perf_counter()
        sae = train_sae(
            store, config, training, init=start, checkpoint=scratch / "checkpoint", device=device,
            progress=p.steps > LONG, twin=twin and live_rows(twin).to(device),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        held_out = store.matrix("heldout", n_rows=p.heldout_rows).to(device)
        found = quality(sae, held_out, **splice(store, p, device))
        untrained = quality(start, held_out)
        for name in ("explained_variance", "explained_variance_standardised"):
            found[f"untrained_{name}"] = untrained[name]
        found |= dead_latents(untrained["density"], found["density"], n_mined)
        arrays = {name: found.pop(name) for name in ("density", "ce_by_context") if name in found}
        arrays |= {"density_start": untrained["density"], "W_dec_start": start.W_dec.data}
        arrays |= {f"W_dec_step_{step}": decoder for step, decoder in sae.snapshots.items()}
        return Unit(
            scalars=found | {"seconds": seconds, "n_mined": n_mined, "lr": p.lr} | ({"l1": p.l1} if p.l1 else {}),
            tables={"history": pd.DataFrame(sae.history)},
            arrays=arrays,
            save_extra=lambda folder: save_saelens(sae, folder / "sae", about(store, arm, seed)),
        )

    return cached_unit("saes", inputs, compute)


def matched_unit(store: Any, p: Comparison, arm: str, seed: int, device: str) -> Unit:
    """Return the trained SAE of a cell with ``k`` active latents a token on held-out text.

    TopK and BatchTopK have them by construction. A ReLU SAE with ``l1 = None`` is trained at several penalties until
    its L0 is within half the tolerance of ``k``. The nearest is returned, with a warning, when `MOST_TRIALS` are spent
    or a larger penalty no longer lowers L0 (training too short to become sparse).
    """
    if p.architecture != "relu" or p.l1 is not None:
        return sae_unit(store, p, arm, seed, device)
    tried, units = [], []  # (penalty, L0), and the unit of each
    while len(tried) < MOST_TRIALS:
        l1 = next_penalty(tried, p.k)
        units.append(sae_unit(store, p.model_copy(update={"l1": l1}), arm, seed, device))
        tried.append((l1, units[-1].scalars["l0"]))
        if abs(tried[-1][1] / p.k - 1) <= L0_TOLERANCE / 2:
            return units[-1]
        *_, before, after = 0.0, *(l0 for _, l0 in sorted(tried))  # of the two largest penalties
        if len(tried) > 2 and min(l0 for _, l0 in tried) > p.k and after > 0.98 * before:
            break
    nearest = min(range(len(tried)), key=lambda i: abs(tried[i][1] - p.k))
    told = f"L0 {tried[nearest][1]:.1f} is the nearest to {p.k} that L1 penalties gave"
    warnings.warn(f"{arm}, seed {seed}: {told}", stacklevel=2)
    return units[nearest]


def next_penalty(tried: list[tuple[float, float]], target: float) -> float:
    """Return the L1 penalty to try next, from (penalty, L0) pairs: L0 falls as the penalty grows.

    Between the nearest penalties on either side of the target L0 the line in logarithms is followed. With none on one
    side the line through the two nearest goes on (taken as L0 ~ 1 / penalty at first), by a factor of 8 at most.
    """
    if not tried:
        return FIRST_L1
    points = sorted((math.log(l1), math.log(max(l0, 1e-3) / target)) for l1, l0 in tried)
    too_many, too_few = [p for p in points if p[1] > 0], [p for p in points if p[1] <= 0]
    if too_many and too_few:
        (x0, y0), (x1, y1) = too_many[-1], too_few[0]
        return math.exp(float(np.interp(0.0, [y1, y0], [x1, x0])))
    (x, y), (x1, y1) = (points[-1], points[-2:][0]) if too_many else (points[0], points[:2][-1])
    slope = (y - y1) / (x - x1) if x != x1 else -1.0
    return math.exp(x + float(np.clip(-y / min(slope, -0.1), -math.log(8), math.log(8))))


def live_rows(unit: Unit) -> torch.Tensor:
    """Return the decoder rows (n_live, d_in) of an SAE unit's live latents, after training."""
    return load_saelens(unit.folder / "sae").W_dec.data[unit.arrays["density"] > 0]


def dead_latents(start: torch.Tensor, end: torch.Tensor, n_mined: int) -> dict[str, float]:
    """Return which latents never fire on held-out tokens, by when and by where they started from, as shares.

    ``start`` and ``end`` (d_sae,) are firing rates before and after training, on the same tokens; the first ``n_mined``
    latents started from the arm's own directions, the others are the fill. Given are dead (at the end), untrained_dead
    (before any training), died (fired at the start only) and revived (at the end only), of all latents, and of either
    part with ``_mined`` and ``_fill`` behind the name, where it has any.
    """
    fired, fires = start > 0, end > 0
    events = {"dead": ~fires, "untrained_dead": ~fired, "died": fired & ~fires, "revived": ~fired & fires}
    parts = {"": slice(None), "_mined": slice(n_mined), "_fill": slice(n_mined, None)}
    return {
        event + part: float(latents[rows].double().mean())
        for part, rows in parts.items() if len(fires[rows])
        for event, latents in events.items()
    }  # fmt: skip


def about(store: Any, arm: str, seed: int) -> dict[str, Any]:
    """Return what SAELens asks to know of an SAE (its ``ActivationsStore.from_sae`` reads it), and whose it is."""
    manifest = store.manifest
    return {
        "model_name": manifest.get("model"), "hook_name": manifest.get("hook_name"),
        "context_size": manifest.get("context_size"), "prepend_bos": manifest.get("bos_token_id") is not None,
        "dataset_path": manifest.get("text", {}).get("name"), "arm": arm, "seed": seed,
    }  # fmt: skip


def splice(store: Any, p: Comparison, device: str) -> dict[str, Any]:
    """Return what puts an SAE back into the model: nothing where the activations have no model, or none is asked."""
    if p.model in INVENTED_MODELS or not p.splice_contexts:
        return {}
    tokens, mask = (evenly(of("heldout"), p.splice_contexts) for of in (store.contexts, store.context_mask))
    lm = model_of(p.model, p.revision, device)
    return {"lm": lm, "tokens": tokens, "mask": mask, "hook_name": store.manifest["hook_name"]}


def evenly(contexts: torch.Tensor, n: int) -> torch.Tensor:
    """Return at most ``n`` rows at even distances: the first ones are few documents where those are long."""
    return contexts[torch.linspace(0, len(contexts) - 1, min(n, len(contexts))).round().long()]


@functools.lru_cache(maxsize=1)
def model_of(name: str, revision: str | None, device: str) -> Any:
    """Return the language model of a comparison, loaded once a process."""
    return load_model(name, revision=revision, device=device)
