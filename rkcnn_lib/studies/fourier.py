"""The Fourier panel of 04, for modular addition: is the model the known circuit, and what do its SAEs see of it?

Everything that an SAE is held against comes from the model: its key frequencies from the embedding, the plane of each
from the activations. Latents are fitted on the pairs their SAE was trained on and judged on held-out pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import fourier
from rkcnn_lib.measure.causal import run_edited
from rkcnn_lib.measure.recovery import Chance
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.agreement import Agreement
from rkcnn_lib.studies.cells import model_of
from rkcnn_lib.studies.comparison import Compared, in_order
from rkcnn_lib.studies.verdicts import listed
from rkcnn_lib.vocabulary import MINED, UNMINED
from rkcnn_lib.worlds import hook_name
from rkcnn_lib.worlds.models import modadd

# What an earlier study of seed stability reported (HUSAI, github.com/brightlikethelight/HUSAI, notes of 3 November
# 2025): 5 seeds, 1024 latents on 128 dimensions. Its transformer had read the answer, so its figures are no target.
# Random unit dictionaries of that size give 0.298.
REPORTED = {
    "topk": {"PWMCC reported": 0.302, "EV reported": 0.923, "L0 reported": 32.0},
    "relu": {"PWMCC reported": 0.300, "EV reported": 0.980, "L0 reported": 427.0},
}
REPORTED_CHANCE = 0.298
SHUFFLES = 5  # of the sums, for the chance level of R^2
DRAWS = 5  # of other frequencies, for the chance levels of the losses
BATCH = 2048


@dataclass(frozen=True)
class World:
    """A modular-addition model on all its pairs: its circuit, and the planes of the activations at a hook."""

    lm: Any
    p: int
    circuit: fourier.Circuit
    planes: fourier.Planes
    hook: str
    shuffled: fourier.Planes  # the same fit with the sums shuffled

    @property
    def figures(self) -> pd.DataFrame:
        """The circuit's figures beside chance: figure, value, chance_mean, chance_upper.

        The last: what share of the activations' variance turns with a + b at the key frequencies.
        """
        _, figures, chance = self.circuit
        waves, level = (float(planes.explained.sum()) for planes in (self.planes, self.shuffled))
        rows = [(name, value, *chance.get(name, (np.nan, np.nan))) for name, value in figures.items()]
        rows.append((f"waves in {self.hook}", waves, level, level))
        return pd.DataFrame(rows, columns=["figure", "value", "chance_mean", "chance_upper"])

    @property
    def power(self) -> pd.DataFrame:
        """Share of W_E's power by frequency, in the form the figure takes."""
        W = self.lm.W_E[: self.p]
        power = fourier.frequency_power(W).numpy()
        frequencies = np.arange(1, len(power) + 1)
        return pd.DataFrame({
            "frequency": frequencies, "value": power, "is_key": np.isin(frequencies, self.circuit.frequencies),
            "chance_upper": fourier.strongest_share_chance(W, 1).upper,
        })  # fmt: skip

    @property
    def title(self) -> str:
        """The finding about the model."""
        keys, figures, chance = self.circuit
        named, level = ", ".join(map(str, sorted(keys))), f"shuffled weights: {chance['key_power'].mean:.0%}"
        carried = f"carry {figures['key_power']:.1%} of the embedding's power ({level})"
        unseen = f"accuracy on pairs never seen {figures['accuracy']:.2%}"
        return f"{len(keys)} key frequencies ({named}) {carried}; {unseen}"

    @property
    def history(self) -> pd.DataFrame:
        """Loss and accuracy in training, of trained and of other pairs, in the form of training curves."""
        long = pd.DataFrame(self.lm.history).melt(id_vars="step", var_name="name")
        arm = long["name"].str.startswith("train").map({True: "pairs trained on", False: "pairs never seen"})
        metric = long["name"].str.rpartition("_")[2].map({"loss": "cross-entropy (nats)", "accuracy": "accuracy"})
        return long.assign(arm=arm, metric=metric, seed=0).drop(columns="name")

    @property
    def history_title(self) -> str:
        """The finding about the training."""
        right = self.history.query("metric == 'accuracy' and value > 0.999").groupby("arm")["step"].min()
        first = {arm: right.get(arm, "never") for arm in ("pairs trained on", "pairs never seen")}
        return f"First step with more than 99.9 % right: {listed(first, '')}"


def world(store: Any, run: Run) -> World | None:
    """Return the model of a run as the known circuit, None where the run's model is another."""
    if store.manifest.get("facts", {}).get("task") != "modular addition":
        return None
    lm = model_of(run.p.model, run.p.revision, run.device)
    p = lm.cfg.d_vocab - 1
    neurons: list[torch.Tensor] = []

    def read(activations: torch.Tensor) -> torch.Tensor:
        neurons.append(activations.cpu())
        return activations

    logits = _logits(lm, p, hook_name("mlp_post", 0), read)
    known = fourier.circuit(lm.W_E[:p], torch.cat(neurons), logits, lm.untrained)
    X, sums = _rows(store, p, "train", 0)
    order = torch.randperm(len(sums), generator=torch.Generator().manual_seed(0))
    planes, shuffled = (fourier.fourier_planes(X, some, known.frequencies, p) for some in (sums, sums[order]))
    return World(lm, p, known, planes, store.manifest["hook_name"], shuffled)


