"""Looks of 06 beside the verdicts: prompts, where the answer is carried, isolation, rowspace parts, steering, cards."""

import html
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML, display

from rkcnn_lib.measure.causal import clean_logits, patched_logits, rowspace_part, steered_continuation
from rkcnn_lib.measure.effects import effects
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.strings import readable, token_text
from rkcnn_lib.studies import causal_subspaces as exchanged
from rkcnn_lib.studies.causal import Measured, ground, judged_rank
from rkcnn_lib.studies.causal_subspaces import CEILING, CHANCE, CHANCE_OF_VARIANCE, MINED, NAMED, VARIANCE, Prompts
from rkcnn_lib.studies.verdicts import listed, means
from rkcnn_lib.worlds import hook_name as name_of_hook
from rkcnn_lib.worlds.prompts import Prompt

LAYERS_SHOWN, PAIRS_SHOWN = 6, 24  # at most, in the heat map
STRENGTHS = (1.0, 3.0)  # multiples of the difference of mean activations
STEERED_PROMPTS, CONTINUED = 3, 4
CARDS = 5
MARKED = 0.25  # tokens whose exchange takes this share of the logit difference or more are marked


def describe(prompts: Prompts) -> None:
    """Show how many prompts there are of each kind, and one of each."""
    base, donor = prompts.judged.drawn[0]
    first = prompts.selection[0]
    entities = "other" if prompts.entities_held_out else "same"
    pair = f"{base.text} -> {base.answer}; donor: {donor.text} -> {donor.answer}"
    _whole(pd.DataFrame.from_dict({
        "screening prompts": (len(prompts.screening), prompts.screening[0].text),
        "entities known": (f"{prompts.known} of {prompts.asked}", ""),
        "selection prompts": (len(prompts.selection), f"{first.text} -> {first.answer}"),
        "training pairs": (len(prompts.training.drawn), ""),
        "evaluation prompts": (len(prompts.evaluation), f"other sentences, {entities} entities"),
        "judged pairs": (len(prompts.judged.drawn), pair),
    }, orient="index", columns=["number", "example"]))  # fmt: skip


def _whole(table: pd.DataFrame) -> None:
    """Display a table with its texts in full, escaped."""
    with pd.option_context("display.max_colwidth", None):
        display(HTML(table.to_html(border=0)))


def legend(measured: Measured) -> None:
    """Show what each subspace is, in words, with how many candidates it was chosen from."""
    _whole(pd.DataFrame([
        {"subspace": name, "what it is": meaning, "chosen from": measured.subspaces[name, 0].candidates}
        for name, meaning in exchanged.SUBSPACES.items() if (name, 0) in measured.subspaces
    ]).set_index("subspace"))  # fmt: skip


