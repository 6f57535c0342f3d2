"""The place of the cards on a page: a search, the cards' data for the page's script, a few cards where none runs."""

from __future__ import annotations

from typing import Any

from rkcnn_lib.strings import script_json


def cards_block(record: dict[str, Any], fallback: str) -> str:
    """Return the HTML of the cards.

    Parameters
    ----------
    record : dict
        What :mod:`~rkcnn_lib.pages.cards.book` describes. It reaches the page as JSON that only
        ``assets/cards.js`` reads, and sets as text.
    fallback : str
        HTML of a few cards, already made safe: shown until the script runs.
    """
    return (
        '<div class="feature-cards" id="cards">'
        '<form class="card-search" role="search" aria-label="Find a card" hidden>'
        '<label>Start <select name="arm"></select></label>'
        '<label>Latent or token <input type="search" name="query" size="12" autocomplete="off"></label>'
        '<button type="submit">Find</button>'
        '<button type="button" name="previous">← Previous</button><button type="button" name="next">Next →</button>'
        '</form><p class="card-status" role="status" aria-live="polite"></p>'
        '<div class="card-list" role="group" aria-label="Cards to choose from"></div>'
        '<div class="feature-card" hidden></div>'
        f'<div class="card-fallback">{fallback}</div>'
        f'<script type="application/json" class="card-data">{script_json(record)}</script></div>'
    )
