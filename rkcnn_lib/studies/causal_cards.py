"""Prompt cards of 06: what each token's activation is worth, and what the model says once a part is exchanged."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML, display

from rkcnn_lib.measure.causal import patched_logits
from rkcnn_lib.measure.effects import effects
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.studies.causal import Measured, judged_rank
from rkcnn_lib.studies.causal_prompts import Prompts
from rkcnn_lib.studies.causal_subspaces import CEILING, CHANCE, MINED, SAE_SPAN, VARIANCE
from rkcnn_lib.studies.tokens import readable, token_text

CARDS = 5
SHOWN = (MINED, SAE_SPAN, VARIANCE, CHANCE, CEILING)
MARKED = 0.25  # tokens whose exchange takes this share of the logit difference or more are marked


def show(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts, places: pd.DataFrame) -> None:
    """Display a card for each of the first pairs that the heat map looked at; no look decides which."""
    layer = p.layer % (places["layer"].max() + 1)
    here = places[(places["layer"] == layer) & (places["metric"] == "fractional_decrease")]
    chosen = here["pair"].drop_duplicates().tolist()[:CARDS]
    said = answers_when_exchanged(lm, p, measured, chosen)
    by_token = {i: here[here["pair"] == i].set_index("place")["value"].to_dict() for i in chosen}
    display(HTML("".join(as_html(lm, *prompts.judged.drawn[i], by_token[i], said[i]) for i in chosen)))


def answers_when_exchanged(
    lm: Any, p: CausalChecks, measured: Measured, chosen: list[int]
) -> dict[int, list[tuple[str, str, float]]]:
    """Return for each pair (subspace, most likely token, logit difference) after the exchange, clean run first."""
    ground = measured.ground
    rows = torch.tensor(chosen)
    pairs, clean = ground.pairing.pairs.take(rows), ground.logits[rows.to(ground.logits.device)]
    donated = ground.donated[rows.to(ground.donated.device)]
    logits = {"as it is": clean}
    for name in SHOWN:
        if (name, 0) in measured.subspaces:
            A = measured.subspaces[name, 0].part(judged_rank(p))
            logits[name] = patched_logits(lm, pairs, ground.hook_name, A, "ablate", donated)
    found: dict[int, list[tuple[str, str, float]]] = {i: [] for i in chosen}
    for name, patched in logits.items():
        differences = effects(clean, patched, pairs)["logit_difference"]
        for row, i in enumerate(chosen):
            found[i].append((name, readable(token_text(lm, int(patched[row].argmax()))), float(differences[row])))
    return found


def as_html(lm: Any, base: Any, donor: Any, values: dict[int, float], said: list[tuple[str, str, float]]) -> str:
    """Return one card: the prompt with its tokens marked, and a line of answers; text from data is escaped."""
    texts = [readable(token_text(lm, token)) for token in base.ids]
    between = "" if any(text[:1].isspace() for text in texts[1:]) else " "
    parts = []
    for place, text in enumerate(texts):
        if place in values:
            tag = "mark" if values[place] >= MARKED else "span"
            parts.append(f'<{tag} title="{values[place]:.2f} of 2">{html.escape(text)}</{tag}>')
        elif text.strip() in base.text:  # not looked at; a token that only opens the text is left out
            parts.append(html.escape(text))
    answers = "; ".join(
        f"<small>{html.escape(name)}</small> <code>{html.escape(text.strip())}</code> ({value:+.1f})"
        for name, text, value in said
    )
    target = f"{html.escape(base.answer)}, donor {html.escape(donor.entity)}: {html.escape(donor.answer)}"
    return f"<p>{between.join(parts)} <small>({target})</small><br>{answers}</p>"
