"""Live exploration in JupyterLab (ipywidgets); every widget has a native figure beside it that pages can show.

Nothing is learnt here: a latent is read once, a prompt is a handful of forward passes with the subspaces of 06.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import display

from rkcnn_lib import figures
from rkcnn_lib.figures.display import TITLE, bundle, note_html, title_html
from rkcnn_lib.measure import causal, matched_cosine
from rkcnn_lib.pages import blocks
from rkcnn_lib.pages.book import SEED, Book, as_record, card_html
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import CausalChecks
from rkcnn_lib.strings import one_token, readable, token_text, unknown_words
from rkcnn_lib.studies.causal import Measured, judged_rank
from rkcnn_lib.studies.causal_subspaces import MINED as MINED_SUBSPACE
from rkcnn_lib.studies.causal_subspaces import Prompts
from rkcnn_lib.studies.planes import Planes, mine_plane, states
from rkcnn_lib.vocabulary import MINED
from rkcnn_lib.worlds import hook_name

CLEAN, KEEP, ABLATE, STEER = RUNS = ("as it is", "keep", "ablate", "steer")
WHOLE = "the whole activation"
N_TOP = 4  # most likely next tokens of each run that are shown
WIDE = "min(100%, 44rem)"


def labelled(kind: type, label: str, *args: Any, **options: Any) -> Any:
    """Return a control whose label has as much room as the others'."""
    return kind(*args, description=label, style={"description_width": "6rem"}, **options)


def on_change(call: Callable[[], None], *controls: Any) -> None:
    for control in controls:
        control.observe(lambda _: call(), names="value")


class LiveFigure:
    """A figure that is replaced in place.

    An Output widget would do the same, but running headlessly it now and then never lets its cell end: the client
    answers it while the kernel is busy.
    """

    def __init__(self) -> None:
        self.places: list[Any] = []  # of title, figure and note, once they are shown

    def draw(self, fig: go.Figure, title: str, note: str) -> None:
        """Show a figure between title and note where the first ones were shown, which must be from the cell itself."""
        under = {"text/html": note_html(note)}
        parts = [({"text/html": title_html(title)}, {}), (bundle(fig, title), {TITLE: title}), (under, {})]
        if not self.places:
            self.places = [display(part, raw=True, display_id=True, metadata=about) for part, about in parts]
            return
        # JupyterLab's renderer of plotly keeps the figure it has; another kind of output in between makes it let go.
        self.places[1].update({"text/html": f'<div style="height: {fig.layout.height}px"></div>'}, raw=True)
        for place, (part, about) in zip(self.places, parts, strict=True):
            place.update(part, raw=True, metadata=about)


def toy_plane(planes: Planes, run: Run) -> None:
    """Choose how often features are active, one of the 5 -> 2 models trained already and a miner; see what it finds."""
    ps = planes.table["probability"].drop_duplicates().tolist()
    last, late = int(planes.table["instance"].max()), {"continuous_update": False}
    probability = widgets.SelectionSlider(options=ps, value=ps[-1], description="p(active)", **late)
    instance = widgets.IntSlider(0, 0, last, description="model", **late)
    miner = widgets.Dropdown(options=run.p.miners, value="rkcnn", description="miner")
    shown = LiveFigure()

    def draw() -> None:
        X, truth = states(planes, probability.value, instance.value)
        D = mine_plane(X, run.p, miner.value)
        met = f"{matched_cosine(D, truth):.3f}" if len(truth) else "undefined"
        title = f"{miner.value}: {len(D)} directions for {len(truth)} features, matched cosine {met}"
        note = f"One 5 -> 2 model, features active with probability {probability.value:g}; grey: true, orange: mined."
        shown.draw(figures.mined_slider({"mined": (truth, D)}), title, note)

    display(widgets.HBox([probability, instance, miner]))
    draw()
    on_change(draw, probability, instance, miner)