@torch.no_grad()
def _logits(lm: Any, p: int, hook: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the logits (p * p, p) of all pairs at the ``=``, where what passes a hook is edited."""
    tokens = modadd.inputs(modadd.all_pairs(p), p)
    parts = [run_edited(lm, part, hook, (slice(None), -1), edit) for part in tokens.split(BATCH)]
    return torch.cat([part[:, -1, :p].float().cpu() for part in parts])


def _rows(store: Any, p: int, split: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a split's activations and the sum mod p of each row's pair."""
    rows = store.rows(split, seed)
    tokens = np.asarray(store.tokens, dtype=np.int64)
    return store.take(rows), torch.from_numpy((tokens[rows - 2] + tokens[rows - 1]) % p)


def of_saes(known: World, compared: Compared, store: Any, run: Run) -> pd.DataFrame:
    """Measure every SAE against the circuit: arm, seed, metric, value, chance_mean, chance_upper.

    Energies and R^2 are means over live latents. Energy in the best plane has two chance levels: directions of the
    activations' covariance, which a latent must beat to be of one frequency, and any directions. Losses are those of
    the model with the SAE in place, on pairs it was never trained on; their chance is that of other frequencies.
    """
    rows = []
    for (arm, seed), unit in compared.units.items():
        inputs = {"unit": unit.folder.name, "keys": known.circuit.frequencies}
        measured = cached_unit("fourier", inputs, lambda _, u=unit, s=seed: _measure(known, u, store, s, run.device))
        rows.append(measured.tables["fourier"].assign(arm=arm, seed=seed))
    table = pd.concat(rows)
    return in_order(table, "metric", list(dict.fromkeys(table["metric"])))


def _measure(known: World, unit: Unit, store: Any, seed: int, device: str) -> Unit:
    sae = load_saelens(unit.folder / "sae").to(device)
    live = (unit.arrays["density"] > 0).cpu()
    D, keys, p, counted = sae.W_dec.detach().cpu()[live], known.circuit.frequencies, known.p, known.lm.untrained
    (X, sums), (X_heldout, sums_heldout) = (_rows(store, p, split, seed) for split in ("train", "heldout"))
    any_best, any_span = fourier.energy_chance(len(D), known.planes)
    spread_best, _ = fourier.energy_chance(len(D), known.planes, X - X.mean(0))
    best_energy = float(fourier.plane_energy(D, known.planes).amax(1).mean())
    Z, Z_heldout = (sae.encode(part.to(device)).detach().cpu()[:, live] for part in (X, X_heldout))

    def fit(answers: torch.Tensor, answers_heldout: torch.Tensor) -> list[float]:
        return [float(of.nanmean()) for of in fourier.latent_fit(Z, answers, Z_heldout, answers_heldout, keys, p)]

    def shuffled(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [some[torch.randperm(len(some), generator=generator)] for some in (sums, sums_heldout)]

    best, all_ = fit(sums, sums_heldout)
    draws = [fit(*shuffled(seed)) for seed in range(SHUFFLES)]
    best_by_chance, all_by_chance = (Chance.of(fits) for fits in zip(*draws, strict=True))
    logits = _logits(known.lm, p, known.hook, lambda x: sae.decode(sae.encode(x)))
    losses = fourier.fourier_losses(logits, keys, counted)
    others = fourier.fourier_losses_chance(logits, keys, counted, n_draws=DRAWS)
    rows = [
        ("energy in the best key plane", best_energy, *spread_best),
        ("energy in the best key plane (chance: any directions)", best_energy, *any_best),
        ("energy in all key planes", float(fourier.span_energy(D, known.planes).mean()), *any_span),
        ("R² at one key frequency", best, *best_by_chance),
        ("R² at all key frequencies", all_, *all_by_chance),
        ("loss with the SAE (nats)", losses["full"], losses["uniform"], losses["uniform"]),
        ("restricted loss with the SAE (nats)", losses["restricted"], *others["restricted"]),
        ("excluded loss with the SAE (nats)", losses["excluded"], *others["excluded"]),
    ]
    return Unit(tables={"fourier": pd.DataFrame(rows, columns=["metric", "value", "chance_mean", "chance_upper"])})


def title(table: pd.DataFrame) -> str:
    """Return the finding about the SAEs."""
    means, told = table.groupby(["metric", "arm"])[["value", "chance_mean"]].mean(), []
    for metric in ("energy in the best key plane", "R² at one key frequency"):
        of_arm, chance = means.loc[metric, "value"][[MINED, UNMINED]], means.loc[(metric, UNMINED), "chance_mean"]
        told.append(f"{listed(of_arm, '.2f')} (chance {chance:.2f})")
    return "Energy of latents in their best key plane: {}; R² at one key frequency: {}".format(*told)


def beside_reported(agreed: Agreement, p: SaeCompare) -> pd.DataFrame:
    """Return the random arm of each architecture here, and what the earlier study reported, as far as it did."""
    arms = {UNMINED: p.architecture, f"{UNMINED}, {p.other_architecture}": p.other_architecture}
    ours = agreed.summary[agreed.summary.index.isin(arms)].rename(index=arms)
    return ours.join(pd.DataFrame(REPORTED).T.assign(**{"chance for it, any directions": REPORTED_CHANCE}))