def ceiling_by_layer(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> pd.DataFrame:
    """Return layer, subspace, value, low, high: interchange accuracy of the supervised ceiling and of everything."""
    n = lm.cfg.n_layers
    layers = range(n) if p.das_layers is None else sorted({layer % n for layer in (p.layer, *p.das_layers)})
    rows = []
    for layer in layers:
        hook = name_of_hook(p.hook, layer)
        if hook == measured.ground.hook_name:
            hooked, learnt = measured.ground, measured.per_pair[CEILING, 0, "ablate"]
        else:
            hooked = ground(lm, prompts.judged, hook, measured.ground.logits)
            learnt = hooked.run(exchanged.aligned_subspace(lm, p, prompts, hook).part(judged_rank(p)), "ablate")
        for name, effect in {CEILING: learnt, "full-resample": hooked.full}.items():
            rows += hooked.rows(effect, ["interchanged"], layer=layer, subspace=name, intervention="ablate")
    return pd.DataFrame(rows)


def layer_title(layers: pd.DataFrame, p: CausalChecks) -> str:
    """Return what the ceiling turns at its best layer."""
    best = layers[layers["subspace"] == CEILING].sort_values("value").iloc[-1]
    told = f"turns {best['value']:.0%} of the held-out answers at its best layer, {best['layer']}"
    return f"A rank-{judged_rank(p)} subspace learnt with labels {told}"


def effect_by_place(lm: Any, p: CausalChecks, prompts: Prompts) -> pd.DataFrame:
    """Exchange the whole activation at one layer and one token at a time (activation patching), in one sentence.

    The sentence is that of most judged pairs; of a deep model some layers are looked at, evenly spaced. Columns layer,
    arm (the token's place and text), place, pair (row of the judged pairs), metric, value: ``fractional_decrease`` of
    the logit difference (0: none, 1: level, 2: turned round) and ``interchanged``.
    """
    drawn = prompts.judged.drawn
    kinds = [(base.family, len(base.ids)) for base, _ in drawn]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    members = [i for i, kind in enumerate(kinds) if kind == most][:PAIRS_SHOWN]
    first, chosen = drawn[members[0]][0], prompts.judged.pairs.take(torch.tensor(members))
    clean_run, n = clean_logits(lm, chosen), lm.cfg.n_layers
    layers = sorted({p.layer % n, *torch.linspace(0, n - 1, min(n, LAYERS_SHOWN)).round().int().tolist()})
    rows = []
    for place in range(1, len(first.ids)):
        pairing = exchanged.Pairing([drawn[i] for i in members], chosen.at(place))
        text = "{entity}" if place == first.entity_position else token_text(lm, first.ids[place])
        for layer in layers:
            hooked = ground(lm, pairing, name_of_hook(p.hook, layer), clean_run)
            clean, full = hooked.clean["logit_difference"], hooked.full
            decrease = (clean - full["logit_difference"]) / clean.mean()
            about = {"layer": layer, "place": place, "arm": f"{place} {text}"}
            for metric, values in {"fractional_decrease": decrease, "interchanged": full["interchanged"]}.items():
                pairs = zip(members, values.tolist(), strict=True)
                rows += [about | {"pair": i, "metric": metric, "value": value} for i, value in pairs]
    return pd.DataFrame(rows)


def place_title(places: pd.DataFrame, p: CausalChecks) -> str:
    """Return which tokens carry the answer at the layer that is studied."""
    layer = p.layer % (places["layer"].max() + 1)
    studied = places[(places["metric"] == "fractional_decrease") & (places["layer"] == layer)]
    most = studied.groupby("arm")["value"].mean().sort_values(ascending=False).head(2).rename("'{}'".format)
    return f"At layer {layer} the answer hangs on the tokens {listed(most, '.2f')} (of 2)"


def by_replacement(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> pd.DataFrame:
    """Ablate the judged subspaces by zero, by the mean of the selection prompts and by a donor.

    Zero and mean can take an answer away, a donor can also put another in its place; what only the first two do may be
    the damage of a state the model never meets. Columns subspace, replacement, metric, value, low, high.
    """
    hooked = measured.ground
    mean = exchanged.at_positions(lm, prompts.selection, p.positions, hooked.hook_name).mean(0)  # (k, d)
    kinds = {"zero": torch.zeros_like(mean), "mean": mean, "donor": None}
    rows = []
    for name in (MINED, CHANCE, CHANCE_OF_VARIANCE, VARIANCE, CEILING):
        for kind, replacement in kinds.items():
            effect = hooked.run(measured.subspaces[name, 0].part(judged_rank(p)), "ablate", replacement)
            rows += hooked.rows(effect, ["top1", "interchanged", "kl"], subspace=name, replacement=kind)
    return pd.DataFrame(rows)


def isolation(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts, other: Prompts) -> pd.DataFrame:
    """Score each subspace as RAVEL does (Huang et al. 2024, arXiv:2402.17700): it should move its own answer alone.

    *cause*: share of pairs asked for ``p.relation`` whose answer becomes the donor's. *isolate*: share of pairs
    asked for ``p.isolated``, of entities with another answer to it, whose answer stays. *disentangle*: their mean,
    0.5 for the whole activation and for the empty subspace. Held-out sentences and entities, at the judged rank, the
    ceiling also as learnt with isolation in its loss. Columns subspace, seed, intervention, metric, value, low, high.
    """
    asks = measured.ground
    leaves = ground(lm, other.judged, asks.hook_name)
    subspaces = [*measured.subspaces.values(), exchanged.aligned_subspace(lm, p, prompts, asks.hook_name, keep=other)]
    parts = {(one.name, one.seed): one.part(judged_rank(p)) for one in subspaces}
    rows = []
    for (name, seed), part in (parts | {("whole", 0): torch.eye(asks.donated.shape[-1])}).items():
        cause = asks.interval(asks.run(part, "ablate"), "interchanged")
        isolate = leaves.interval(leaves.run(part, "ablate"), "top1")
        mean = {"value": (cause["value"] + isolate["value"]) / 2}
        for metric, interval in {"disentangle": mean, "cause": cause, "isolate": isolate}.items():
            rows.append({"subspace": name, "seed": seed, "intervention": "ablate", "metric": metric} | interval)
    return pd.DataFrame(rows)


def isolation_title(table: pd.DataFrame) -> str:
    """Return which subspace moves its own answer alone best, beside the mined one."""
    mean = means(table, "disentangle", "subspace").drop("whole")
    return f"Disentangled best by {mean.idxmax()} ({mean.max():.2f}; all or nothing 0.5): mined {mean[MINED]:.2f}"


def rowspace_effects(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> pd.DataFrame:
    """Learn the ceiling in an MLP's hidden layer and exchange it, its rowspace part, and everything.

    In the block whose hidden layer matters most. What its output weight cannot read cannot matter by itself: an effect
    that the rowspace part lacks is the interpretability illusion. Columns layer, part, metric, value, low, high.
    """
    hooks = [name_of_hook("mlp_post", layer) for layer in range(lm.cfg.n_layers)]
    grounds = [ground(lm, prompts.judged, hook, measured.ground.logits) for hook in hooks]
    layer = min(range(len(hooks)), key=lambda i: float(grounds[i].full["logit_difference"].mean()))
    hooked, weight = grounds[layer], lm.blocks[layer].mlp.W_out.detach().cpu()
    basis = exchanged.aligned_subspace(lm, p, prompts, hooks[layer]).part(judged_rank(p))
    parts = {"learnt subspace": basis, "its rowspace part": rowspace_part(basis, weight)}
    runs = {name: hooked.run(part, "ablate") for name, part in parts.items()} | {"whole": hooked.full}
    rows = []
    for name, effect in runs.items():
        change = hooked.clean["logit_difference"] - effect["logit_difference"]
        shown = {"interchanged": effect["interchanged"], "drop of the logit difference": change}
        rows += hooked.rows(shown, layer=layer, part=name)
    return pd.DataFrame(rows)


def steering_samples(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> pd.DataFrame:
    """Continue prompts as they are, and while the part in A of the difference of two answers' means is added."""
    X, y = measured.rows
    hook, rows = measured.ground.hook_name, []
    first_of: dict[str, tuple[Prompt, Prompt]] = {}
    for base, donor in prompts.judged.drawn:
        if {base.answer, donor.answer} <= set(y):
            first_of.setdefault(base.entity, (base, donor))
    for base, donor in list(first_of.values())[:STEERED_PROMPTS]:
        difference = X[torch.as_tensor(y == donor.answer)].mean(0) - X[torch.as_tensor(y == base.answer)].mean(0)
        about = {"prompt": base.text, "unsteered": _continued(lm, base, hook, difference, 0.0), "towards": donor.answer}
        for subspace in (MINED, CEILING):
            A = measured.subspaces[subspace, 0].part(judged_rank(p)).to(difference)
            inside = A @ (A.T @ difference)
            samples = {f"x {strength:g}": _continued(lm, base, hook, inside, strength) for strength in STRENGTHS}
            rows.append(about | {"subspace": subspace} | samples)
    return pd.DataFrame(rows)


def _continued(lm: Any, prompt: Prompt, hook_name: str, direction: torch.Tensor, strength: float) -> str:
    tokens = torch.tensor(prompt.ids, device=next(lm.parameters()).device)
    n_tokens = min(CONTINUED, lm.cfg.n_ctx - len(tokens) + 1)  # a model of sums has room for the answer alone
    return lm.tokenizer.decode(steered_continuation(lm, tokens, hook_name, direction, strength, n_tokens))


def show_cards(lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts, places: pd.DataFrame) -> None:
    """Display a card for each of the first pairs that the heat map looked at; no look decides which."""
    layer = p.layer % (places["layer"].max() + 1)
    studied = places[(places["layer"] == layer) & (places["metric"] == "fractional_decrease")]
    chosen = studied["pair"].drop_duplicates().tolist()[:CARDS]
    here, rows = measured.ground, torch.tensor(chosen)
    pairs, clean, donated = here.pairing.pairs.take(rows), here.logits[rows], here.donated[rows]
    logits = {"as it is": clean}
    for name in NAMED:
        if (name, 0) in measured.subspaces:
            A = measured.subspaces[name, 0].part(judged_rank(p))
            logits[name] = patched_logits(lm, pairs, here.hook_name, A, "ablate", donated)
    differences = {name: effects(clean, patched, pairs)["logit_difference"] for name, patched in logits.items()}
    cards = []
    for row, i in enumerate(chosen):
        by_token = studied[studied["pair"] == i].set_index("place")["value"].to_dict()
        answers = [
            (name, readable(token_text(lm, int(patched[row].argmax()))), float(differences[name][row]))
            for name, patched in logits.items()
        ]
        cards.append(as_html(lm, *prompts.judged.drawn[i], by_token, answers))
    display(HTML("".join(cards)))


def as_html(lm: Any, base: Prompt, donor: Prompt, values: dict[int, float], answers: list[tuple]) -> str:
    """Return one card: the prompt, its tokens marked by ``values``, and below it (run, answer, logit difference)."""
    texts = [readable(token_text(lm, token)) for token in base.ids]
    between = "" if any(text[:1].isspace() for text in texts[1:]) else " "
    parts = []
    for place, text in enumerate(texts):
        if place in values:
            tag = "mark" if values[place] >= MARKED else "span"
            parts.append(f'<{tag} title="{values[place]:.2f} of 2">{html.escape(text)}</{tag}>')
        elif text.strip() in base.text:  # not looked at; a token that only opens the text is left out
            parts.append(html.escape(text))
    line = "; ".join(
        f"<small>{html.escape(name)}</small> <code>{html.escape(text.strip())}</code> ({value:+.1f})"
        for name, text, value in answers
    )
    target = f"{html.escape(base.answer)}, donor {html.escape(donor.entity)}: {html.escape(donor.answer)}"
    return f"<p>{between.join(parts)} <small>({target})</small><br>{line}</p>"