class LatentBrowser:
    """Any latent of any arm and seed as a card: by number, step by step, or among those that fire on a token.

    What the notebook has read already is drawn from its cards; another SAE is read once, in a few seconds.
    """

    def __init__(self, book: Book) -> None:
        self.reader, self.book = book.reader, book
        self.known = {(c["arm"], c["seed"], c["latent"]): c for c in book.record["cards"]}
        units = book.reader.compared.units
        arms, seeds = list(dict.fromkeys(arm for arm, _ in units)), sorted({seed for _, seed in units})
        featured = [c["latent"] for c in book.record["cards"] if c["id"] in book.record["featured"]]
        self.arm = labelled(widgets.Dropdown, "start", options=arms, value=MINED)
        self.seed = labelled(widgets.Dropdown, "seed", options=seeds, value=SEED)
        self.latent = labelled(widgets.BoundedIntText, "latent", (featured or [0])[0], 0, self._count() - 1)
        self.token = labelled(widgets.Text, "fires on", placeholder="a token, then Enter", continuous_update=False)
        self.active = labelled(widgets.Select, "most active", rows=6, layout={"width": WIDE, "display": "none"})
        self.message, self.card = widgets.HTML(), widgets.HTML(layout={"max_width": "60rem"})
        back, onward = (widgets.Button(description=text) for text in ("← previous", "next →"))
        back.on_click(lambda _: self._step(-1))
        onward.on_click(lambda _: self._step(1))
        on_change(self._another_sae, self.arm, self.seed)
        on_change(self._draw, self.latent)
        on_change(self._search, self.token)
        on_change(self._choose, self.active)
        rows = [widgets.HBox([self.arm, self.seed]), widgets.HBox([self.latent, back, onward]), self.token]
        self.box = widgets.VBox([*rows, self.message, self.active, self.card])
        self._draw()

    def _count(self) -> int:
        return len(self.reader.rates(self.arm.value, self.seed.value))

    def _draw(self) -> None:
        arm, seed, latent = self.arm.value, self.seed.value, self.latent.value
        record, card = self.book.record, self.known.get((arm, seed, latent))
        if card is None:
            record = as_record(self.reader.cards(arm, seed, [latent]), self.reader)
            card = record["cards"][0]
        self.card.value = card_html(record, card)

    def _another_sae(self) -> None:
        self.latent.max = self._count() - 1
        self._draw()
        if self.token.value:
            self._search()

    def _step(self, by: int) -> None:
        self.latent.value = (self.latent.value + by) % self._count()

    def _search(self) -> None:
        self.active.layout.display = "none"
        try:
            token = one_token(self.reader.lm, self.token.value)
        except ValueError as problem:
            self.message.value = f"<p>{escape(str(problem))}</p>"
            return
        active = self.reader.firing_on(self.arm.value, self.seed.value, token)
        what = "mean activation on it, most active first" if active else "nothing fires on it, or the text lacks it"
        self.message.value = f"<p>“{escape(readable(self.token.value.strip()))}” in the held-out text: {what}.</p>"
        if active:
            self.active.options = [(f"latent {latent}: {mean:.3g}", latent) for latent, mean in active]
            self.active.layout.display = None
            self.latent.value = active[0][0]

    def _choose(self) -> None:
        if self.active.value is not None:
            self.latent.value = self.active.value


def latents(book: Book) -> LatentBrowser:
    """Browse the latents of a comparison; see `LatentBrowser`."""
    browser = LatentBrowser(book)
    display(browser.box)
    return browser


@dataclass(frozen=True)
class Answers:
    """What the four runs say."""

    table: pd.DataFrame  # token, run, probability
    answer: str  # the prompt's own
    foil: str  # the donor's
    differences: dict[str, float]  # of each run, the logit of the answer minus that of the foil
    remarks: list[str]  # sentences that tell what was exchanged


