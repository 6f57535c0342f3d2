"""One call or more of every public name of the tensor rooms, with inputs on the pretend CUDA device.

A name of a room's ``__all__``, or of a module of `rkcnn_lib.measure`, is ``room.name``; further cases say in words what
is where. A call must not raise, and must not return False. ``python -m tests.pretend_calls`` makes them all and prints
{case: what came of it, "" if all is well} as JSON.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from rkcnn_lib import measure, probe, sae
from rkcnn_lib.measure import (
    causal,
    effects,
    fourier,
    probing,
    recovery,
    stability,
)
from rkcnn_lib.measure.quality import splice_losses
from tests.measure.planted_reader import HOOK, D, PlantedReader

N = 240  # rows
P = 7  # modulus
KEYS = [1, 2]  # frequencies


@cache
def X() -> torch.Tensor:
    """(N, D) sparse mixtures on the pretend device."""
    generator = torch.Generator("cuda").manual_seed(0)
    active = torch.rand(N, D, generator=generator, device="cuda").pow(8)
    return active @ torch.randn(D, D, generator=generator, device="cuda")


def unit(n: int = 6) -> torch.Tensor:
    """(n, D) unit rows on the pretend device."""
    return torch.nn.functional.normalize(torch.randn(n, D, device="cuda"), dim=1)


def labels() -> np.ndarray:
    return np.arange(N) % 3


def subsets(kind: str = "coordinate") -> probe.Subsets:
    return probe.draw_subsets(D, 4, 12, kind).to("cuda")


def miner(**words: object) -> probe.RkCNNMiner:
    return probe.RkCNNMiner(12, n_directions=4, **words)


def trained(architecture: str = "topk", rows: torch.Tensor | None = None, **words: object) -> sae.SAE:
    """An SAE of D inputs and 32 latents, trained for three steps on the pretend device."""
    options = {"topk": {"k": 4}, "batchtopk": {"k": 4, "aux_k": 8}, "relu": {"l1": 1.0}, "jumprelu": {}}
    config = sae.SAEConfig(D, 32, architecture, **options[architecture])
    settings = sae.TrainConfig(3, batch_size=64, snapshot_steps=(0, 3), dead_tokens=64, log_every=1, clip=1.0)
    return sae.train_sae(X() if rows is None else rows, config, settings, progress=False, **words)


def resumed() -> bool:
    """Train to a checkpoint, then again from it: nothing is left to do."""
    with tempfile.TemporaryDirectory() as folder:
        first = trained(checkpoint=folder)
        return torch.equal(trained(checkpoint=folder).W_dec, first.W_dec) and first.W_dec.is_cuda


def each_architecture() -> None:
    for name in sae.ARCHITECTURES:
        made = sae.SAE(sae.SAEConfig(D, 32, name)).to("cuda") if name == "jumprelu" else trained(name)
        made(X())
        measure.quality(made, X())


def saved_and_loaded() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        sae.save_saelens(trained("batchtopk"), folder)
        return sae.load_saelens(folder, device="cuda").W_dec.is_cuda


@cache
def lm() -> PlantedReader:
    """A model on the pretend device; its prompt pairs are on the CPU."""
    model = PlantedReader(0).to("cuda")
    model.readout, model.bias = model.readout.to("cuda"), model.bias.to("cuda")
    return model


def pairs() -> causal.PromptPairs:
    return PlantedReader(0).pairs(n_pairs=24)


def tokens() -> torch.Tensor:
    return torch.arange(40).view(10, 4) % lm().n


def names() -> tuple[list[str], list[str]]:
    return [f"base {i % 5}" for i in range(24)], [f"donor {i % 7}" for i in range(24)]


def basis() -> torch.Tensor:
    return lm().basis(0, 1)


def answers() -> tuple[torch.Tensor, torch.Tensor]:
    """(24, vocabulary) logits, clean and after an interchange."""
    donated = causal.donor_activations(lm(), pairs(), HOOK)
    clean = causal.clean_logits(lm(), pairs())
    return clean, causal.patched_logits(lm(), pairs(), HOOK, basis(), "ablate", donated)


def drops() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(effects.effects(answers()[0], logits, pairs())["logit_difference"] for logits in answers())


def judged() -> effects.SubspaceVerdict:
    share = effects.interchange_shares(*drops(), drops()[1])
    right = torch.ones(24, device="cuda")
    return effects.subspace_verdict(share, [0 * share, share / 2], right, *names(), 0.1, 0.1)


def told_apart() -> np.ndarray:
    right, foils = [str(i % 3) for i in range(24)], [str((i + 1) % 3) for i in range(24)]
    return effects.tells_apart(X()[:24], right, X()[:90], [str(i % 3) for i in range(90)], foils)


def sums(device: str = "cuda") -> torch.Tensor:
    a = torch.arange(P, device=device)
    return ((a[:, None] + a) % P).flatten()


def turning(width: int = 12) -> torch.Tensor:
    """(P * P, width) activations that turn with the sum, on the pretend device."""
    generator = torch.Generator().manual_seed(0)
    return (fourier.waves(sums("cpu"), KEYS, P).float() @ torch.randn(4, width, generator=generator)).to("cuda")


def planes() -> fourier.Planes:
    return fourier.fourier_planes(turning(), sums(), KEYS, P)


def table() -> torch.Tensor:
    """(P * P, P) logits of a model that adds, on the pretend device."""
    return turning(P) + 1e-3 * torch.randn(P * P, P, device="cuda")


def embedding() -> torch.Tensor:
    return fourier.waves(torch.arange(P), KEYS, P).float().to("cuda")


def counted() -> torch.Tensor:
    return torch.arange(P * P, device="cuda") % 2 == 0


def seeds() -> list[sae.SAE]:
    return [sae.SAE(sae.SAEConfig(D, 32, k=4), seed).to("cuda") for seed in range(3)]


def decoders() -> list[torch.Tensor]:
    return [one.W_dec for one in seeds()]


def covariance() -> torch.Tensor:
    return X().T.cov()


def split_up() -> probing.Hierarchy:
    Z, parent = trained().encode(X()), X()[:, 0] > X()[:, 0].median()
    return probing.splitting_and_absorption((Z, X(), parent), (Z, X(), parent), trained().W_dec, n_permutations=2)


def live() -> list[torch.Tensor]:
    return [torch.arange(32, device="cuda") > 3] * 3


CALLS: dict[str, Callable] = {
    "probe.CONTRASTS": lambda: [probe.projection_contrast(X(), unit(), name) for name in probe.CONTRASTS],
    "probe.METHODS": lambda: all(probe.mine(name, X(), 6).is_cuda for name in probe.METHODS),
    "probe.SCORES": lambda: [
        probe.subset_scores(X(), subsets(kind), name, labels())
        for name in probe.SCORES
        for kind in ("coordinate", "rotated")
    ],
    "probe.RandomKCNNClassifier": lambda: probe.RandomKCNNClassifier(30).fit(X(), labels()).predict_proba(X()[:9]),
    "probe.RkCNNMiner": lambda: miner(n_stages=2, score="kurtosis").fit(X()[:60]).transform(X()).is_cuda,
    "probe.Subsets": lambda: subsets("rotated").restrict(X(), 3).is_cuda and subsets().basis(0).is_cuda,
    "probe.Surrogate": lambda: probe.Surrogate(X(), "gaussian").draw(torch.Generator("cuda")).is_cuda,
    "probe.Whitening": lambda: (white := probe.whiten(X())).patterns(white.from_filters(white.filters(unit()))).is_cuda,
    "probe.ascend": lambda: [probe.ascend(probe.whiten(X()).apply(X()), unit(), name) for name in probe.CONTRASTS],
    "probe.distinct": lambda: probe.distinct(unit(), torch.arange(6, device="cuda")).is_cuda,
    "probe.draw_subsets": lambda: probe.draw_subsets(D, 4, 12).to("cuda").indices.is_cuda,
    "probe.fisher_lift": lambda: probe.fisher_lift(X(), labels())[1].is_cuda,
    "probe.kcnn_posterior": lambda: probe.kcnn_posterior(X()[:, :3].abs()).is_cuda,
    "probe.mine": lambda: probe.mine("rkcnn", X(), 6, n_subsets=30).is_cuda,
    "probe.permute_labels": lambda: probe.permute_labels(labels()),
    "probe.principal_directions": lambda: probe.principal_directions(X().T @ X(), subsets())[0].is_cuda,
    "probe.projection_contrast": lambda: probe.projection_contrast(X(), unit(), "skew").is_cuda,
    "probe.subset_scores": lambda: probe.subset_scores(X(), probe.draw_subsets(D, 4, 12)).is_cuda,
    "probe.surrogate": lambda: probe.surrogate(X()).is_cuda,
    "probe.whiten": lambda: probe.whiten(X()).apply(X()).is_cuda,
    "sae.ARCHITECTURES": each_architecture,
    "sae.SAE": lambda: trained().reconstruct(X())[0].is_cuda,
    "sae.SAEConfig": lambda: sae.SAE(sae.SAEConfig(D, 8, k=2)).to("cuda")(X()).is_cuda,
    "sae.TrainConfig": lambda: trained("batchtopk").snapshots[3].device.type == "cpu",
    "sae.geometric_median": lambda: sae.geometric_median(X()).is_cuda,
    "sae.init_from_directions": lambda: sae.init_from_directions(
        sae.SAEConfig(D, 32, k=4), directions=unit(), X=X(), encoder="fitted"
    ).W_dec.is_cuda,
    "sae.load_saelens": saved_and_loaded,
    "sae.save_saelens": saved_and_loaded,
    "sae.train_many": lambda: sae.train_many(
        X(), {"a": (sae.SAEConfig(D, 32, k=4), None)}, sae.TrainConfig(2, batch_size=64), (0, 1), progress=False
    )["a", 1].W_dec.is_cuda,
    "sae.train_sae": resumed,
    "measure.align_subspace": lambda: causal.align_subspace(lm(), pairs(), HOOK, basis(), steps=2),
    "measure.captured_variance": lambda: causal.captured_variance(basis(), X()),
    "measure.chance": lambda: measure.chance("mmcs", 6, 6, D, 3, truth=unit(), spread=X()),
    "measure.bootstrap_pairs": lambda: stability.bootstrap_pairs(np.eye(4)),
    "measure.circuit": lambda: fourier.circuit(embedding(), turning(), table(), counted(), 2),
    "measure.clean_logits": lambda: causal.clean_logits(lm(), pairs()).is_cuda,
    "measure.covariance_factor": lambda: recovery.covariance_factor(X()),
    "measure.detection": lambda: probing.detection(X().relu(), X() > 0, X().relu(), X() > 0, n_permutations=2),
    "measure.donor_activations": lambda: causal.donor_activations(lm(), pairs(), HOOK).is_cuda,
    "measure.edited_logits": lambda: causal.edited_logits(lm(), pairs(), HOOK, lambda x, here: 2 * x).is_cuda,
    "measure.effects": lambda: effects.effects(*answers(), pairs())["kl"].is_cuda,
    "measure.energy_chance": lambda: fourier.energy_chance(5, planes(), turning(), 2),
    "measure.entity_interval": lambda: effects.entity_interval(drops()[0], *names()),
    "measure.entity_proportion": lambda: effects.entity_proportion(torch.ones(24, device="cuda"), *names()),
    "measure.explained_variance": lambda: measure.explained_variance(X(), 0.9 * X()) > 0.9,
    "measure.fourier_losses": lambda: fourier.fourier_losses(table(), KEYS, counted()),
    "measure.fourier_losses_chance": lambda: fourier.fourier_losses_chance(table(), KEYS, counted(), 2),
    "measure.fourier_planes": planes,
    "measure.fractional_decrease": lambda: effects.fractional_decrease(*drops()),
    "measure.frequency_power": lambda: fourier.frequency_power(embedding()),
    "measure.frozen_dictionary_ev": lambda: measure.frozen_dictionary_ev(X(), unit(9).cpu(), (2,)),
    "measure.interchange_shares": lambda: effects.interchange_shares(*drops(), drops()[1]).is_cuda,
    "measure.jackknife_pairs": lambda: stability.jackknife_pairs(np.eye(4)),
    "measure.key_frequencies": lambda: fourier.key_frequencies(embedding()) == KEYS,
    "measure.k_sparse_probing": lambda: probing.k_sparse_probing(
        X().relu(), X() > 0, X().relu(), X() > 0, n_permutations=2
    ),
    "measure.latent_attribution": lambda: effects.latent_attribution(lm(), pairs(), HOOK, trained()),
    "measure.latent_fit": lambda: fourier.latent_fit(turning(), sums(), turning(), sums(), KEYS, P),
    "measure.latents_part": lambda: causal.latents_part(trained(), torch.tensor([0, 1]))(X()).is_cuda,
    "measure.leading_basis": lambda: causal.leading_basis(unit(), 3),
    "measure.logit_share": lambda: fourier.logit_share(table(), KEYS) > 0,
    "measure.match": lambda: recovery.match(unit(), unit()),
    "measure.matched_cosine": lambda: measure.matched_cosine(unit(), unit()),
    "measure.mix": lambda: all(
        causal.mix(X(), X().mean(0).cpu(), A, mode).is_cuda
        for A in (basis(), None, causal.latents_part(trained(), torch.tensor([2])))
        for mode in ("keep", "ablate")
    ),
    "measure.mmcs": lambda: measure.mmcs(unit(), unit().cpu()),
    "measure.neuron_frequencies": lambda: fourier.neuron_frequencies(turning()),
    "measure.orthonormal_basis": lambda: causal.orthonormal_basis(unit()),
    "measure.patched_logits": lambda: answers()[1].is_cuda,
    "measure.plane_energy": lambda: fourier.plane_energy(turning()[:5], planes()),
    "measure.precision": lambda: measure.precision(unit(), unit()),
    "measure.pw_max_cosine": lambda: measure.pw_max_cosine(decoders(), live()),
    "measure.pw_mcc": lambda: measure.pw_mcc(decoders(), live()),
    "measure.quality": lambda: measure.quality(trained(), X(), lm=lm(), tokens=tokens().to("cuda"), hook_name=HOOK),
    "measure.random_basis": lambda: causal.random_basis(D, 2, torch.Generator()),
    "measure.random_basis_of_variance": lambda: causal.random_basis_of_variance(X(), 2, 0.3, torch.Generator()),
    "measure.random_directions": lambda: recovery.random_directions(np.random.default_rng(0), 3, D),
    "measure.read_activations": lambda: causal.read_activations(lm(), tokens(), HOOK, tokens() % 4).is_cuda,
    "measure.recovered_share": lambda: effects.recovered_share(*(x.mean() for x in (X()[0], X()[1], X()[2]))),
    "measure.recovery_rate": lambda: measure.recovery_rate(unit(), unit()),
    "measure.rowspace_part": lambda: causal.rowspace_part(basis(), lm().readout),
    "measure.run_edited": lambda: causal.run_edited(lm(), tokens(), HOOK, (slice(None), 1), lambda x: 2 * x).is_cuda,
    "measure.scrubbed_loss_recovered": lambda: effects.scrubbed_loss_recovered(*X()[:, :3].T),
    "measure.share_in": lambda: causal.share_in(X(), basis()).is_cuda,
    "measure.shared_latents": lambda: measure.shared_latents(seeds(), live=live()),
    "measure.span_energy": lambda: fourier.span_energy(turning()[:5], planes()),
    "measure.splitting_and_absorption": split_up,
    "measure.splice_losses": lambda: splice_losses(trained(), lm(), tokens(), HOOK, X().mean(0)),
    "measure.steered_continuation": lambda: len(
        causal.steered_continuation(lm(), torch.arange(3), HOOK, torch.ones(D), 2.0, 4)
    ) == 4,
    "measure.strongest_share": lambda: fourier.strongest_share(embedding(), 2),
    "measure.strongest_share_chance": lambda: fourier.strongest_share_chance(embedding(), 2, 3),
    "measure.subspace_overlap": lambda: measure.subspace_overlap(unit(), unit()),
    "measure.subspace_verdict": judged,
    "measure.tells_apart": told_apart,
    "measure.token_set_logits": lambda: causal.token_set_logits(answers()[0], pairs().answer).is_cuda,
    "measure.tokens_to_quality": lambda: measure.tokens_to_quality({1: 0.1, 8: 0.9}, {1: 0.1, 8: 0.8}),
    "measure.unit_pair": lambda: recovery.unit_pair(unit(), unit()),
    "measure.whitening_of": lambda: stability.whitening_of(X().T @ X(), D),
    "measure.waves": lambda: fourier.waves(sums(), KEYS, P),
}  # fmt: skip

FURTHER: dict[str, Callable] = {
    "quality of an SAE on CUDA in a model on CUDA, rows, tokens and mask on the CPU": lambda: measure.quality(
        trained(), X().cpu(), lm=lm(), tokens=tokens(), mask=tokens() > 0, hook_name=HOOK
    ),
    "quality of an SAE on the CPU in a model on CUDA": lambda: measure.quality(
        trained().to("cpu"), X(), lm=lm(), tokens=tokens(), hook_name=HOOK
    ),
    "quality in a model on the CPU of an SAE on CUDA": lambda: measure.quality(
        trained(), X(), lm=PlantedReader(0), tokens=tokens().to("cuda"), hook_name=HOOK
    ),
    "latents of an SAE on CUDA written for activations on the CPU": lambda: (
        causal.latents_part(trained(), torch.tensor([0, 1]))(X().cpu()).device.type == "cpu"
    ),
    "latents of an SAE on the CPU exchanged in a model on CUDA": lambda: causal.patched_logits(
        lm(), pairs(), HOOK, causal.latents_part(trained().to("cpu"), torch.tensor([0])), "ablate", torch.zeros(D)
    ).is_cuda,
    "attribution to an SAE on the CPU in a model on CUDA": lambda: effects.latent_attribution(
        lm(), pairs(), HOOK, trained().to("cpu")
    ),
    "alignment from a start on CUDA, with answers to keep": lambda: causal.align_subspace(
        lm(), pairs(), HOOK, basis().to("cuda"), steps=2, keep_answers=pairs()
    ),
    "training on CUDA from rows on the CPU": lambda: trained(rows=X().cpu(), device="cuda").W_dec.is_cuda,
    "a labelled miner": lambda: miner(score="separation").fit(X()[:60], labels()[:60]),
    "a miner by neighbours": lambda: miner(null="gaussian", score="neighbours", full_null_size=0).fit(X()[:60]),
    "a miner without lift": lambda: miner(lift=False, null=None, score="kurtosis").fit(X()),
}  # fmt: skip


if __name__ == "__main__":
    import json

    from tests import pretend_cuda
    from tests.test_pretend_cuda import outcome

    pretend_cuda.install()
    print(json.dumps({name: outcome(call) for name, call in (CALLS | FURTHER).items()}))
