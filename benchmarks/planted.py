"""How much of a known truth each miner recovers, how well its directions code, and what it costs; JSON lines.

    python benchmarks/planted.py toy          # 256 features in 64 and 40 in 10 dimensions, trained toy models, 5 seeds
    python benchmarks/planted.py zipf         # 4,096 planted features in 256 dimensions, a million rows
    python benchmarks/planted.py frozen       # the embedded language model: fixed dictionaries, k-means beside
    python benchmarks/planted.py frozen --store FOLDER  # the same on an activation cache, such as Gemma's
    python benchmarks/planted.py sae          # SAEs of 256 planted features in 64 dimensions, by start, 5 seeds
    python benchmarks/planted.py false-keeps  # 200 runs on surrogates: how many keep any direction
    python benchmarks/planted.py classes      # RkCNN, kNN and kCNN with 20 informative columns among 200 of noise

All miners of a line see the same rows and are asked for the same number of directions; chance is as many random
directions. Seconds depend on the machine: compare within a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from rkcnn_lib.measure import chance, frozen_dictionary_ev, matched_cosine, precision, recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.measure.statistics import mean_interval
from rkcnn_lib.probe import RandomKCNNClassifier, RkCNNMiner, mine, surrogate
from rkcnn_lib.sae import SAEConfig, TrainConfig, init_from_directions, train_sae
from rkcnn_lib.tensors import number, whole
from rkcnn_lib.worlds import SyntheticSparseDataGenerator, ToyModel
from rkcnn_lib.worlds.toy import PlantedDictionary, true_directions

NEIGHBOURS = {"score": "neighbours"}
MINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rkcnn (neighbours)": ("rkcnn", NEIGHBOURS),
    "rkcnn_unscored (neighbours)": ("rkcnn_unscored", NEIGHBOURS),
    "rkcnn_worst (neighbours)": ("rkcnn_worst", NEIGHBOURS),
    "rkcnn (neighbours), unrefined": ("rkcnn", NEIGHBOURS | {"n_refinements": 0}),
    "rkcnn_unscored (neighbours), unrefined": ("rkcnn_unscored", NEIGHBOURS | {"n_refinements": 0}),
    "rkcnn (kurtosis)": ("rkcnn", {"score": "kurtosis"}),
    "rkcnn_coordinate": ("rkcnn_coordinate", {}),
    "ica": ("ica", {}),
    "kmeans": ("kmeans", {}),
    "kmeans_refined": ("kmeans_refined", {}),
    "datapoint": ("datapoint", {}),
    "datapoint_refined": ("datapoint_refined", {}),
    "random": ("random", {}),
}
# Left out on real activations: minutes a seed.
SLOW = {"ica", "kmeans_refined", "datapoint_refined", "rkcnn_worst (neighbours)", "rkcnn (kurtosis)"}


def timed(name: str, X: torch.Tensor, n: int, seed: int, **more: Any) -> tuple[torch.Tensor, float]:
    """Return a miner's directions and the seconds it took."""
    method, options = MINERS[name]
    began = time.perf_counter()
    D = mine(method, X, n, random_state=seed, **options, **(more if "rkcnn" in method or "lift" in method else {}))
    return D, round(time.perf_counter() - began, 2)


