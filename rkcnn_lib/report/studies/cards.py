"""Feature cards of 04: where a few latents, chosen by rule, fire in held-out text, and which tokens they favour."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, display

from rkcnn_lib.report.runs import INVENTED_MODELS, Run
from rkcnn_lib.report.studies.cells import MINED, model_of
from rkcnn_lib.report.studies.comparison import Compared
from rkcnn_lib.sae import SAE, load_saelens

QUANTILES = (0.25, 0.5, 0.75, 0.9)  # of the firing rates of a group's live latents: one card each
TOP, MIDDLE = 3, 2  # contexts at the largest activations, and at the median one
BEFORE, AFTER = 14, 6  # tokens shown round the one that counts
BRIGHT = 0.5  # tokens at this share of a latent's largest activation or more are marked
N_TOKENS = 5  # most raised and most lowered tokens
ROWS = 50_000  # held-out rows looked at


@dataclass(frozen=True)
class Card:
    """One latent: its start, how often it fires, and contexts as (kind, tokens, activations, token that counts)."""

    latent: int
    group: str
    rate: float
    largest: float
    examples: list[tuple[str, list[str], np.ndarray, int]]
    raised: list[str]
    lowered: list[str]


def show(compared: Compared, store: Any, run: Run) -> None:
    """Display the cards of the mined arm's first seed, or why there are none."""
    if run.p.model in INVENTED_MODELS:
        print(f"{run.p.model}: its rows are no tokens, so there is nothing to read a latent by.")
        return
    unit = compared.units[MINED, 0]
    sae = load_saelens(unit.folder / "sae")
    lm = model_of(run.p, run.device)
    chosen = choose(unit.arrays["density"].numpy(), int(unit.scalars["n_mined"]))
    display(HTML("".join(map(as_html, cards(sae, store, lm, chosen)))))


def choose(rates: np.ndarray, n_mined: int) -> list[tuple[int, str]]:
    """Return (latent, group): in each group the live latents whose firing rates lie at QUANTILES; no look decides."""
    chosen = []
    for group, members in (("mined", np.arange(n_mined)), ("random fill", np.arange(n_mined, len(rates)))):
        live = members[rates[members] > 0]
        ranked = live[np.argsort(rates[live], kind="stable")]
        places = dict.fromkeys(int(q * (len(ranked) - 1)) for q in QUANTILES) if len(ranked) else ()
        chosen += [(int(ranked[place]), group) for place in places]
    return chosen


def cards(sae: SAE, store: Any, lm: Any, chosen: list[tuple[int, str]]) -> list[Card]:
    """Read the chosen latents on held-out rows of a store, in token order.

    Parameters
    ----------
    sae : SAE
        In raw units.
    store : ActivationStore
    lm : TransformerBridge
        Gives the tokens' text and, where the SAE lives in the residual stream's width, the unembedding.
    chosen : list of (latent, group)
    """
    rows = store.rows("heldout")[:ROWS]
    latents = [latent for latent, _ in chosen]
    parts = np.array_split(rows, -(-len(rows) // 4096))
    codes = torch.cat([sae.encode(store.take(part))[:, latents].detach().cpu() for part in parts])
    found = []
    for column, (latent, group) in enumerate(chosen):
        values = codes[:, column].numpy()
        active = np.flatnonzero(values > 0)
        ranked = active[np.argsort(-values[active], kind="stable")]
        picked = [("largest", i) for i in _apart(ranked, rows, store, TOP)]
        picked += [("median", i) for i in _apart(ranked[len(ranked) // 2 :], rows, store, MIDDLE)]
        examples = [(kind, *_context(i, rows, values, store, lm)) for kind, i in picked]
        rate, largest = len(active) / len(rows), float(values.max(initial=0.0))
        found.append(Card(latent, group, rate, largest, examples, *_favoured(sae.W_dec[latent].detach(), lm)))
    return found


def _apart(order: np.ndarray, rows: np.ndarray, store: Any, n: int) -> list[int]:
    """Return the first n of ``order`` that lie in different documents, so that one text does not fill a card."""
    picked, seen = [], set()
    for i in order:
        document = int(store.document_ids[rows[i]])
        if document not in seen:
            picked.append(int(i))
            seen.add(document)
        if len(picked) == n:
            break
    return picked


def _context(i: int, rows: np.ndarray, values: np.ndarray, store: Any, lm: Any) -> tuple[list[str], np.ndarray, int]:
    """Return the tokens round row i of its document and context, the activations on them, and which of them i is."""
    size, here = store.context_size, int(rows[i])
    first = max(here - BEFORE, here // size * size)
    window = np.arange(first, min(here + AFTER + 1, (here // size + 1) * size))
    window = window[store.document_ids[window] == store.document_ids[here]]
    place = np.searchsorted(rows, window).clip(max=len(rows) - 1)
    shown = np.where(rows[place] == window, values[place], 0.0)  # a row left out (position 0) has no activation
    return [token_text(lm, int(token)) for token in store.tokens[window]], shown, int(np.searchsorted(window, here))


def _favoured(direction: torch.Tensor, lm: Any) -> tuple[list[str], list[str]]:
    """Return the tokens whose logits the direction raises and lowers most, the final normalisation aside."""
    unembedding = lm.W_U.detach().float().cpu()
    if len(unembedding) != len(direction):
        return [], []
    order = (direction.cpu() @ unembedding).argsort(descending=True).tolist()
    return tuple([token_text(lm, token) for token in ids] for ids in (order[:N_TOKENS], order[: -N_TOKENS - 1 : -1]))


def token_text(lm: Any, token: int) -> str:
    """Return one token's text, or its number where the model has no tokenizer."""
    return f"<{token}>" if lm.tokenizer is None else lm.tokenizer.decode([token])


def as_html(card: Card) -> str:
    """Return a card as HTML; all text that comes from data is escaped."""
    lines = [f"<p><b>Latent {card.latent} ({card.group}): active on {card.rate:.2%} of tokens</b></p>", "<ul>"]
    for kind, *context in card.examples:
        lines.append(f"<li><small>{kind}</small> {_marked(*context, card.largest)}</li>")
    lines.append("</ul>")
    if card.raised:
        raised, lowered = (
            ", ".join(f"<code>{html.escape(text)}</code>" for text in texts) for texts in (card.raised, card.lowered)
        )
        lines.append(f"<p><small>raises</small> {raised}; <small>lowers</small> {lowered}</p>")
    return "\n".join(lines)


def _marked(tokens: list[str], values: np.ndarray, counts: int, largest: float) -> str:
    """Join tokens: the one that counts underlined, those at BRIGHT of the largest activation marked."""
    between = "" if any(token[:1].isspace() for token in tokens) else " "
    parts = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        text = f"<u>{html.escape(token)}</u>" if place == counts else html.escape(token)
        parts.append(f'<mark title="{value:.3g}">{text}</mark>' if value >= BRIGHT * largest > 0 else text)
    return between.join(parts)
