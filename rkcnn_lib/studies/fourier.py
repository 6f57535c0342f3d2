"""The Fourier panel of 04, for modular addition: is the model the known circuit, and what do its SAEs see of it?

Everything that an SAE is held against comes from the model: its key frequencies from the embedding, the plane of each
from the activations. Latents are fitted on the pairs their SAE was trained on and judged on held-out pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure.fourier import (
    Circuit,
    circuit,
    fourier_losses,
    fourier_losses_chance,
    frequency_power,
    strongest_share_chance,
)
from rkcnn_lib.measure.fourier_planes import (
    Planes,
    energy_chance,
    fourier_planes,
    latent_fit,
    plane_energy,
    span_energy,
)
from rkcnn_lib.measure.recovery import Chance
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAE, load_saelens
from rkcnn_lib.studies.agreement import Agreement
from rkcnn_lib.studies.cells import model_of
from rkcnn_lib.studies.comparison import Compared, in_order
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
ANY = " (chance: any directions)"
DRAWS = 5  # of other frequencies, for the chance levels of the losses
BATCH = 2048


@dataclass(frozen=True)
class World:
    """A modular-addition model on all its pairs: its circuit, the planes of the activations, its logits."""

    lm: Any
    p: int
    circuit: Circuit
    planes: Planes
    hook: str
    logits: torch.Tensor
    shuffled: Planes  # the same fit with the sums shuffled

    @property
    def figures(self) -> pd.DataFrame:
        """The circuit's figures beside chance: figure, value, chance_mean, chance_upper."""
        rows = [
            (name, value, *self.circuit.chance.get(name, (np.nan, np.nan)))
            for name, value in self.circuit.figures.items()
        ]
        # the share of the activations' variance that turns with a + b at the key frequencies
        waves, level = (float(planes.explained.sum()) for planes in (self.planes, self.shuffled))
        rows.append((f"waves in {self.hook}", waves, level, level))
        return pd.DataFrame(rows, columns=["figure", "value", "chance_mean", "chance_upper"])

    @property
    def power(self) -> pd.DataFrame:
        """Share of W_E's power by frequency, in the form the figure takes."""
        W = self.lm.W_E[: self.p]
        power = frequency_power(W).numpy()
        frequencies = np.arange(1, len(power) + 1)
        return pd.DataFrame({
            "frequency": frequencies, "value": power, "is_key": np.isin(frequencies, self.circuit.frequencies),
            "chance_upper": strongest_share_chance(W, 1).upper,
        })  # fmt: skip

    @property
    def title(self) -> str:
        """The finding about the model."""
        figures, keys = self.circuit.figures, self.circuit.frequencies
        level = self.circuit.chance["key_power"].mean
        return (
            f"{len(keys)} key frequencies ({', '.join(map(str, sorted(keys)))}) carry {figures['key_power']:.1%} of "
            f"the embedding's power (shuffled weights: {level:.0%}); accuracy on pairs never seen "
            f"{figures['accuracy']:.2%}"
        )

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
        return "First step with more than 99.9 % right: " + ", ".join(f"{arm} {step}" for arm, step in first.items())


def world(store: Any, run: Run) -> World | None:
    """Return the model of a run as the known circuit, None where the run's model is another."""
    if store.manifest.get("facts", {}).get("task") != "modular addition":
        return None
    lm = model_of(run.p, run.device)
    p = lm.cfg.d_vocab - 1
    logits, neurons = _on_all_pairs(lm, p, read=hook_name("mlp_post", 0))
    known = circuit(lm.W_E[:p], neurons, logits, lm.untrained)
    X, sums = _rows(store, p, "train", 0)
    planes = fourier_planes(X, sums, known.frequencies, p)
    order = torch.randperm(len(sums), generator=torch.Generator().manual_seed(0))
    shuffled = fourier_planes(X, sums[order], known.frequencies, p)
    return World(lm, p, known, planes, store.manifest["hook_name"], logits, shuffled)