def against_truth(D: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return recovery, precision and matched cosine at n returned."""
    return {
        "n_true": len(truth), "n_returned": len(D), "recovery": round(recovery_rate(D, truth), 4),
        "precision": round(precision(D, truth), 4), "matched_cosine": round(matched_cosine(D, truth), 4),
    }  # fmt: skip


def toy() -> Iterator[dict[str, Any]]:
    """Yield lines on trained toy models."""
    for n_features, d, p, n in ((256, 64, 0.01, 384), (40, 10, 0.05, 60)):
        for seed in range(5):
            model = ToyModel(n_features, d, p, random_state=seed)
            model.train(2000, progress=False)
            truth = true_directions(model.W)
            X = SyntheticSparseDataGenerator(n_features, p, random_state=100 + seed).sample(20_000) @ model.W
            by_chance = chance(matched_cosine, n, len(truth), d, n_draws=20, truth=truth)
            for name in MINERS:
                D, seconds = timed(name, X, n, seed)
                yield {"world": f"toy {n_features} in {d}, p = {p}", "seed": seed, "miner": name,
                       **against_truth(D, truth), "chance_matched_cosine": round(by_chance.mean, 4),
                       "seconds": seconds}  # fmt: skip


def zipf(n_rows: int = 1_000_000, n_features: int = 4096, d: int = 256, n: int = 4096) -> Iterator[dict[str, Any]]:
    """Yield lines on a large planted dictionary with Zipf firing rates, and the F1 of reading features out."""
    world = PlantedDictionary(n_features, d, mean_active=8.0, random_state=0)
    X, _ = world.sample(n_rows)
    test, codes = world.sample(20_000)
    fired = np.asarray(codes.todense() > 0)
    truth = world.directions
    for name in ("rkcnn (neighbours)", "rkcnn_unscored (neighbours)", "kmeans", "random"):
        D, seconds = timed(name, X, n, 0)  # the lifts read 262,144 of the rows, k-means all
        yield {"world": f"planted {n_features} in {d}, Zipf, {n_rows:,} rows", "miner": name,
               **against_truth(D, truth), "f1": round(readout_f1(test, fired, D, truth), 4),
               "seconds": seconds}  # fmt: skip


def readout_f1(X: torch.Tensor, fired: np.ndarray, D: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean F1 over all features: does the matched direction's projection, at its best threshold, say who fired?

    The threshold is chosen on the first half of the rows and judged on the second; features that never fire there
    and features without a match count as 0 and are the same for all miners.
    """
    pairs = match(D, truth)
    half = len(X) // 2
    centre = X.mean(0)
    scores = np.zeros(len(truth))
    for row, column in zip(pairs.rows, pairs.columns, strict=True):
        projected, y = ((X - centre) @ D[row]).numpy(), fired[:, column]
        if not y[:half].any() or not y[half:].any():
            continue
        order = np.argsort(-projected[:half], kind="stable")
        hits = np.cumsum(y[:half][order])
        f1 = 2 * hits / (np.arange(1, half + 1) + y[:half].sum())
        threshold = projected[:half][order][int(f1.argmax())]
        said = projected[half:] >= threshold
        scores[column] = 2 * (said & y[half:]).sum() / max(1, said.sum() + y[half:].sum())
    return float(scores.mean())


def frozen(n: int = 512) -> Iterator[dict[str, Any]]:
    """Yield explained variance of held-out activations with each miner's directions, 5 seeds not used in choosing."""
    from rkcnn_lib.worlds import capture, load_model
    from rkcnn_lib.worlds.atlas import labelled_contexts

    lm = load_model("atlas", device="cpu")
    for hook in ("mlp_out", "resid_post"):
        acts = []
        for text_seed in (51, 52):
            tokens = labelled_contexts(300, seed=text_seed).token_ids
            found = capture(lm, tokens, layer=2, hook=hook).float().view(*tokens.shape, -1)[:, 1:].flatten(0, 1)
            acts.append(found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))])
        for seed in range(10, 15):
            picked = torch.randperm(len(acts[0]), generator=torch.Generator().manual_seed(seed))[:20_000]
            yield from frozen_lines(f"atlas block 2 {hook}", acts[0][picked], acts[1][:3000], n, seed, MINERS)


def frozen_store(folder: str, n: int = 2560, n_rows: int = 40_000) -> Iterator[dict[str, Any]]:
    """Yield the same on an activation cache: mined on each seed's own documents, judged on held-out ones."""
    from rkcnn_lib.worlds import ActivationStore

    store = ActivationStore(folder)
    world = " ".join(str(store.manifest[name]) for name in ("title", "hook_name"))
    held_out = store.matrix("heldout", n_rows=1500)
    for seed in range(5):
        X = store.matrix("mine", seed=seed, n_rows=n_rows)
        yield from frozen_lines(world, X, held_out, n, seed, set(MINERS) - SLOW)