class PromptBox:
    """Answers prompts with the subspaces of one run of 06."""

    def __init__(self, lm: Any, p: CausalChecks, measured: Measured, prompts: Prompts) -> None:
        self.lm, self.p, self.measured = lm, p, measured
        self.example = tuple(prompt.text for prompt in prompts.judged.drawn[0])
        self.subspaces = [*dict.fromkeys(name for name, _ in measured.subspaces), WHOLE]
        self.layer = p.layer % lm.cfg.n_layers

    def ids(self, text: str, which: str) -> list[int]:
        """Return the token ids of a typed prompt; ValueError if the model cannot read it, with the reason."""
        if not text.strip():
            raise ValueError(f"The {which} is empty: type the beginning of a sentence.")
        unknown = ", ".join(map(readable, unknown_words(self.lm, text)))
        if unknown:
            raise ValueError(f"The {which} has words that this model does not know: {unknown}.")
        ids = self.lm.tokenizer.encode(text.strip())
        if len(ids) > self.lm.cfg.n_ctx:
            raise ValueError(f"The {which} has {len(ids)} tokens; this model reads {self.lm.cfg.n_ctx} at most.")
        return ids

    def ask(self, prompt: str, donor: str, layer: int, subspace: str, rank: int, strength: float) -> Answers:
        """Run a prompt four times: as it is; all but the subspace exchanged; the subspace exchanged; steered.

        The subspace is that of the first seed. Steering adds ``strength`` times what the subspace holds of
        (donor - prompt) at every token but the first. ValueError for a prompt that cannot be used (see `ids`), or a
        donor that is the prompt itself.
        """
        base, other = self.ids(prompt, "prompt"), self.ids(donor, "donor prompt")
        if base == other:
            raise ValueError("Prompt and donor are the same: nothing would be exchanged. Change one of them.")
        everything, hook = torch.eye(self.measured.ground.donated.shape[-1]), hook_name(self.p.hook, layer)
        A = everything if subspace == WHOLE else self.measured.subspaces[subspace, 0].part(rank)
        ours, theirs, where = places(base, other, self.p.positions)
        device = next(self.lm.parameters()).device
        own, donated = torch.tensor([base], device=device), torch.tensor([other], device=device)
        x = causal.read_activations(self.lm, own, hook, torch.tensor([ours]))
        r = causal.read_activations(self.lm, donated, hook, torch.tensor([theirs]))
        push = strength * (causal.share_in(r, A) - causal.share_in(x, A)).mean(1, keepdim=True)
        pairs = _alone(own, torch.tensor([ours]))
        everywhere = pairs.at(torch.arange(min(1, len(base) - 1), len(base))[None])
        with torch.no_grad():
            steered = causal.edited_logits(self.lm, everywhere, hook, lambda clean, _: clean + push.to(clean))
        patched = {mode: causal.patched_logits(self.lm, pairs, hook, A, mode, r)[0] for mode in (KEEP, ABLATE)}
        logits = {CLEAN: causal.clean_logits(self.lm, pairs)[0], **patched, STEER: steered[0]}
        foil = int(causal.clean_logits(self.lm, _alone(donated))[0].argmax())
        remarks = [where]
        if layer != self.layer and subspace != WHOLE:
            remarks.append(f"The subspace was found at layer {self.layer}; here it is used at another.")
        return self._answers(logits, foil, remarks)

    def _answers(self, logits: dict[str, torch.Tensor], foil: int, remarks: list[str]) -> Answers:
        answer = int(logits[CLEAN].argmax())
        probabilities = {run: row.double().softmax(-1) for run, row in logits.items()}
        tops = {int(token) for row in probabilities.values() for token in row.topk(N_TOP).indices}
        shown = sorted({*tops, answer, foil}, key=lambda token: -float(probabilities[CLEAN][token]))
        text = {token: readable(token_text(self.lm, token)) for token in shown}
        table = pd.DataFrame([
            {"token": text[token], "run": run, "probability": float(row[token])}
            for token in shown for run, row in probabilities.items()
        ])  # fmt: skip
        differences = {run: float(row[answer] - row[foil]) for run, row in logits.items()}
        if answer == foil:
            remarks.append("The donor is continued by the same token: there is no difference of answers to look at.")
        return Answers(table, text[answer], text[foil], differences, remarks)


