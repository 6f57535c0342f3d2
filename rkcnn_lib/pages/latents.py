"""Reads latents of a comparison's SAEs: where they fire, what they write, where they came from, who is near them."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn.functional import normalize

from rkcnn_lib.measure.recovery import random_directions
from rkcnn_lib.runs.run import Run
from rkcnn_lib.sae import load_saelens
from rkcnn_lib.studies.agreement import spread_of
from rkcnn_lib.studies.cells import mined_unit, model_of
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.tensors import chance_level
from rkcnn_lib.vocabulary import MINED
from rkcnn_lib.worlds.toy import INVENTED_MODELS

QUANTILES = (1.0, 1.0, 0.9, 0.75, 0.5, 0.25, 0.1)  # of a latent's positive activations: one context each
WALK = 200  # ranks that are looked through for a text that a card does not show yet
BEFORE, AFTER = 10, 5  # tokens shown round the one that counts
N_TOKENS = 5  # most raised and most lowered tokens
ROWS = 50_000  # held-out rows in which contexts are looked for
BATCH = 4096  # rows encoded at once
ON_TOKEN = 2000  # rows of one token that a search looks at
FOUND = 12  # latents that a search gives at most
MINED_GROUP, FILL_GROUP = "mined", "fill"
Pairs = list[tuple[int, float]]


@dataclass(frozen=True)
class Context:
    """Where a latent fires: store rows, its activations on them, which row counts, and that one's quantile."""

    rows: np.ndarray
    values: np.ndarray
    peak: int
    quantile: float


@dataclass(frozen=True)
class Card:
    """One latent, measured."""

    arm: str
    seed: int
    latent: int
    group: str
    rate: float  # share of the comparison's held-out rows on which it fires
    rate_before: float  # the same before training
    largest: float
    moved: list[float]  # cosine of its decoder row with its start, at each snapshot of training
    near: list[tuple[int, int, float]]  # seed, latent, signed cosine of the nearest live latent of each other seed
    mined: tuple[int, float] | None  # number, signed cosine of the nearest direction that its seed's mined arm had
    raised: Pairs  # token id, logits per unit of activation
    lowered: Pairs
    contexts: list[Context]

    @property
    def name(self) -> str:
        """What links to this card: arm and latent, and the seed unless it is the first."""
        return f"{self.arm}-{self.latent}" + (f"-seed{self.seed}" if self.seed else "")


