"""A card as HTML: what JupyterLab shows under the notebook's cell and in the latent browser.

A page draws the same record with a script of its own (``assets/cards.js``). All text from data is escaped.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from IPython.display import display

from rkcnn_lib.pages.cards import CARDS
from rkcnn_lib.pages.cards.book import LEVELS, Book

SHADE = (
    "242, 108, 13"  # of an active token; at its strongest half-opaque, which text in either page colour stands out on
)
STRONGEST = 0.5


def show(book: Book) -> None:
    """Display all cards as one output that a page draws, with a few of them as HTML for JupyterLab."""
    few = [card for card in book.record["cards"] if card["id"] in book.record["featured"]]
    shown = "".join(card_html(book.record, card) for card in few)
    display({CARDS: book.record, "text/html": shown, "text/plain": f"[{len(book.record['cards'])} cards]"}, raw=True)


def card_html(record: dict[str, Any], card: dict[str, Any]) -> str:
    """Return one card of a record as HTML."""
    name = f"{card['arm']}, seed {card['seed']}, latent {card['latent']}"
    group = "" if card["group"] == card["arm"] else f" ({card['group']})"
    facts = "".join(f"<li>{html.escape(line)}</li>" for line in facts_of(record, card))
    shown = "".join(f"<li>{_example(record, card, example)}</li>" for example in card["examples"])
    nowhere = "" if shown else f"<p>{html.escape(record['words']['no contexts'])}</p>"
    return (
        f'<div class="feature-card" style="line-height: 1.5"><p><b>{html.escape(name)}</b>{html.escape(group)}</p>'
        f"<ul>{facts}</ul><ol>{shown}</ol>{nowhere}{_effects(record, card)}</div>"
    )


def facts_of(record: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """Return what is measured of a latent, a sentence each."""
    counted = f"{record['rows']['counted']:,} held-out tokens"
    path = ", ".join(f"{cosine:.2f} (step {step})" for step, cosine in zip(record["steps"], card["moved"], strict=True))
    lines = [
        f"Fires on {_share(card['rate'])} of {counted}; before training on {_share(card['before'])}. "
        + record["words"][card["life"]],
        f"Cosine of its decoder row with its start: {path}.",
    ]
    if card["near"]:
        told = ", ".join(f"seed {seed}: latent {latent} ({cosine:+.2f})" for seed, latent, cosine in card["near"])
        lines.append(f"Nearest live latents of other seeds: {told}; chance {_chance(record, 'near')}.")
    if card["mined"]:
        number, cosine = card["mined"]
        lines.append(f"Nearest mined direction: number {number} ({cosine:+.2f}; chance {_chance(record, 'mined')}).")
    return lines


def _chance(record: dict[str, Any], name: str) -> str:
    mean, upper = record["chance"][name]
    return f"{mean:.2f}, 95 % point {upper:.2f}"


def _share(value: float) -> str:
    return "none" if value == 0 else f"{100 * value:.3g} %"


def _example(record: dict[str, Any], card: dict[str, Any], example: list[Any]) -> str:
    quantile, start, length, peak, active = example
    levels = np.zeros(length, int)
    levels[active[::2]] = active[1::2]
    tokens = [record["vocabulary"][i] for i in record["text"][start : start + length]]
    shown = record["between"].join(
        _token(token, int(level), i == peak, card["largest"])
        for i, (token, level) in enumerate(zip(tokens, levels, strict=True))
    )
    where = "largest" if quantile == 100 else f"{quantile} % quantile"
    return f"<small>{where}, {card['largest'] * levels[peak] / LEVELS:.3g}:</small> {shown}"


def _token(text: str, level: int, counts: bool, largest: float) -> str:
    style = "unicode-bidi: isolate;" + (" border-bottom: 2px solid;" if counts else "")
    title = ""
    if level:
        style += f" background: rgba({SHADE}, {STRONGEST * level / LEVELS:.2f});"
        title = f' title="activation {largest * level / LEVELS:.3g}"'
    return f'<span style="{style}"{title}>{html.escape(text)}</span>'


def _effects(record: dict[str, Any], card: dict[str, Any]) -> str:
    if not card["raised"]:
        return ""
    raised, lowered = (
        ", ".join(
            f"<code>{html.escape(record['vocabulary'][token])}</code> {value:+.2f}" for token, value in card[name]
        )
        for name in ("raised", "lowered")
    )
    return f"<p>Raises {raised}; lowers {lowered}. <small>{html.escape(record['words']['effects'])}</small></p>"
