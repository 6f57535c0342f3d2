"""What 06 exchanges: prompts, screened, split in three sets that never overlap and paired; and the subspaces."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from rkcnn_lib.measure import causal as bases
from rkcnn_lib.measure.causal import NO_TOKEN, Part, PromptPairs, latents_part, read_activations
from rkcnn_lib.measure.effects import latent_attribution
from rkcnn_lib.measure.fourier import fourier_planes, key_frequencies
from rkcnn_lib.probe.scores import scatter_matrices
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAEConfig, TrainConfig, load_saelens, save_saelens, train_sae
from rkcnn_lib.studies.cells import LONG, directions_unit
from rkcnn_lib.tokens import rows_that_count
from rkcnn_lib.worlds.prompts import Prompt, pair_up, screen, task_prompts

MINED, SHUFFLED, CHANCE, CHANCE_OF_VARIANCE = "mined", "mined_shuffled", "random", "random_variance"
VARIANCE, CEILING, SAE_SPAN, SAE_LATENTS, CIRCUIT = "pca", "das", "sae", "sae_latents", "circuit"
NAMED = (MINED, SAE_SPAN, VARIANCE, CHANCE, CEILING)  # in titles and on cards
MINERS = {MINED: "rkcnn", "kmeans": "kmeans_refined", "datapoint": "datapoint_refined"}
SUBSPACES = {
    MINED: "RkCNN's directions, those first that separate the answers of selection prompts best",
    SHUFFLED: "the same directions, chosen by the answers of other prompts (shuffled labels)",
    "kmeans": "k-means centres of the same activations, refined and chosen like the mined directions",
    "datapoint": "random activations, refined and chosen like the mined directions",
    SAE_SPAN: "decoder rows of the SAE latents of largest attribution (activation x gradient)",
    SAE_LATENTS: "the same latents exchanged as latents: their activations, not their span",
    "class_means": "span of the answers' mean activations: given the labels; beyond their number arbitrary",
    CIRCUIT: "planes in which the activations turn with a + b at the key frequencies: the known circuit, by labels",
    VARIANCE: "top principal components of the selection prompts",
    CHANCE: "uniformly random subspace: equal rank",
    CHANCE_OF_VARIANCE: "random subspace of equal rank that holds as much variance as the mined one",
    CEILING: "distributed alignment search: learnt by gradient on training pairs, the supervised ceiling",
}
MIN_ENTITIES = 4  # of each side: with fewer there is nothing to explain


@dataclass(frozen=True)
class Pairing:
    """Base and donor prompts, and the same as tensors."""

    drawn: list[tuple[Prompt, Prompt]]
    pairs: PromptPairs

    @property
    def entities(self) -> tuple[list[str], list[str]]:
        """Those of the bases and those of the donors."""
        return [base.entity for base, _ in self.drawn], [donor.entity for _, donor in self.drawn]


@dataclass(frozen=True)
class Prompts:
    """What the model knows, asked in three sets of prompts that share none."""

    asked: int  # entities
    known: int  # of them: answered correctly in every screening prompt
    screening: list[Prompt]
    selection: list[Prompt]
    evaluation: list[Prompt]
    training: Pairing  # of selection prompts: what subspaces are learnt and chosen on
    judged: Pairing  # of evaluation prompts
    entities_held_out: bool  # no entity is in both


def known_prompts(lm: Any, p: CausalChecks, like: Prompts | None = None) -> Prompts:
    """Screen a task's entities by the model's own answers, and pair up the prompts about those it knows.

    With ``like`` ``p.isolated`` is asked instead of ``p.relation``, of the same entities on the same sides. ValueError
    if fewer than four entities of a side are known, for there is nothing to explain then, or if the prompts on which
    subspaces are chosen span fewer dimensions than a rank.
    """
    task = p.relation if like is None else p.isolated
    sides = like and ({x.entity for x in like.selection}, {x.entity for x in like.evaluation})
    asked = task_prompts(p.model, lm.tokenizer, task, sides)
    screening = [x for x in asked if x.role == "screening"]
    right = {x.text for x in screen(lm, screening)}
    entities = {x.entity for x in screening}
    known = entities - {x.entity for x in screening if x.text not in right}

    usable = [
        x for x in asked if x.entity in known
        and bool(rows_that_count(lm, torch.tensor([x.ids]))[0, _exchanged(x, p.positions)].all())
    ]  # fmt: skip
    chosen = {role: [x for x in usable if x.role == role] for role in ("selection", "evaluation")}
    on_side = {role: {x.entity for x in part} for role, part in chosen.items()}
    for role, there in on_side.items():
        if len(there) < MIN_ENTITIES:
            raise ValueError(
                f"relation = {task!r}: {p.model} knows {len(known)} of {len(entities)} entities, too few of them for "
                f"{role} (nothing is exchanged at position 0 or at special tokens, on which no SAE is trained); choose "
                "another relation, positions or model"
            )
    selection, evaluation = chosen.values()
    spanned = (len(selection) - 1) * (2 if p.positions == "both" else 1)  # each position is centred
    if like is None and max(p.ranks) > spanned:
        raise ValueError(f"ranks = {p.ranks}: the {len(selection)} selection prompts span at most {spanned} dimensions")
    device = next(lm.parameters()).device
    sets = [pair_up(selection, 4 * p.n_pairs, seed=0), pair_up(evaluation, p.n_pairs, seed=0)]
    return Prompts(
        len(entities), len(known), screening, selection, evaluation,
        *(Pairing(drawn, as_tensors(drawn, p.positions, device)) for drawn in sets),
        not on_side["selection"] & on_side["evaluation"],
    )  # fmt: skip


def as_tensors(drawn: list[tuple[Prompt, Prompt]], positions: str, device: Any = "cpu") -> PromptPairs:
    """Return pairs as tensors, the exchange being at the entity's last token, the last one, or both of them."""
    first, second = zip(*drawn, strict=True)

    def rows(of: tuple[Prompt, ...], name: str, fill: int) -> torch.Tensor:
        given = [torch.tensor(getattr(x, name), device=device) for x in (*of, *first, *second)]  # the longest too
        return pad_sequence(given, batch_first=True, padding_value=fill)[: len(of)]

    return PromptPairs(
        base=rows(first, "ids", 0), donor=rows(second, "ids", 0),
        answer=rows(first, "answer_ids", NO_TOKEN), foil=rows(second, "answer_ids", NO_TOKEN),
        positions=torch.tensor([_exchanged(x, positions) for x in first]),
        lengths=torch.tensor([len(x.ids) for x in first]),
    )  # fmt: skip


