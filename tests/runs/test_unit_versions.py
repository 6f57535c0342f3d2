"""Units made by older code are found again only where it gave the same numbers: one small result of every kind is kept.

After a change of numbers that is meant: raise the kind's number in ``rkcnn_lib.runs.units.VERSIONS``, then
``python -m tests.runs.test_unit_versions`` writes the results anew. It refuses to while the version is the old one.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rkcnn_lib.runs.params import resolve
from rkcnn_lib.runs.published import open_published
from rkcnn_lib.runs.schemas import ARMS
from rkcnn_lib.runs.units import VERSIONS, load_unit
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from rkcnn_lib.studies import (
    agreement,
    causal_subspaces,
    comparison,
    curves,
    fourier,
    neighbourhoods,
    planes,
    probing,
    sae_panels,
    toy,
    truth,
)
from rkcnn_lib.worlds import MemoryStore, PlantedDictionary, open_or_capture
from tests.studies.test_fourier_study import plant

pytestmark = pytest.mark.slow

KEPT = Path(__file__).with_name("unit_versions.json")
HERE = {"n_jobs": 1, "device": "cpu"}
MINING = HERE | {"n_subsets": 90, "n_directions": 24}
TOY = MINING | {
    "n_seeds": 2, "plane_probabilities": [0.1, 0.05], "plane_instances": 2, "plane_steps": 1000, "toy_steps": 500,
    "n_samples": 2000, "n_directions": 30, "miners": ["random", "kmeans_refined", "rkcnn_coordinate", "rkcnn"],
    "curve_seeds": 2, "curve_features": [], "curve_active": [2], "curve_noise": [], "curve_subset_size": [],
    "curve_n_subsets": [], "curve_n_samples": [],
}  # fmt: skip
PROBE = MINING | {
    "n_seeds": 2, "toy_steps": 500, "n_samples": 1500, "n_contexts": 12, "atlas_labels": ["topic"], "n_probed": 3,
    "n_probed_null": 3, "n_permutations": 19, "n_ensemble": 4, "n_neighbours": 20, "curve_sizes": [2, 4],
}  # fmt: skip
SAES = HERE | {
    "profile": "test", "arms": list(ARMS), "variants": ["random_frozen_decoder"], "n_seeds": 2, "expansion": 2.0,
    "k": 4, "steps": 40, "batch_size": 256, "lr": 3e-3, "lr_search": [1e-3, 3e-3], "budgets": [], "mining_rows": 1500,
    "n_stages": 4, "n_subsets": 150, "n_neighbours": 8, "heldout_rows": 1000, "front_k": [],
    "other_architecture": None, "frozen_k": [4], "frozen_rows": 400, "splice_contexts": 50, "encoder": "fitted",
}  # fmt: skip
CIRCUIT = {"layer": 0, "hook": "mlp_out", "n_tokens": 3 * 29 * 29, "context_size": 3, "arms": ["random", "rkcnn"],
           "mining_rows": 200, "heldout_rows": 200, "variants": [], "expansion": 1.0, "n_stages": 12,
           "n_subsets": None, "n_neighbours": 4}  # fmt: skip


def make_all(root):
    """Compute at least one small unit of every kind under ``root``."""
    p = resolve("01_toy_superposition", TOY)
    run = SimpleNamespace(p=p, device="cpu")
    planes.mine_planes(planes.train_planes(p), run)
    spaces = [toy.train_space(p.n_features, p.n_hidden, p.n_active, p.toy_steps, seed) for seed in range(2)]
    toy.mine_all(spaces, run)
    toy.from_noise(spaces[0], run)
    toy.seed_scores(spaces, run)
    curves.curves(run)
    planes.seed_study(n_seeds=1, steps=50)
    run = SimpleNamespace(p=resolve("02_probe_validation", PROBE), device="cpu")
    for kind in probing.STUDIES:
        probing.study(run, probing.toy_tasks, kind)
    neighbourhoods.study(run, probing.toy_tasks)
    world = PlantedDictionary(n_features=40, d=20, mean_active=2.0, random_state=0)
    store = MemoryStore(world.sample(6000)[0], name="planted", truth=world.directions)
    p = resolve("04_sae_compare", SAES | {"model": "planted"})
    run = SimpleNamespace(p=p, device="cpu")
    compared = comparison.compare(store, p, "cpu")
    sae_panels.frozen_dictionaries(compared, store, run)
    agreement.agreement(compared, store, p)
    folder = str(next(iter(compared.units.values())).folder / "sae")
    published = p.model_copy(update={"published": [folder]})
    opened = open_published(published, store.d_in)
    comparison.judge_published(opened, store, SimpleNamespace(p=published, device="cpu"))
    causal = {"model": "atlas", "sae_expansion": 2.0, "sae_k": 4, "sae_steps": 30, "device": "cpu"}
    causal_subspaces.trained_sae(store, resolve("06_causal_checks", causal), "cpu")
    save_saelens(SAE(SAEConfig(128, 32, k=4)), root / "of_atlas" / "sae")
    at = resolve("04_sae_compare", SAES | {"model": "atlas", "hook": "resid_post", "layer": 2})
    truth._labels_cell(root / "of_atlas", at.layer, at, "cpu")
    plant(root / "model")
    p = resolve("04_sae_compare", SAES | CIRCUIT | {"model": str(root / "model")})
    store = open_or_capture(p.model, 0, "mlp_out", p.n_tokens, context_size=3, root=root / "cache", device="cpu")
    run = SimpleNamespace(p=p, device="cpu")
    fourier.of_saes(fourier.world(store, run), comparison.compare(store, p, "cpu"), store, run)


def numbers(kind_folder):
    """Return every number of a kind's units by name: the mean over them, of tables and tensors in absolute value."""
    found = {}
    for folder in sorted(path for path in kind_folder.iterdir() if (path / "unit.json").is_file()):
        unit = load_unit(folder)
        parts = {name: value for name, value in unit.scalars.items() if isinstance(value, int | float)}
        for name, table in unit.tables.items():
            parts |= {f"{name}.{c}": table[c].abs().mean() for c in table.select_dtypes("number")}
        parts |= {name: float(tensor.double().abs().mean()) for name, tensor in unit.arrays.items()}
        for name, value in parts.items():
            if "second" not in name and np.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RKCNN_OUTPUTS", str(root / "outputs"))
        make_all(root)
    return root / "outputs" / "units"


