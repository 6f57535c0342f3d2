"""All cards of a notebook as one compact, JSON-like record, and one card of it as HTML.

A record holds ``vocabulary`` (tokens made readable), ``text`` (the rows that any card shows, as places in the
vocabulary) and ``cards``, whose examples point into the text: each text once, tokens as numbers, activations rounded.
What is said of a card in words is made here, in its ``facts`` and in ``words``: the page's script
(``assets/cards.js``) and `card_html`, which JupyterLab shows, say the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import display

from rkcnn_lib.pages import CARDS, blocks
from rkcnn_lib.pages.latents import FILL_GROUP, MINED_GROUP, Card, Context, Reader
from rkcnn_lib.runs.run import Run
from rkcnn_lib.strings import readable, token_text
from rkcnn_lib.studies.comparison import Compared
from rkcnn_lib.vocabulary import MINED, UNMINED

FORMAT = 2
ARMS = (MINED, UNMINED)  # whose latents get cards; both are in every comparison
SEED = 0
LEVELS = 100  # an activation is told in hundredths of its latent's largest
FEATURED = (0.25, 0.5, 0.75, 0.9)  # of the firing rates of a group's live latents: the cards that are shown first
STRONGEST = 0.5  # opacity of an active token's shade at most: text in either page colour stands out on that
COLUMNS = ["arm", "group", "latent", "rate", "cosine", "card"]
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
    """The record (see the module) and a row a card: COLUMNS, where ``cosine`` is that to its start."""

    record: dict[str, Any]
    table: pd.DataFrame
    reader: Reader


def read_book(compared: Compared, store: Any, run: Run) -> Book:
    """Read at most about ``n_cards`` latents of each of ARMS, first seed, chosen by `choose`."""
    reader, cards = Reader(compared, store, run), []
    for arm in ARMS:
        chosen = choose(reader.rates(arm, SEED), reader.n_mined(arm, SEED), run.p.n_cards)
        cards += reader.cards(arm, SEED, chosen)
    rows = [(c.arm, c.group, c.latent, c.rate, c.moved[-1], c.name) for c in cards]
    return Book(as_record(cards, reader), pd.DataFrame(rows, columns=COLUMNS), reader)


def choose(rates: np.ndarray, n_mined: int, n_cards: int) -> list[int]:
    """Return the latents that get a card, ascending: all, or in each group those at even quantiles of firing rates.

    Mined and filled latents get cards in proportion to their numbers; no look at a latent decides.
    """
    chosen: set[int] = set()
    for members in (np.arange(n_mined), np.arange(n_mined, len(rates))):
        wanted = min(len(members), round(n_cards * len(members) / len(rates)))
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
    latents = {arm: len(reader.rates(arm, SEED)) for arm in dict.fromkeys(card.arm for card in cards)}
    # the chance level of the nearest of as many directions as an SAE has, and as were mined
    counts = {"near": max(latents.values()), "mined": reader.n_mined(MINED, SEED)}
    levels = {name: reader.chance(count) for name, count in counts.items() if count}
    chance = {name: f"chance {mean:.2f}, 95 % point {upper:.2f}" for name, (mean, upper) in levels.items()}
    return {
        "format": FORMAT,
        "steps": reader.steps,
        "latents": latents,
        "featured": featured(cards),
        "between": "" if any(text[:1].isspace() for text in texts) else " ",
        "words": WORDS if reader.lm is not None else WORDS | {"no contexts": NO_TOKENS},
        "vocabulary": [readable(text) for text in texts],
        "text": [place[token] for token in tokens.tolist()],
        "cards": [_card_record(card, facts_of(card, reader, chance), rows, place) for card in cards],
    }


def featured(cards: list[Card]) -> list[str]:
    """Return the cards of the mined arm whose firing rates lie at FEATURED in their group; no look decides."""
    chosen: list[str] = []
    for group in (MINED_GROUP, FILL_GROUP):
        live = [c for c in cards if c.arm == MINED and c.group == group and c.rate > 0]
        live.sort(key=lambda card: (card.rate, card.latent))
        chosen += dict.fromkeys(live[int(q * (len(live) - 1))].name for q in FEATURED) if live else ()
    return chosen


def _card_record(card: Card, facts: list[str], rows: np.ndarray, place: dict[int, int]) -> dict[str, Any]:
    return {
        "id": card.name, "arm": card.arm, "seed": card.seed, "latent": card.latent, "group": card.group,
        "rate": _rounded(card.rate), "largest": _rounded(card.largest), "facts": facts,
        "moved": [round(cosine, 3) for cosine in card.moved],
        "raised": [[place[token], _rounded(value)] for token, value in card.raised],
        "lowered": [[place[token], _rounded(value)] for token, value in card.lowered],
        "examples": [_example_record(context, card.largest, rows) for context in card.contexts],
    }  # fmt: skip


def _example_record(context: Context, largest: float, rows: np.ndarray) -> list[Any]:
    """[quantile in %, place in the text, length, which token counts, [token, level, token, level, ...]]."""
    levels = np.ceil(LEVELS * context.values / largest).astype(int)
    active = np.stack([np.flatnonzero(levels), levels[levels != 0]], axis=1).ravel().tolist()
    start = int(np.searchsorted(rows, context.rows[0]))
    return [round(100 * context.quantile), start, len(context.rows), context.peak, active]


def facts_of(card: Card, reader: Reader, chance: dict[str, str]) -> list[str]:
    """Return what is measured of a latent, a sentence each; ``chance`` is the level of each nearest cosine in words."""
    rate, before = (f"{100 * value:.3g} %" if value else "none" for value in (card.rate, card.rate_before))
    path = ", ".join(f"{cosine:.2f} (step {step})" for step, cosine in zip(reader.steps, card.moved, strict=True))
    lines = [
        f"Fires on {rate} of {reader.counted:,} held-out tokens; before training on {before}. {WORDS[life(card)]}",
        f"Cosine of its decoder row with its start: {path}.",
    ]
    if card.near:
        near = ", ".join(f"seed {seed}: latent {latent} ({_signed(cosine)})" for seed, latent, cosine in card.near)
        lines.append(f"Nearest live latents of other seeds: {near}; {chance['near']}.")
    if card.mined:
        number, cosine = card.mined
        lines.append(f"Nearest mined direction: number {number} ({_signed(cosine)}; {chance['mined']}).")
    return lines


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def life(card: Card) -> str:
    """Return which of WORDS says whether the latent fired before and after training."""
    after, never = ("alive", "died") if card.rate_before > 0 else ("revived", "dead")
    return after if card.rate > 0 else never


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def title(book: Book) -> str:
    """Return the finding of the latent map."""
    names = {MINED_GROUP: "mined latents", FILL_GROUP: "fill", UNMINED: "the random arm"}
    medians = book.table[book.table["rate"] > 0].groupby("group")["cosine"].median()
    findings = [f"{name} {medians[group]:.2f}" for group, name in names.items() if group in medians]
    return f"Median cosine of live latents with their start: {', '.join(findings)}" if findings else "No latent fires"


def show(book: Book) -> None:
    """Display all cards as one output that a page draws, with a few of them as HTML for JupyterLab."""
    cards = book.record["cards"]
    few = "".join(card_html(book.record, card) for card in cards if card["id"] in book.record["featured"])
    display({CARDS: book.record, "text/html": few, "text/plain": f"[{len(cards)} cards]"}, raw=True)


def card_html(record: dict[str, Any], card: dict[str, Any]) -> str:
    """Return one card of a record as HTML; all text from data is escaped."""
    return blocks().card(card, [_example(record, card, example) for example in card["examples"]], record)


def _example(record: dict[str, Any], card: dict[str, Any], example: list[Any]) -> tuple[str, list[tuple[Any, ...]]]:
    """Where in the quantiles, and of each token its text, its shade, whether it counts and its activation."""
    quantile, start, length, peak, active = example
    levels = dict(zip(active[::2], active[1::2], strict=True))
    told = {i: f"{card['largest'] * level / LEVELS:.3g}" for i, level in levels.items()}
    tokens = [
        (record["vocabulary"][word], f"{STRONGEST * levels.get(i, 0) / LEVELS:.2f}", i == peak, told.get(i, ""))
        for i, word in enumerate(record["text"][start : start + length])
    ]
    return f"{'largest' if quantile == 100 else f'{quantile} % quantile'}, {told.get(peak, 0)}", tokens