def _exchanged(prompt: Prompt, positions: str) -> list[int]:
    entity, last = prompt.entity_position, len(prompt.ids) - 1
    return {"entity": [entity], "last": [last], "both": [entity, last]}[positions]


# ---------------------------------------------------------------- subspaces


@dataclass(frozen=True)
class Subspace:
    """A name, the seed it was found with, how many candidates it was chosen from, and the part at each rank."""

    name: str
    seed: int
    candidates: int
    part: Callable[[int], Part]


def selection_rows(lm: Any, prompts: Prompts, p: CausalChecks, hook_name: str) -> tuple[torch.Tensor, np.ndarray]:
    """Return activations (n k, d) at the k exchanged positions, each position centred, and the answers (n k,)."""
    x = at_positions(lm, prompts.selection, p.positions, hook_name)
    x = x - x.mean(0, keepdim=True)
    answers = np.array([prompt.answer for prompt in prompts.selection])
    return x.flatten(0, 1), np.repeat(answers, x.shape[1])


def at_positions(lm: Any, prompts: list[Prompt], positions: str, hook_name: str) -> torch.Tensor:
    """Return the activations (n, k, d) at the exchanged positions of single prompts, on the CPU."""
    tensors = as_tensors([(prompt, prompt) for prompt in prompts], positions, next(lm.parameters()).device)
    return read_activations(lm, tensors.base, hook_name, tensors.positions).cpu()


def ranked_by_separation(directions: torch.Tensor, X: torch.Tensor, y: np.ndarray) -> torch.Tensor:
    """Order directions by how well the projection on each separates the answers, best first."""
    between, within = scatter_matrices(X @ directions.T, y)  # their diagonals are BV and WV of each projection
    scores = between.diagonal() / within.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    return directions[scores.argsort(descending=True)]


def shuffled_answers(prompts: list[Prompt], n_positions: int, seed: int) -> np.ndarray:
    """Return the answers (n k,) permuted between prompts, the same way at all positions.

    Where each prompt has an answer of its own that would only rename the classes, and the twin be the very subspace
    that it is to be a control of: there each position is permuted anew.
    """
    rng, answers = np.random.default_rng(seed), [prompt.answer for prompt in prompts]
    if len(set(answers)) < len(answers):
        return np.repeat(rng.permutation(answers), n_positions)
    return np.stack([rng.permutation(answers) for _ in range(n_positions)], axis=1).reshape(-1)


