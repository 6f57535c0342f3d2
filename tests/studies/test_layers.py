"""Seeds agree fully at a layer where they learned the same, as chance does where they did not, and are judged."""

import numpy as np
import pytest
import torch

from rkcnn_lib.runs.params import resolve
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from rkcnn_lib.studies import layers

CONFIG = SAEConfig(d_in=16, d_sae=24, k=4)
EVERYWHERE = np.eye(16)  # activations of no preferred direction


def folder_of(layer, arm, seed, draw):
    """Return the folder of an SAE unit whose decoder is drawn from ``draw``."""

    def compute(scratch):
        sae = SAE(CONFIG)
        decoder = torch.randn(24, 16, generator=torch.Generator().manual_seed(draw))
        sae.W_dec.data = torch.nn.functional.normalize(decoder, dim=1)
        return Unit(arrays={"density": torch.ones(24)}, save_extra=lambda folder: save_saelens(sae, folder / "sae", {}))

    return cached_unit("saes", {"layer": layer, "arm": arm, "seed": seed}, compute).folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    same = {(3, "rkcnn", seed): folder_of(3, "rkcnn", seed, 0) for seed in range(4)}
    return same | {(3, "random", seed): folder_of(3, "random", seed, 10 + seed) for seed in range(4)}


def test_seeds_that_learned_the_same_agree_fully_and_others_as_chance_does(folders):
    table = layers._agreement_cell(folders, EVERYWHERE)
    means = table.groupby("arm")[["value", "chance_mean", "chance_upper"]].mean()
    assert means.loc["rkcnn", "value"] == pytest.approx(1, abs=1e-5)
    assert means.loc["random", "value"] == pytest.approx(means.loc["random", "chance_mean"], abs=0.04)
    assert set(table["layer"]) == {3} and table.groupby("arm")["seed"].apply(list)["random"] == [0, 1, 2, 3]


def test_two_seeds_have_no_agreement_to_judge(folders):
    assert layers._agreement_cell({cell: folder for cell, folder in folders.items() if cell[2] < 2}, EVERYWHERE).empty


def test_agreement_that_was_not_matched_exactly_is_not_judged(folders, monkeypatch):
    monkeypatch.setattr(layers.agreement, "EXACT_UP_TO", 23)  # the dictionaries have 24
    assert layers._agreement_cell(folders, EVERYWHERE).empty


def test_agreement_is_judged_where_it_was_measured_and_left_out_where_it_was_not(folders):
    p = resolve("05_multilayer", {"arms": ["random", "rkcnn"]})
    table = layers._agreement_cell(folders, EVERYWHERE)
    (contrast,) = layers.differences(table, p).to_dict("records")
    assert contrast["metric"] == "pw_mcc" and contrast["difference"] > 0.3 and contrast["delta"] == p.delta_mcc
    assert [(row["hypothesis"][:3], row["metric"]) for row in layers.verdicts(table, p)] == [("H1:", "pw_mcc")]
