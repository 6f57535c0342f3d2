"""The Fourier panel on a small planted circuit: an SAE made of the planes is at 1, a random one at chance."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.embedded.modadd import Settings, train
from rkcnn_lib import figures
from rkcnn_lib.measure.fourier import energy_chance, plane_energy, waves
from rkcnn_lib.runs.params import resolve
from rkcnn_lib.studies import agreement, comparison, fourier
from rkcnn_lib.worlds import load_model, open_or_capture
from rkcnn_lib.worlds.models import modadd

P, KEYS, D = 29, [2, 5, 11], 32


def plant(folder):
    """Write a model whose embedding is waves of the key frequencies alone; the rest is untrained."""
    train(folder, Settings(p=P, d_model=D, n_heads=2, d_mlp=64, steps=1), progress=False)
    from safetensors.torch import save_file

    weights = modadd.read_weights(folder)
    generator = torch.Generator().manual_seed(5)
    weights["W_E"][:P] = waves(torch.arange(P), KEYS, P).float() @ torch.randn(6, D, generator=generator)
    save_file(weights, folder / "model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("fourier")
    plant(root / "model")
    p = resolve("04_sae_compare", {
        "profile": "test", "model": str(root / "model"), "layer": 0, "hook": "mlp_out", "n_tokens": 3 * P * P,
        "context_size": 3, "arms": ["random", "rkcnn"], "n_seeds": 2, "expansion": 1.0, "k": 4, "variants": [],
        "steps": 20, "batch_size": 128, "lr": 1e-3, "n_neighbours": 4, "mining_rows": 200,
        "heldout_rows": 200, "splice_contexts": 50, "front_k": [], "n_jobs": 1, "device": "cpu",
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RKCNN_OUTPUTS", str(root / "outputs"))
        store = open_or_capture(p.model, 0, "mlp_out", p.n_tokens, context_size=3, root=root / "cache", device="cpu")
        run = SimpleNamespace(p=p, device="cpu")
        yield SimpleNamespace(store=store, run=run, compared=comparison.compare(store, p, "cpu"))


@pytest.fixture(scope="module")
def world(home):
    return fourier.world(home.store, home.run)


def test_the_model_s_key_frequencies_are_the_planted_ones(world):
    assert sorted(world.circuit.frequencies) == KEYS
    assert world.power.query("is_key")["frequency"].tolist() == KEYS
    assert "3 key frequencies (2, 5, 11)" in world.title
    assert figures.frequency_power(world.power).data


def test_a_model_that_never_learned_is_told_so_beside_chance(world):
    rows = world.figures.set_index("figure")
    assert rows.loc["accuracy", "value"] < 0.2  # one step of training: the embedding is planted, the rest is not
    assert rows.loc["waves in blocks.0.hook_mlp_out", "value"] < 0.5
    assert rows.loc["waves in blocks.0.hook_mlp_out", "chance_mean"] < 0.05
    assert world.history_title.endswith("pairs trained on never, pairs never seen never")


def test_another_model_has_no_panel(home):
    language = SimpleNamespace(manifest={"facts": {"task": "next token"}})
    assert fourier.world(language, home.run) is None
    assert fourier.world(SimpleNamespace(manifest={}), home.run) is None


def test_directions_of_the_planes_have_energy_1_and_random_ones_chance(world):
    phase = torch.linspace(0, 6, 12).double()
    inside = phase.cos()[:, None] * world.planes.basis[0, 0] + phase.sin()[:, None] * world.planes.basis[0, 1]
    random = torch.randn(300, D, generator=torch.Generator().manual_seed(3))
    best, _ = energy_chance(300, world.planes)
    assert plane_energy(inside, world.planes).amax(1).min() > 0.999
    assert float(plane_energy(random, world.planes).amax(1).mean()) == pytest.approx(best.mean, abs=0.02)


def test_the_model_untouched_is_what_an_edit_that_changes_nothing_leaves(home, world):
    logits = fourier._logits(world.lm, P, world.hook, lambda x: x)
    lm = load_model(home.run.p.model, device="cpu")
    with torch.no_grad():
        plain = lm(modadd.inputs(modadd.all_pairs(P), P), return_type="logits")[:, -1, :P]
    assert torch.allclose(plain, logits, atol=1e-5)


def test_sums_of_rows_are_those_of_their_pairs(home):
    X, sums = fourier._rows(home.store, P, "heldout", 0)
    contexts = home.store.contexts("heldout")
    assert torch.equal(sums, modadd.asked(contexts)[1][:, 0]) and len(X) == len(sums)


def test_every_sae_has_every_measure_beside_chance(home, world):
    table = fourier.of_saes(world, home.compared, home.store, home.run)
    assert len(table) == 2 * 2 * 8 and table[["value", "chance_mean"]].notna().all().all()
    energies = table[table["metric"].str.startswith("energy")]
    assert energies["value"].between(0, 1).all()
    assert "chance" in fourier.title(table) and figures.arm_metrics(table).data


def test_agreement_of_both_architectures_stands_beside_chance_and_what_was_reported(home):
    p = home.run.p.model_copy(update={"other_architecture": "relu", "n_jobs": 1})
    relu = p.model_copy(update={"architecture": "relu", "l1": 0.5})
    other = comparison.compare(home.store, relu, "cpu", trained=["random", "rkcnn"])
    agreed = agreement.agreement(home.compared, home.store, p, other)
    shown = fourier.beside_reported(agreed, p)
    assert shown.loc["topk", "PWMCC reported"] == 0.302 and shown.loc["relu", "PWMCC reported"] == 0.3
    after = agreed.table[agreed.table["metric"] == "PW-MCC after training"]
    assert (after["chance_mean"] > after["chance_any"]).all()  # activations fill few dimensions: to agree is easier


def test_an_architecture_that_was_not_trained_is_left_out(home):
    p = home.run.p.model_copy(update={"other_architecture": None, "n_jobs": 1})
    shown = fourier.beside_reported(agreement.agreement(home.compared, home.store, p), p)
    assert list(shown.index) == ["topk"]