class Reader:
    """Reads any latent of any arm and seed; what is read once (an SAE, its starts, a chance level) is kept."""

    def __init__(self, compared: Compared, store: Any, run: Run) -> None:
        self.compared, self.store, self.p, self.device = compared, store, run.p, run.device
        self.lm = None if run.p.model in INVENTED_MODELS else model_of(run.p.model, run.p.revision, run.device)
        held_out = store.rows("heldout")
        self.rows, self.counted = held_out[:ROWS], min(run.p.heldout_rows, len(held_out))
        self.saes = functools.lru_cache(maxsize=16)(
            lambda arm, seed: load_saelens(compared.units[arm, seed].folder / "sae").to(run.device)
        )
        self.codes = functools.lru_cache(maxsize=4)(self._codes)
        self.chance = functools.cache(self._chance)
        self._unembedding = functools.cache(lambda: self.lm.W_U.detach().float().cpu())
        self._spread = functools.cache(lambda: spread_of(store))

    @property
    def steps(self) -> list[int]:
        """The training steps at which decoders were kept."""
        arrays = next(iter(self.compared.units.values())).arrays
        return sorted(int(name.rpartition("_")[2]) for name in arrays if name.startswith("W_dec_step_"))

    def rates(self, arm: str, seed: int) -> np.ndarray:
        """Return how often each latent fires on the comparison's held-out rows (d_sae,), as its figures count it."""
        return self.compared.units[arm, seed].arrays["density"].numpy()

    def n_mined(self, arm: str, seed: int) -> int:
        """Return how many latents of an arm's SAE started from mined directions: its first ones."""
        return int(self.compared.units[arm, seed].scalars["n_mined"])

    def cards(self, arm: str, seed: int, latents: list[int]) -> list[Card]:
        """Read latents of one SAE, one at least."""
        arrays, n_mined = self.compared.units[arm, seed].arrays, self.n_mined(arm, seed)
        decoder, start = self.saes(arm, seed).W_dec.detach()[latents], normalised(arrays["W_dec_start"][latents])
        along = [(normalised(arrays[f"W_dec_step_{step}"][latents]) * start).sum(1) for step in self.steps]
        rows = normalised(decoder)
        largest, shown = zip(*(self._contexts(arm, seed, latent) for latent in latents), strict=True)
        measured = zip(
            latents,
            [MINED_GROUP if latent < n_mined else FILL_GROUP if n_mined else arm for latent in latents],
            arrays["density"][latents].tolist(),
            arrays["density_start"][latents].tolist(),
            largest,
            torch.stack(along, dim=1).tolist(),
            self._near(arm, seed, rows),
            self._nearest_mined(seed, rows),
            *self._favoured(decoder),
            shown,
            strict=True,
        )
        return [Card(arm, seed, *values) for values in measured]

    def firing_on(self, arm: str, seed: int, token: int) -> Pairs:
        """Return (latent, mean activation) of those that fire most on one token of the held-out text, most first."""
        rows = self.rows[np.asarray(self.store.tokens)[self.rows] == token][:ON_TOKEN]
        if not len(rows):
            return []
        means = self.saes(arm, seed).encode(self.store.take(rows).to(self.device)).detach().float().mean(0).cpu()
        best = means.argsort(descending=True)[:FOUND].tolist()
        return [(latent, float(means[latent])) for latent in best if means[latent] > 0]

    def _codes(self, arm: str, seed: int) -> sparse.csc_array:
        """All latents' activations on the rows (n, d_sae); few are active at once, so all fit in memory."""
        sae = self.saes(arm, seed)
        parts = np.array_split(self.rows, -(-len(self.rows) // BATCH))
        with torch.no_grad():
            codes = [sparse.csr_array(sae.encode(self.store.take(p).to(self.device)).float().cpu()) for p in parts]
        return sparse.vstack(codes, format="csc")

    def _near(self, arm: str, seed: int, rows: torch.Tensor) -> list[list[tuple[int, int, float]]]:
        near: list[list[tuple[int, int, float]]] = [[] for _ in rows]
        for other in sorted(s for name, s in self.compared.units if name == arm and s != seed):
            live = np.flatnonzero(self.rates(arm, other) > 0)
            if len(live):
                best = (rows @ normalised(self.saes(arm, other).W_dec.detach())[live].T).max(1)
                for of_row, cosine, column in zip(near, best.values.tolist(), best.indices.tolist(), strict=True):
                    of_row.append((other, int(live[column]), cosine))
        return near

    def _nearest_mined(self, seed: int, rows: torch.Tensor) -> list[tuple[int, float] | None]:
        n_mined = self.n_mined(MINED, seed)
        if not n_mined:
            return [None] * len(rows)
        directions = mined_unit(self.store, self.p, MINED, seed, self.device).arrays["directions"][:n_mined]
        best = (rows @ normalised(directions.to(rows)).T).max(1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _favoured(self, rows: torch.Tensor) -> tuple[list[Pairs], ...]:
        """The tokens whose logits decoder rows raise and lower most, the final normalisation aside."""
        if self.lm is None or len(self._unembedding()) != rows.shape[1]:
            return [[] for _ in rows], [[] for _ in rows]
        effects = rows.float().cpu() @ self._unembedding()
        most = [effects.topk(min(N_TOKENS, effects.shape[1]), dim=1, largest=largest) for largest in (True, False)]
        return tuple(
            [list(zip(*pair, strict=True)) for pair in zip(found.indices.tolist(), found.values.tolist(), strict=True)]
            for found in most
        )

    def _contexts(self, arm: str, seed: int, latent: int) -> tuple[float, list[Context]]:
        """A latent's largest activation, and where it fires."""
        if self.lm is None:  # rows that are no tokens: nothing to read
            return 0.0, []
        values = self.codes(arm, seed)[:, [latent]].toarray()[:, 0]
        documents = np.asarray(self.store.document_ids)
        return float(values.max(initial=0.0)), contexts(values, self.rows, documents, self.store.context_size)

    def _chance(self, n: int) -> tuple[float, float]:
        """Mean and 95 % point of a random direction's cosine with the nearest of n random ones.

        All are drawn with the activations' covariance: where activations fill few dimensions, that is high.
        """
        rng, d = np.random.default_rng(0), self.store.d_in
        ours, others = (random_directions(rng, count, d, self._spread()) for count in (500, n))
        return chance_level((ours @ others.T).max(1))


def normalised(rows: torch.Tensor) -> torch.Tensor:
    """Return rows of length one, float32 on the CPU; a row of zeros stays one."""
    return normalize(rows.float().cpu(), dim=1)


def contexts(values: np.ndarray, rows: np.ndarray, documents: np.ndarray, size: int) -> list[Context]:
    """Return where a latent fires, over the quantiles of its positive activations, each text once.

    ``values`` (n,) are activations on ``rows`` (n,), ascending store rows; ``documents`` names the document of every
    store row, of which a context of ``size`` rows may hold several.
    """
    active = np.flatnonzero(values > 0)
    ranked = active[np.argsort(values[active], kind="stable")]
    shown: dict[int, Context] = {}  # by document
    for quantile in QUANTILES if len(ranked) else ():
        place = round(quantile * (len(ranked) - 1))
        walked = range(place, max(-1, place - WALK), -1)
        rank = next((rank for rank in walked if documents[rows[ranked[rank]]] not in shown), None)
        if rank is None:
            continue
        row = int(rows[ranked[rank]])
        begin = row // size * size
        window = np.arange(max(row - BEFORE, begin), min(row + AFTER + 1, begin + size))
        window = window[documents[window] == documents[row]]
        place = np.searchsorted(rows, window).clip(max=len(rows) - 1)
        there = np.where(rows[place] == window, values[place], 0.0)  # a row left out (position 0) has no activation
        peak, found = int(np.searchsorted(window, row)), rank / max(1, len(ranked) - 1)
        shown[documents[row]] = Context(window, there, peak, found)
    return list(shown.values())