def _alone(prompt: torch.Tensor, positions: torch.Tensor | int = -1) -> causal.PromptPairs:
    """One prompt (1, length) that is its own donor; which tokens would be answers plays no part here."""
    return causal.PromptPairs(prompt, prompt, prompt[:, 0], prompt[:, 0], positions)


def places(base: list[int], donor: list[int], positions: str) -> tuple[list[int], list[int], str]:
    """Return where activations are exchanged in prompt and donor, and a sentence that says so.

    Where both have as many tokens: at those that differ, at the last one, or at both (as ``positions`` of 06 asks).
    Else only the last ones correspond.
    """
    last = [len(base) - 1], [len(donor) - 1]
    if len(base) != len(donor):
        return *last, f"Exchanged at the last token alone: the prompt has {len(base)} tokens, the donor {len(donor)}."
    differ = [i for i, (a, b) in enumerate(zip(base, donor, strict=True)) if a != b]
    if positions == "last":
        return *last, "Exchanged at the last token."
    if positions == "entity":
        return differ, differ, f"Exchanged at the {len(differ)} tokens that differ."
    both = sorted({*differ, *last[0]})
    return both, both, f"Exchanged at the tokens that differ ({len(differ)}) and at the last one."


class PromptExplorer:
    """Type a prompt and a donor, choose a layer and a subspace: what the model says as it is, and with the part kept,
    exchanged or steered along."""

    def __init__(self, asked: PromptBox) -> None:
        self.asked = asked
        late = {"continuous_update": False}
        (prompt, donor), drop = asked.example, widgets.Dropdown
        self.prompt = labelled(widgets.Text, "prompt", prompt, layout={"width": WIDE}, **late)
        self.donor = labelled(widgets.Text, "donor", donor, layout={"width": WIDE}, **late)
        self.layer = labelled(drop, "layer", options=range(asked.lm.cfg.n_layers), value=asked.layer)
        self.subspace = labelled(drop, "subspace", options=asked.subspaces, value=MINED_SUBSPACE)
        self.rank = labelled(drop, "rank", options=sorted(asked.p.ranks), value=judged_rank(asked.p))
        self.strength = labelled(widgets.FloatSlider, "steer ×", value=1, min=-4, max=8, step=0.5, **late)
        self.message = widgets.HTML()
        choices = widgets.HBox([self.layer, self.subspace, self.rank], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([self.prompt, self.donor, choices, self.strength, self.message])
        self.figure = LiveFigure()
        self.controls = (self.prompt, self.donor, self.layer, self.subspace, self.rank, self.strength)
        on_change(self.answer, *self.controls)

    def answer(self) -> None:
        """Answer what the controls ask, or say why not and leave the figure as it was."""
        prompt, donor, layer, subspace, rank, strength = (control.value for control in self.controls)
        try:
            answers = self.asked.ask(prompt, donor, layer, subspace, rank, strength)
        except ValueError as problem:
            self.message.value = f'<p role="alert"><b>{escape(str(problem))}</b></p>'
            return
        self.message.value = blocks().prompt_answers(answers)
        note = (
            f"Prompt “{prompt}”, donor “{donor}”; layer {layer}, subspace {subspace} at rank {rank}, "
            f"steered × {strength:g}. An example."
        )
        best = answers.table.loc[answers.table.groupby("run")["probability"].idxmax()].set_index("run")["token"]
        title = "Most likely next token: " + ", ".join(f"{run} “{best[run]}”" for run in RUNS)
        self.figure.draw(figures.next_tokens(answers.table), title, note)


def prompts(asked: PromptBox) -> PromptExplorer:
    """Ask the model of 06 prompts of one's own; see `PromptExplorer`."""
    explorer = PromptExplorer(asked)
    display(explorer.box)
    explorer.answer()
    return explorer