@torch.no_grad()
def _on_all_pairs(
    lm: Any, p: int, sae: SAE | None = None, at: str | None = None, read: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (p * p, p) at the ``=``, an SAE in place at hook ``at``, and what passes hook ``read`` there."""
    seen: list[torch.Tensor] = []

    def replace(activations: torch.Tensor, hook: Any = None) -> torch.Tensor:
        replaced = activations.clone()
        replaced[:, -1] = sae.decode(sae.encode(activations[:, -1]))
        return replaced

    def keep(activations: torch.Tensor, hook: Any = None) -> None:
        seen.append(activations[:, -1].cpu())

    hooks = ([(at, replace)] if sae is not None else []) + ([(read, keep)] if read else [])
    tokens = modadd.inputs(modadd.all_pairs(p), p).to(lm.cfg.device)
    parts = [lm.run_with_hooks(part, return_type="logits", fwd_hooks=hooks) for part in tokens.split(BATCH)]
    return torch.cat([part[:, -1, :p].float().cpu() for part in parts]), torch.cat(seen) if seen else torch.empty(0)


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
    D, keys, p = sae.W_dec.detach().cpu()[live], known.circuit.frequencies, known.p
    X, sums = _rows(store, p, "train", seed)
    levels, spread = energy_chance(len(D), known.planes), energy_chance(len(D), known.planes, X - X.mean(0))
    best_energy = float(plane_energy(D, known.planes).amax(1).mean())
    X_heldout, sums_heldout = _rows(store, p, "heldout", seed)
    Z, Z_heldout = (sae.encode(part.to(device)).detach().cpu()[:, live] for part in (X, X_heldout))

    def fit(shuffle: int | None = None) -> tuple[float, float]:
        order = torch.arange(len(sums)), torch.arange(len(sums_heldout))
        if shuffle is not None:
            generator = torch.Generator().manual_seed(shuffle)
            order = tuple(torch.randperm(len(some), generator=generator) for some in order)
        r2 = latent_fit(Z, sums[order[0]], Z_heldout, sums_heldout[order[1]], keys, p)
        return float(r2.best.nanmean()), float(r2.all.nanmean())

    by_chance = [Chance.of(fits) for fits in zip(*map(fit, range(SHUFFLES)), strict=True)]
    logits, _ = _on_all_pairs(known.lm, p, sae, known.hook)
    losses = fourier_losses(logits, keys, known.lm.untrained)
    others = fourier_losses_chance(logits, keys, known.lm.untrained, n_draws=DRAWS)
    uniform = Chance(losses["uniform"], losses["uniform"])
    best, all_ = fit()
    shown = [
        ("energy in the best key plane", best_energy, spread.best),
        ("energy in the best key plane" + ANY, best_energy, levels.best),
        ("energy in all key planes", float(span_energy(D, known.planes).mean()), levels.span),
        ("R² at one key frequency", best, by_chance[0]),
        ("R² at all key frequencies", all_, by_chance[1]),
        ("loss with the SAE (nats)", losses["full"], uniform),
        ("restricted loss with the SAE (nats)", losses["restricted"], others["restricted"]),
        ("excluded loss with the SAE (nats)", losses["excluded"], others["excluded"]),
    ]
    rows = [(name, value, *level) for name, value, level in shown]
    return Unit(tables={"fourier": pd.DataFrame(rows, columns=["metric", "value", "chance_mean", "chance_upper"])})


def title(table: pd.DataFrame) -> str:
    """Return the finding about the SAEs."""
    means = table.groupby(["metric", "arm"])[["value", "chance_mean"]].mean()

    def beside_chance(metric: str) -> str:
        one = means.loc[metric]
        return (
            f"{MINED} {one['value'][MINED]:.2f}, {UNMINED} {one['value'][UNMINED]:.2f} "
            f"(chance {one['chance_mean'][UNMINED]:.2f})"
        )

    return (
        f"Energy of latents in their best key plane: {beside_chance('energy in the best key plane')}; "
        f"R² at one key frequency: {beside_chance('R² at one key frequency')}"
    )


def beside_reported(agreed: Agreement, p: SaeCompare) -> pd.DataFrame:
    """Return the random arm of each architecture here, and what the earlier study reported, as far as it did."""
    arms = {p.architecture: UNMINED, p.other_architecture: f"{UNMINED}, {p.other_architecture}"}
    ours = agreed.summary.loc[[arm for arm in arms.values() if arm in agreed.summary.index]]
    ours.index = [architecture for architecture, arm in arms.items() if arm in agreed.summary.index]
    reported = pd.DataFrame(REPORTED).T.assign(**{"chance for it, any directions": REPORTED_CHANCE})
    return ours.join(reported)
