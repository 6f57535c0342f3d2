"""Reads latents of a comparison's SAEs: where they fire, what they write, where they came from, who is near them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from rkcnn_lib.measure.recovery import random_directions
from rkcnn_lib.runs.run import Run
from rkcnn_lib.sae import SAE, load_saelens
from rkcnn_lib.studies.agreement import spread_of
from rkcnn_lib.studies.cells import MINED, mined_unit, model_of
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.worlds.toy.invented import INVENTED_MODELS

QUANTILES = (1.0, 1.0, 0.9, 0.75, 0.5, 0.25, 0.1)  # of a latent's positive activations: one context each
WALK = 200  # ranks that are looked through for a text that a card does not show yet
BEFORE, AFTER = 10, 5  # tokens shown round the one that counts
N_TOKENS = 5  # most raised and most lowered tokens
ROWS = 50_000  # held-out rows in which contexts are looked for
BATCH = 4096  # rows encoded at once
ON_TOKEN = 2000  # rows of one token that a search looks at
MINED_GROUP, FILL_GROUP = "mined", "random fill"


@dataclass(frozen=True)
class Context:
    """Where a latent fires: store rows, its activations on them, which row counts, and that one's quantile."""

    rows: np.ndarray
    values: np.ndarray
    peak: int
    quantile: float


@dataclass(frozen=True)
class Card:
    """One latent, measured.

    ``rate``, ``rate_before``: share of the comparison's held-out rows on which it fires, after and before training.
    ``moved``: cosine of its decoder row with its start, at each snapshot of training. ``near``: (seed, latent, signed
    cosine) of the nearest live latent of each other seed. ``mined``: (number, signed cosine) of the nearest direction
    that the mined arm of its seed started from. ``raised``, ``lowered``: (token id, logits per unit of activation).
    """

    arm: str
    seed: int
    latent: int
    group: str
    rate: float
    rate_before: float
    largest: float
    moved: list[float]
    near: list[tuple[int, int, float]]
    mined: tuple[int, float] | None
    raised: list[tuple[int, float]]
    lowered: list[tuple[int, float]]
    contexts: list[Context]

    @property
    def name(self) -> str:
        """What links to this card: arm and latent, and the seed unless it is the first."""
        return f"{self.arm}-{self.latent}" + (f"-seed{self.seed}" if self.seed else "")