def frozen_lines(
    world: str, X: torch.Tensor, held_out: torch.Tensor, n: int, seed: int, names: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Yield one line a miner: explained variance of the held-out rows with its directions, made up with random ones."""
    for name in sorted(names, key=list(MINERS).index):
        D, seconds = timed(name, X, n, seed)
        fill = mine("random", X, n, random_state=seed)[: n - len(D)]
        ev = frozen_dictionary_ev(held_out, torch.cat([D, fill]))
        yield {"world": f"{world}, {n} directions", "seed": seed, "miner": name, "n_returned": len(D),
               **{f"ev_{k}": round(v, 4) for k, v in ev.items()}, "seconds": seconds}  # fmt: skip


def sae(n_features: int = 256, d: int = 64, k: int = 4) -> Iterator[dict[str, Any]]:
    """Yield the matched cosine with the truth at the start and after training: three starts, with AuxK and without."""
    for seed in range(5):
        # Not the seed itself: random decoders are drawn from it, in the same way, and would *be* the truth.
        g = torch.Generator().manual_seed(1000 + seed)
        truth = normalize(torch.randn(n_features, d, generator=g), dim=1)
        chosen = torch.rand(50_000, n_features, generator=g).argsort(1)[:, :k]
        values = torch.rand(50_000, k, generator=g) + 0.5
        X = torch.zeros(50_000, n_features).scatter_(1, chosen, values) @ truth
        by_chance = chance(matched_cosine, n_features, n_features, d, n_draws=20, truth=truth)
        rotation = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
        starts = {"random": None, "truth": truth, "truth, rotated": truth @ rotation}
        for aux_k, (start, D) in itertools.product((None, 32), starts.items()):
            config = SAEConfig(d, n_features, k=k, aux_k=aux_k)
            init = init_from_directions(config, D, X=X, random_state=seed)
            trained = train_sae(X, config, TrainConfig(2000, 512, 1e-2, seed=seed), init, progress=False)
            yield {"world": f"{n_features} in {d}, k = {k}", "seed": seed, "start": start, "aux_k": aux_k,
                   "matched_cosine_at_start": round(matched_cosine(init.W_dec, truth), 4),
                   "matched_cosine": round(matched_cosine(trained.W_dec, truth), 4),
                   "chance_matched_cosine": round(by_chance.mean, 4)}  # fmt: skip


def false_keeps(n_runs: int = 200) -> Iterator[dict[str, Any]]:
    """Yield how many runs on surrogate data keep any direction; about 10 of 200 are expected at the 95 % point."""
    g = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(24, 8, generator=g), dim=1)
    for kind in ("gaussian", "elliptical"):
        for score in ("kurtosis", "neighbours"):
            for mode, size in (("rescored", 0.0), ("full", np.inf)):
                kept = 0
                runs = n_runs if mode == "rescored" else n_runs // 10
                for seed in range(runs):
                    g = torch.Generator().manual_seed(1000 + seed)
                    codes = torch.rand(600, 24, generator=g) * (torch.rand(600, 24, generator=g) < 0.1)
                    X = surrogate(codes @ directions, kind, random_state=seed)
                    miner = RkCNNMiner(30, None, 10, score=score, null=kind, n_stages=2, random_state=seed,
                                       full_null_size=size)  # fmt: skip
                    kept += miner.fit(X).n_kept_ > 0
                yield {"world": f"{kind} surrogates", "score": score, "null_mode": mode, "runs": runs,
                       "runs_that_keep_any": int(kept)}  # fmt: skip


def lu_gweon_classes(
    n: int,
    n_noise: int,
    *,
    n_informative: int = 20,
    n_classes: int = 2,
    shift: float = 1.0,
    random_state: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Class data with few informative columns among many of noise, after Lu & Gweon 2025.

    From their simulation (PeerJ Computer Science 11:e2497, doi 10.7717/peerj-cs.2497) we take the idea: 20
    informative features, a growing number of noise features, and the question how fast a classifier decays.
    The rest is ours, so numbers from here are not comparable with theirs: independent unit-variance Gaussian
    columns; each informative column marks one class (column j marks class j mod n_classes) by a mean raised
    by ``shift``; noise columns are standard normal for all classes; classes are of equal size.

    With the defaults and no noise columns the Bayes error is Phi(-sqrt(20) / 2), about 1.3 %. At least ``n_classes``
    rows and informative columns; a ``shift`` of 0 makes every column noise.

    Returns X (n, n_informative + n_noise), float64, informative columns first, and y (n,), int64: class sizes differ by
    at most one, rows are in random order.
    """
    n_classes, n_noise = whole("n_classes", n_classes, 2), whole("n_noise", n_noise, 0)
    n, n_informative = whole("n", n, n_classes), whole("n_informative", n_informative, n_classes)
    shift = number("shift", shift, "(-inf, inf)")
    rng = np.random.default_rng(whole("random_state", random_state, 0))
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.standard_normal((n, n_informative + n_noise))
    X[:, :n_informative] += shift * (np.arange(n_informative) % n_classes == y[:, None])
    return X, y


def classes(n_runs: int = 20, n_noise: int = 200, n: int = 400) -> Iterator[dict[str, Any]]:
    """Yield the accuracy of RkCNN, kNN and kCNN (k conditional, all columns) and their paired differences."""
    found: dict[str, list[float]] = {"RkCNN": [], "kNN": [], "kCNN, all columns": []}
    for seed in range(n_runs):
        X, y = lu_gweon_classes(2 * n, n_noise, random_state=seed)
        d = X.shape[1]
        models = {
            "RkCNN": RandomKCNNClassifier(600, 60, random_state=seed),
            "kNN": KNeighborsClassifier(5),
            # Distances do not change under rotation, so any subset of all columns is all columns.
            "kCNN, all columns": RandomKCNNClassifier(3, 1, subset_size=d, ensemble=False, random_state=seed),
        }
        for name, model in models.items():
            found[name].append(model.fit(X[:n], y[:n]).score(X[n:], y[n:]))
    for name, accuracy in found.items():
        mean, low, high = mean_interval(np.array(found["RkCNN"]) - np.array(accuracy))
        yield {"world": f"20 informative among {n_noise} noise columns, {n} training rows", "classifier": name,
               "accuracy": round(float(np.mean(accuracy)), 4), "chance": 0.5, "runs": n_runs,
               "rkcnn_minus_this": [round(v, 4) for v in (mean, low, high)]}  # fmt: skip


WORLDS = {"classes": classes, "toy": toy, "zipf": zipf, "frozen": frozen, "sae": sae, "false-keeps": false_keeps}


def main() -> None:
    """Run the worlds that are named, or the smallest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--store", help="folder of an activation cache, for frozen")
    options = parser.parse_args()
    names = options.worlds or ["classes"]
    if unknown := set(names) - set(WORLDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(WORLDS)}")
    for name in names:
        lines = frozen_store(options.store) if name == "frozen" and options.store else WORLDS[name]()
        for line in lines:
            print(json.dumps({"benchmark": "planted", **line, "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    main()