def test_every_kind_of_unit_is_held_to_a_version(made):
    assert {path.name for path in made.iterdir()} == set(VERSIONS) == set(json.loads(KEPT.read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", sorted(VERSIONS))
def test_numbers_that_change_have_another_version(kind, made):
    kept = json.loads(KEPT.read_text(encoding="utf-8"))[kind]
    assert kept["version"] == VERSIONS[kind], "the version is new: write the results anew"
    now, before = numbers(made / kind), kept["numbers"]
    assert list(now) == list(before)
    differ = [
        f"{name} {before[name]:.4g} -> {now[name]:.4g}"
        for name, ok in zip(now, same(now, before), strict=True)
        if not ok
    ]
    assert not differ, f"raise VERSIONS[{kind!r}]: {', '.join(differ)}"


def same(now, before):
    """Say for each number whether it is the same; other processors round otherwise."""
    return np.isclose(list(now.values()), list(before.values()), rtol=0.05, atol=1e-3)


def write():
    """Write the results anew; refuse for a kind whose numbers changed and whose version did not."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    with tempfile.TemporaryDirectory() as root:
        os.environ["RKCNN_OUTPUTS"] = f"{root}/outputs"
        make_all(Path(root))
        found = {kind: numbers(Path(root, "outputs/units", kind)) for kind in VERSIONS}
    for kind in kept.keys() & VERSIONS.keys():
        before = kept[kind]["numbers"]
        comparable = kept[kind]["version"] == VERSIONS[kind] and list(before) == list(found[kind])
        if comparable and not same(found[kind], before).all():
            sys.exit(f"{kind}: other numbers under the same version; raise it in VERSIONS")
    rounded = {
        kind: {"version": VERSIONS[kind], "numbers": {name: float(f"{value:.6g}") for name, value in values.items()}}
        for kind, values in found.items()
    }
    KEPT.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