class Reader:
    """Reads any latent of any arm and seed; what is read once (an SAE, its starts, a chance level) is kept."""

    def __init__(self, compared: Compared, store: Any, run: Run) -> None:
        self.compared, self.store, self.p, self.device = compared, store, run.p, run.device
        self.lm = None if run.p.model in INVENTED_MODELS else model_of(run.p, run.device)
        held_out = store.rows("heldout")
        self.rows, self.counted = held_out[:ROWS], min(run.p.heldout_rows, len(held_out))
        self.saes = functools.lru_cache(maxsize=16)(self._sae)
        self.codes = functools.lru_cache(maxsize=4)(self._codes)
        self.chance = functools.lru_cache(maxsize=None)(self._chance)
        self._unembedding = functools.lru_cache(maxsize=1)(lambda: self.lm.W_U.detach().float().cpu())
        self._spread = functools.lru_cache(maxsize=1)(lambda: spread_of(store))

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
        """Read latents of one SAE.

        Raises
        ------
        ValueError
            If the comparison has no such arm and seed, or the SAE no such latent.
        """
        if (arm, seed) not in self.compared.units:
            raise ValueError(f"there is no SAE of {arm}, seed {seed}, in this comparison")
        n_latents = len(self.rates(arm, seed))
        if any(not 0 <= latent < n_latents for latent in latents):
            raise ValueError(f"{arm}, seed {seed}, has latents 0 to {n_latents - 1}")
        if not latents:
            return []
        rows = normalised(self.saes(arm, seed).W_dec.detach())[latents]
        near = self._near(arm, seed, rows)
        mined = self._nearest_mined(seed, rows)
        moved = self._moved(arm, seed, latents)
        raised, lowered = self._favoured(arm, seed, latents)
        contexts, largest = self._contexts(arm, seed, latents)
        rates, before = (self.compared.units[arm, seed].arrays[name] for name in ("density", "density_start"))
        n_mined = self.n_mined(arm, seed)
        return [
            Card(
                arm, seed, latent, MINED_GROUP if latent < n_mined else FILL_GROUP if n_mined else arm,
                float(rates[latent]), float(before[latent]), largest[i], moved[i], near[i], mined[i], raised[i],
                lowered[i], contexts[i],
            )
            for i, latent in enumerate(latents)
        ]  # fmt: skip

    def firing_on(self, arm: str, seed: int, token: int, most: int = 12) -> list[tuple[int, float]]:
        """Return (latent, mean activation) of those that fire most on one token of the held-out text, most first."""
        rows = self.rows[np.asarray(self.store.tokens)[self.rows] == token][:ON_TOKEN]
        if not len(rows):
            return []
        means = self.saes(arm, seed).encode(self.store.take(rows).to(self.device)).detach().float().mean(0).cpu()
        best = means.argsort(descending=True)[:most].tolist()
        return [(latent, float(means[latent])) for latent in best if means[latent] > 0]

    # ------------------------------------------------------------------------------------------- one measure each

    def _sae(self, arm: str, seed: int) -> SAE:
        return load_saelens(self.compared.units[arm, seed].folder / "sae").to(self.device)

    def _codes(self, arm: str, seed: int) -> sparse.csc_array:
        """Return all latents' activations on the rows (n, d_sae); few are active at once, so all fit in memory."""
        sae = self.saes(arm, seed)
        parts = np.array_split(self.rows, -(-len(self.rows) // BATCH))
        with torch.no_grad():
            read = [sae.encode(self.store.take(part).to(self.device)).float().cpu().numpy() for part in parts]
        return sparse.vstack([sparse.csr_array(part) for part in read], format="csc")

    def _moved(self, arm: str, seed: int, latents: list[int]) -> list[list[float]]:
        arrays = self.compared.units[arm, seed].arrays
        start = normalised(arrays["W_dec_start"][latents])
        along = [(normalised(arrays[f"W_dec_step_{step}"][latents]) * start).sum(1) for step in self.steps]
        return torch.stack(along, dim=1).tolist()

    def _near(self, arm: str, seed: int, rows: torch.Tensor) -> list[list[tuple[int, int, float]]]:
        found: list[list[tuple[int, int, float]]] = [[] for _ in rows]
        for other in sorted(s for name, s in self.compared.units if name == arm and s != seed):
            live = np.flatnonzero(self.rates(arm, other) > 0)
            if len(live):
                best = (rows @ normalised(self.saes(arm, other).W_dec.detach())[live].T).max(1)
                for place, (cosine, column) in enumerate(zip(best.values, best.indices, strict=True)):
                    found[place].append((other, int(live[column]), float(cosine)))
        return found

    def _nearest_mined(self, seed: int, rows: torch.Tensor) -> list[tuple[int, float] | None]:
        n_mined = self.n_mined(MINED, seed)
        if not n_mined:
            return [None] * len(rows)
        directions = mined_unit(self.store, self.p, MINED, seed, self.device).arrays["directions"][:n_mined]
        best = (rows @ normalised(directions.to(rows)).T).max(1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _favoured(self, arm: str, seed: int, latents: list[int]) -> tuple[list[list[tuple[int, float]]], ...]:
        """Return the tokens whose logits the decoder rows raise and lower most, the final normalisation aside."""
        nothing: list[list[tuple[int, float]]] = [[] for _ in latents]
        rows = self.saes(arm, seed).W_dec.detach().float().cpu()[latents]
        if self.lm is None or len(self._unembedding()) != rows.shape[1]:
            return nothing, nothing
        effects = rows @ self._unembedding()
        both = []
        for largest in (True, False):
            values, ids = effects.topk(min(N_TOKENS, effects.shape[1]), dim=1, largest=largest)
            both.append([list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)])
        return tuple(both)

    def _contexts(self, arm: str, seed: int, latents: list[int]) -> tuple[list[list[Context]], list[float]]:
        if self.lm is None:  # rows that are no tokens: nothing to read
            return [[] for _ in latents], [0.0] * len(latents)
        codes = self.codes(arm, seed)
        documents, size = np.asarray(self.store.document_ids), self.store.context_size
        columns = (codes[:, [latent]].toarray()[:, 0] for latent in latents)
        found = [(contexts(values, self.rows, documents, size), float(values.max(initial=0.0))) for values in columns]
        return tuple(map(list, zip(*found, strict=True)))

    def _chance(self, n: int) -> tuple[float, float]:
        """Return mean and 95 % point of a random direction's cosine with the nearest of n random ones.

        All are drawn with the activations' covariance: where activations fill few dimensions, that is high.
        """
        rng, d = np.random.default_rng(0), self.store.d_in
        ours, others = (random_directions(rng, count, d, self._spread()) for count in (500, n))
        nearest = (ours @ others.T).max(1)
        return float(nearest.mean()), float(np.quantile(nearest, 0.95))


def normalised(rows: torch.Tensor) -> torch.Tensor:
    """Return rows of length one, float32 on the CPU; a row of zeros stays one."""
    return torch.nn.functional.normalize(rows.float().cpu(), dim=1)


def contexts(values: np.ndarray, rows: np.ndarray, documents: np.ndarray, size: int) -> list[Context]:
    """Return where a latent fires, over the quantiles of its positive activations, each text once.

    Parameters
    ----------
    values : (n,) activations on ``rows`` (n,), ascending store rows.
    documents : document of every store row; a context of ``size`` rows may hold several.
    """
    active = np.flatnonzero(values > 0)
    ranked = active[np.argsort(values[active], kind="stable")]
    found, seen = [], set()
    for quantile in QUANTILES if len(ranked) else ():
        place = round(quantile * (len(ranked) - 1))
        for rank in range(place, max(-1, place - WALK), -1):
            i = int(ranked[rank])
            if documents[rows[i]] not in seen:
                seen.add(documents[rows[i]])
                found.append(_context(i, rows, values, documents, size, rank / max(1, len(ranked) - 1)))
                break
    return found


def _context(
    i: int, rows: np.ndarray, values: np.ndarray, documents: np.ndarray, size: int, quantile: float
) -> Context:
    here = int(rows[i])
    first = max(here - BEFORE, here // size * size)
    window = np.arange(first, min(here + AFTER + 1, (here // size + 1) * size))
    window = window[documents[window] == documents[here]]
    place = np.searchsorted(rows, window).clip(max=len(rows) - 1)
    shown = np.where(rows[place] == window, values[place], 0.0)  # a row left out (position 0) has no activation
    return Context(window, shown, int(np.searchsorted(window, here)), quantile)