def seeded_subspaces(
    store: Any, p: CausalChecks, prompts: Prompts, X: torch.Tensor, y: np.ndarray, seed: int, device: str
) -> list[Subspace]:
    """Return the subspaces of one seed: mined, its shuffled-label twin and random ones; for the first, its rivals."""
    subspaces = []  # of the rivals one seed must do: they stand beside without a declared contrast
    for name, arm in MINERS.items() if seed == 0 else [(MINED, MINERS[MINED])]:
        directions = directions_unit(store, p, arm, p.n_directions, seed, device).arrays["directions"]
        subspaces.append(_spanned(name, seed, ranked_by_separation(directions, X, y)))
        if name == MINED:
            mined = subspaces[0]
            shuffled = shuffled_answers(prompts.selection, len(X) // len(prompts.selection), seed)
            subspaces.append(_spanned(SHUFFLED, seed, ranked_by_separation(directions, X, shuffled)))
    subspaces.append(Subspace(CHANCE, seed, 1, lambda rank: bases.random_basis(X.shape[1], rank, _generator(seed, 1))))
    subspaces.append(Subspace(CHANCE_OF_VARIANCE, seed, 1, lambda rank: random_like(mined.part(rank), X, seed)))
    return subspaces


def random_like(basis: torch.Tensor, X: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a random subspace of the rank of ``basis`` (d, r) that holds as much of X's variance."""
    return bases.random_basis_of_variance(X, basis.shape[1], bases.captured_variance(basis, X), _generator(seed, 2))


def fixed_subspaces(X: torch.Tensor, y: np.ndarray) -> list[Subspace]:
    """Return the subspaces that no seed changes: principal components and the span of the class means."""
    means = torch.stack([X[y == answer].mean(0) for answer in np.unique(y)])
    _, _, between = torch.linalg.svd(means - means.mean(0), full_matrices=True)
    _, _, principal = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    return [_spanned("class_means", 0, between), _spanned(VARIANCE, 0, principal)]


def circuit_subspace(lm: Any, X: torch.Tensor, y: np.ndarray) -> Subspace:
    """Return the known circuit of a modular-addition model: its key frequencies' planes, the widest first.

    Beyond two dimensions for each frequency there is no more of it: higher ranks are the whole circuit.
    """
    p = lm.cfg.d_vocab - 1
    planes = fourier_planes(X, torch.from_numpy(y.astype(int)), key_frequencies(lm.W_E[:p]), p)
    rows = planes.basis[planes.explained.argsort(descending=True)].flatten(0, 1).to(X.dtype)
    return Subspace(CIRCUIT, 0, len(rows), lambda rank: bases.leading_basis(rows, min(rank, len(rows)), CIRCUIT))


def sae_subspaces(lm: Any, store: Any, p: CausalChecks, prompts: Prompts, device: str) -> list[Subspace]:
    """Return a trained SAE's latents of largest attribution on the training pairs, as their span and as latents."""
    sae = trained_sae(store, p, device)
    attribution = latent_attribution(lm, prompts.training.pairs, store.manifest["hook_name"], sae)
    order = attribution.argsort(descending=True)
    as_latents = Subspace(SAE_LATENTS, 0, len(order), lambda rank: latents_part(sae, order[:rank]))
    return [_spanned(SAE_SPAN, 0, sae.W_dec.detach()[order].cpu()), as_latents]


def trained_sae(store: Any, p: CausalChecks, device: str) -> Any:
    """Return a TopK SAE of the activations at this hook, from a random start; trained once, then read."""
    config = SAEConfig(store.d_in, round(p.sae_expansion * store.d_in), architecture="topk", k=p.sae_k)
    training = TrainConfig(steps=p.sae_steps, batch_size=1024, lr=1e-3)
    inputs = {"data": store.key, "config": asdict(config), "training": asdict(training), "device": device}

    def compute(scratch: Path) -> Unit:
        sae = train_sae(store, config, training, device=device, progress=p.sae_steps > LONG)
        return Unit(save_extra=lambda folder: save_saelens(sae, folder / "sae"))

    return load_saelens(cached_unit("causal_saes", inputs, compute).folder / "sae").to(device)


def aligned_subspace(
    lm: Any, p: CausalChecks, prompts: Prompts, hook_name: str, keep: Prompts | None = None
) -> Subspace:
    """Return the supervised ceiling: learnt at each rank from the span of the class means, on training pairs alone."""
    means = fixed_subspaces(*selection_rows(lm, prompts, p, hook_name))[0]
    others = None if keep is None else keep.training.pairs

    @functools.cache
    def part(rank: int) -> torch.Tensor:
        return bases.align_subspace(lm, prompts.training.pairs, hook_name, means.part(rank), p.das_steps, others)

    return Subspace(CEILING if keep is None else f"{CEILING}_isolating", 0, 1, part)


def _spanned(name: str, seed: int, rows: torch.Tensor) -> Subspace:
    return Subspace(name, seed, len(rows), lambda rank: bases.leading_basis(rows, rank, name))


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + stream)
