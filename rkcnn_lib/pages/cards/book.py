"""All cards of a notebook as one compact, JSON-like record: each text once, tokens as numbers, activations rounded.

A record holds ``vocabulary`` (tokens made readable), ``text`` (the rows that any card shows, as places in the
vocabulary) and ``cards``, whose examples point into the text. What is said of a card in words stands in ``words``
once, so that the page's script and :mod:`~rkcnn_lib.pages.cards.drawing` say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rkcnn_lib.pages.cards.reader import FILL_GROUP, MINED_GROUP, Card, Reader
from rkcnn_lib.runs.run import Run
from rkcnn_lib.studies.cells import MINED, UNMINED
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.studies.tokens import readable, token_text

FORMAT = 1
ARMS = (MINED, UNMINED)  # whose latents get cards; both are in every comparison
SEED = 0
LEVELS = 100  # an activation is told in hundredths of its latent's largest
FEATURED = (0.25, 0.5, 0.75, 0.9)  # of the firing rates of a group's live latents: the cards that are shown first
WORDS = {
    "alive": "Alive at both ends of training. Whether it fell silent in between is not recorded.",
    "died": "Died: it fired before training and never does now.",
    "revived": "Revived: it never fired before training and does now.",
    "dead": "Dead at both ends of training. Whether it ever fired in between is not recorded.",
    "no contexts": "It fires nowhere in the held-out text that was searched.",
    "effects": "Through the unembedding alone, logits per unit of activation.",
}
NO_TOKENS = "The rows of this model are no tokens, so there is no text to read."


@dataclass(frozen=True)
class Book:
    """The record (see the module) and a row a card: arm, group, latent, rate, cosine (to its start), card."""

    record: dict[str, Any]
    table: pd.DataFrame
    reader: Reader


def read_book(compared: Compared, store: Any, run: Run) -> Book:
    """Read at most about ``n_cards`` latents of each of ARMS, first seed, chosen by `choose`."""
    reader, cards = Reader(compared, store, run), []
    for arm in ARMS:
        chosen = choose(reader.rates(arm, SEED), reader.n_mined(arm, SEED), run.p.n_cards)
        cards += reader.cards(arm, SEED, chosen)
    rows = [
        {"arm": c.arm, "group": c.group, "latent": c.latent, "rate": c.rate, "cosine": c.moved[-1], "card": c.name}
        for c in cards
    ]
    columns = ["arm", "group", "latent", "rate", "cosine", "card"]
    return Book(as_record(cards, reader), pd.DataFrame(rows, columns=columns), reader)


def choose(rates: np.ndarray, n_mined: int, n_cards: int) -> list[int]:
    """Return the latents that get a card, ascending: all, or in each group those at even quantiles of firing rates.

    Mined and randomly filled latents get cards in proportion to their numbers; latents that never fire are the
    lowest quantiles. No look at a latent decides.
    """
    chosen: set[int] = set()
    for members in (np.arange(n_mined), np.arange(n_mined, len(rates))):
        wanted = min(len(members), round(n_cards * len(members) / max(1, len(rates))))
        ranked = members[np.argsort(rates[members], kind="stable")]
        chosen |= set(ranked[np.linspace(0, len(members) - 1, wanted).round().astype(int)].tolist())
    return sorted(chosen)


def as_record(cards: list[Card], reader: Reader) -> dict[str, Any]:
    """Return cards as a record of plain lists, numbers and strings."""
    rows = np.unique(np.concatenate([np.empty(0, int), *(c.rows for card in cards for c in card.contexts)]))
    tokens = np.asarray(reader.store.tokens)[rows]
    effects = [token for card in cards for token, _ in (*card.raised, *card.lowered)]
    ids = list(dict.fromkeys([*tokens.tolist(), *effects]))
    place = {token: i for i, token in enumerate(ids)}
    texts = [token_text(reader.lm, token) for token in ids]
    arms = list(dict.fromkeys(card.arm for card in cards))
    return {
        "format": FORMAT,
        "steps": reader.steps,
        "rows": {"counted": reader.counted, "searched": len(reader.rows)},
        "latents": {arm: len(reader.rates(arm, SEED)) for arm in arms},
        "chance": {name: [round(level, 3) for level in level_of] for name, level_of in _chance(reader, arms).items()},
        "featured": featured(cards),
        "between": "" if any(text[:1].isspace() for text in texts) else " ",
        "words": WORDS if reader.lm is not None else WORDS | {"no contexts": NO_TOKENS},
        "vocabulary": [readable(text) for text in texts],
        "text": [place[token] for token in tokens.tolist()],
        "cards": [_card_record(card, rows, place) for card in cards],
    }


def featured(cards: list[Card]) -> list[str]:
    """Return the cards of the mined arm whose firing rates lie at FEATURED in their group; no look decides."""
    chosen: list[str] = []
    for group in (MINED_GROUP, FILL_GROUP):
        live = [c for c in cards if c.arm == MINED and c.group == group and c.rate > 0]
        live.sort(key=lambda card: (card.rate, card.latent))
        chosen += dict.fromkeys(live[int(q * (len(live) - 1))].name for q in FEATURED) if live else ()
    return chosen


def _chance(reader: Reader, arms: list[str]) -> dict[str, tuple[float, float]]:
    """Return the chance level of the nearest of as many directions as an SAE has, and as were mined."""
    counts = {
        "near": max((len(reader.rates(arm, SEED)) for arm in arms), default=0),
        "mined": reader.n_mined(MINED, SEED),
    }
    return {name: reader.chance(count) for name, count in counts.items() if count}


def _card_record(card: Card, rows: np.ndarray, place: dict[int, int]) -> dict[str, Any]:
    return {
        "id": card.name, "arm": card.arm, "seed": card.seed, "latent": card.latent, "group": card.group,
        "rate": _rounded(card.rate), "before": _rounded(card.rate_before), "largest": _rounded(card.largest),
        "life": life(card), "moved": [round(cosine, 3) for cosine in card.moved],
        "near": [[seed, latent, round(cosine, 3)] for seed, latent, cosine in card.near],
        "mined": None if card.mined is None else [card.mined[0], round(card.mined[1], 3)],
        "raised": [[place[token], _rounded(value)] for token, value in card.raised],
        "lowered": [[place[token], _rounded(value)] for token, value in card.lowered],
        "examples": [_example(context, card.largest, rows) for context in card.contexts],
    }  # fmt: skip


def _example(context: Any, largest: float, rows: np.ndarray) -> list[Any]:
    """Return [quantile in %, place in the text, length, which token counts, [token, level, token, level, ...]]."""
    levels = np.ceil(LEVELS * context.values / largest).astype(int)
    active = [int(x) for i in np.flatnonzero(levels) for x in (i, levels[i])]
    start = int(np.searchsorted(rows, context.rows[0]))
    return [round(100 * context.quantile), start, len(context.rows), context.peak, active]


def life(card: Card) -> str:
    """Return which of WORDS says whether the latent fired before and after training."""
    return {
        (True, True): "alive", (True, False): "died", (False, True): "revived", (False, False): "dead",
    }[card.rate_before > 0, card.rate > 0]  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def title(book: Book) -> str:
    """Return the finding of the latent map."""
    live = book.table[book.table["rate"] > 0]
    told = []
    for group, name in ((MINED_GROUP, "mined latents"), (FILL_GROUP, "random fill"), (UNMINED, "the random arm")):
        part = live[live["group"] == group]
        if len(part):
            told.append(f"{name} {part['cosine'].median():.2f}")
    return f"Median cosine of live latents with their start: {', '.join(told)}" if told else "No latent fires"
