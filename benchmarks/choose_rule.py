"""The written search behind the frozen rule: which rule, k, mean shifts and pool mine best; JSON lines.

    python benchmarks/choose_rule.py planted > planted.jsonl    # Zipf worlds of validation seeds, truth known
    python benchmarks/choose_rule.py atlas > atlas.jsonl        # the embedded language model, frozen dictionaries

Every setting stands beside its unscored twin from the same pool; random, covariance and k-means starts are the
reference. Directions are judged as they were mined and after three passes of refinement, which k-means gets too.
Seeds from 100 on are for choosing; verdicts use others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from rkcnn_lib.measure import frozen_dictionary_ev
from rkcnn_lib.probe import mine
from rkcnn_lib.probe.lift import refine
from rkcnn_lib.studies.truth import rarest_first, recovered, tenths
from rkcnn_lib.worlds.toy import PlantedDictionary

SEEDS = (100, 101)
GRID = {
    "rule": ("separation", "votes", "cover"),
    "n_neighbours": (8, 16),
    "n_shifts": (3,),
    "n_stages": (6, 12, 24),
}
DRAWN = 36  # subsets for each direction asked for, over all rounds
REFERENCES = ("random", "covariance", "datapoint", "kmeans")


def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return rows to mine, held-out rows, and what is known: 1,024 features in 96 dimensions, rates by Zipf's law."""
    world = PlantedDictionary(1024, 96, mean_active=4.0, noise=0.05, random_state=seed)
    return world.sample(24_000)[0], world.sample(3000)[0], {"n": 1024, "k": 4, "world": world}


def atlas(seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return rows to mine, held-out rows, and what is known: block 2 of the embedded language model."""
    from rkcnn_lib.worlds import open_or_capture

    store = open_or_capture("atlas", layer=2, hook="mlp_out", n_tokens=200_000, device="cpu")
    held_out = store.matrix("mine", seed=seed + 1000, n_rows=3000)  # not the documents that verdicts are judged on
    return store.matrix("mine", seed=seed, n_rows=20_000), held_out, {"n": 512, "k": 16}


def judged(D: torch.Tensor, held_out: torch.Tensor, known: dict[str, Any]) -> dict[str, Any]:
    """Return explained variance with k directions a token and, where there is a truth, recovery by rate."""
    ev = frozen_dictionary_ev(held_out, D, ks=(known["k"],))[known["k"]]
    if "world" not in known:
        return {"ev": round(ev, 4)}
    hit = recovered(D, known["world"].directions)
    deciles = tenths(hit, rarest_first(known["world"]))
    return {"ev": round(ev, 4), "recovery": round(float(hit.mean()), 4), "rare": round(sum(deciles[:3]) / 3, 4)}


def lines(world: Any) -> Iterator[dict[str, Any]]:
    """Yield a line a seed and miner: the references, then every setting and its unscored twin."""
    for seed in SEEDS:
        X, held_out, known = world(seed)
        settings = [(method, {}) for method in REFERENCES]
        for values in itertools.product(*GRID.values()):
            options = dict(zip(GRID, values, strict=True))
            settings += [(method, options) for method in ("rkcnn", "rkcnn_unscored")]
        for method, setting in settings:
            options, funnel = dict(setting), []
            if setting:
                options["n_subsets"] = max(3, DRAWN // options["n_stages"]) * known["n"]
                options |= {"n_refinements": 0, "funnel": funnel}
            began = time.perf_counter()
            D = mine(method, X, known["n"], random_state=seed, **options)
            seconds = time.perf_counter() - began
            centred = X - X.mean(0)
            refined = refine(centred / centred.square().mean().sqrt(), D)
            tightest = min((row["candidates"] / row["places"] for row in funnel), default=None)
            yield {"seed": seed, "method": method, **setting, "supply": len(D), "candidates_a_place": tightest,
                   "mined": judged(D, held_out, known), "refined": judged(refined, held_out, known),
                   "seconds": round(seconds, 1)}  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=("planted", "atlas"))
    name = parser.parse_args().world
    for line in lines({"planted": planted, "atlas": atlas}[name]):
        print(json.dumps({"benchmark": "choose_rule", "world": name, **line}), flush=True)
