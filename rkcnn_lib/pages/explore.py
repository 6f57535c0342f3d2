"""Live exploration in JupyterLab (ipywidgets); every widget has a native figure beside it that pages can show."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import display

from rkcnn_lib import figures
from rkcnn_lib.figures.display import bundle, note_html
from rkcnn_lib.measure import matched_cosine
from rkcnn_lib.pages import prompt_box
from rkcnn_lib.pages.cards.book import SEED, Book, as_record, card_html
from rkcnn_lib.pages.prompt_box import PromptBox
from rkcnn_lib.runs.run import Run
from rkcnn_lib.studies.causal import judged_rank
from rkcnn_lib.studies.causal_subspaces import MINED as MINED_SUBSPACE
from rkcnn_lib.studies.cells import MINED
from rkcnn_lib.studies.planes import Planes, mine_plane, states
from rkcnn_lib.studies.tokens import one_token, readable

WIDE = widgets.Layout(width="min(100%, 44rem)")
LABELLED = {"description_width": "6rem"}


class LiveFigure:
    """A figure that is replaced in place.

    An Output widget would do the same, but running headlessly it now and then never lets its cell end: the client
    answers it while the kernel is busy.
    """

    def __init__(self) -> None:
        self.figure: Any = None
        self.note: Any = None

    def draw(self, fig: go.Figure, note: str) -> None:
        """Show a figure and its note where the first ones were shown, which must be from the cell itself."""
        said = {"text/html": note_html(note)}
        if self.figure is None:
            self.figure = display(bundle(fig), raw=True, display_id=True)
            self.note = display(said, raw=True, display_id=True)
            return
        # JupyterLab's renderer of plotly keeps the figure it has; another kind of output in between makes it let go.
        self.figure.update({"text/html": f'<div style="height: {fig.layout.height}px"></div>'}, raw=True)
        self.figure.update(bundle(fig), raw=True)
        self.note.update(said, raw=True)


def toy_plane(planes: Planes, run: Run) -> None:
    """Choose how often features are active, one of the trained 5 -> 2 models and a miner; see what it finds.

    The models are those already trained; mining a plane takes well under a second.
    """
    probabilities = planes.table["probability"].drop_duplicates().tolist()
    n_instances = int(planes.table["instance"].max()) + 1
    probability = widgets.SelectionSlider(
        options=probabilities, value=probabilities[-1], description="p(active)", continuous_update=False
    )
    instance = widgets.IntSlider(0, 0, n_instances - 1, description="model", continuous_update=False)
    miner = widgets.Dropdown(options=run.p.miners, value="rkcnn_lift", description="miner")

    shown = LiveFigure()

    def draw() -> None:
        X, truth = states(planes, probability.value, instance.value)
        D = mine_plane(X, run.p, miner.value)
        met = f"{matched_cosine(D, truth):.3f}" if len(truth) else "undefined"
        title = f"{miner.value}: {len(D)} directions for {len(truth)} features, matched cosine {met}"
        note = f"One 5 -> 2 model, features active with probability {probability.value:g}; grey: true, orange: mined."
        shown.draw(figures.mined_slider({"mined": (np.asarray(truth), np.asarray(D))}, title=title), note)

    display(widgets.HBox([probability, instance, miner]))
    draw()
    for control in (probability, instance, miner):
        control.observe(lambda change: draw(), names="value")


class LatentBrowser:
    """Any latent of any arm and seed as a card: by number, step by step, or among those that fire on a token.

    What the notebook has read already is drawn from its cards; another SAE is read once, in a few seconds.
    """

    def __init__(self, book: Book) -> None:
        self.reader, self.book = book.reader, book
        self.known = {(c["arm"], c["seed"], c["latent"]): c for c in book.record["cards"]}
        units = book.reader.compared.units
        arms, seeds = list(dict.fromkeys(arm for arm, _ in units)), sorted({seed for _, seed in units})
        first = self._first_card()
        self.arm = widgets.Dropdown(options=arms, value=MINED, description="start", style=LABELLED)
        self.seed = widgets.Dropdown(options=seeds, value=SEED, description="seed", style=LABELLED)
        self.latent = widgets.BoundedIntText(first, 0, self._count() - 1, description="latent", style=LABELLED)
        self.token = widgets.Text(
            description="fires on", placeholder="a token, then Enter", continuous_update=False, style=LABELLED
        )
        self.found = widgets.Select(options=[], rows=6, description="most active", style=LABELLED, layout=WIDE)
        self.said, self.card = widgets.HTML(), widgets.HTML(layout=widgets.Layout(max_width="60rem"))
        back, onward = (widgets.Button(description=text) for text in ("← previous", "next →"))
        back.on_click(lambda _: self._step(-1))
        onward.on_click(lambda _: self._step(1))
        for control in (self.arm, self.seed):
            control.observe(lambda change: self._another_sae(), names="value")
        self.latent.observe(lambda change: self._draw(), names="value")
        self.token.observe(lambda change: self._search(), names="value")
        self.found.observe(lambda change: self._choose(change["new"]), names="value")
        self.found.layout.display = "none"
        rows = [widgets.HBox([self.arm, self.seed]), widgets.HBox([self.latent, back, onward]), self.token]
        self.box = widgets.VBox([*rows, self.said, self.found, self.card])
        self._draw()

    def _first_card(self) -> int:
        listed = [c["latent"] for c in self.book.record["cards"] if c["id"] in self.book.record["featured"]]
        return listed[0] if listed else 0

    def _count(self) -> int:
        return len(self.reader.rates(self.arm.value, self.seed.value))

    def _draw(self) -> None:
        key = self.arm.value, self.seed.value, self.latent.value
        if key in self.known:
            self.card.value = card_html(self.book.record, self.known[key])
        else:
            record = as_record(self.reader.cards(*key[:2], [key[2]]), self.reader)
            self.card.value = card_html(record, record["cards"][0])

    def _another_sae(self) -> None:
        self.latent.max = self._count() - 1
        self._draw()
        if self.token.value:
            self._search()

    def _step(self, by: int) -> None:
        self.latent.value = (self.latent.value + by) % self._count()

    def _search(self) -> None:
        self.found.layout.display = "none"
        try:
            token = one_token(self.reader.lm, self.token.value)
        except ValueError as problem:
            self.said.value = f"<p>{html.escape(str(problem))}</p>"
            return
        active = self.reader.firing_on(self.arm.value, self.seed.value, token)
        word = html.escape(readable(self.token.value.strip()))
        told = "mean activation on it, most active first" if active else "nothing fires on it, or the text lacks it"
        self.said.value = f"<p>“{word}” in the held-out text: {told}.</p>"
        if active:
            self.found.options = [(f"latent {latent}: {mean:.3g}", latent) for latent, mean in active]
            self.found.layout.display = None
            self._choose(active[0][0])

    def _choose(self, latent: int | None) -> None:
        if latent is not None:
            self.latent.value = latent


def latents(book: Book) -> LatentBrowser:
    """Browse the latents of a comparison; see `LatentBrowser`."""
    browser = LatentBrowser(book)
    display(browser.box)
    return browser


class PromptExplorer:
    """Type a prompt and a donor, choose a layer and a subspace: what the model says as it is, and with the part kept,
    exchanged or steered along."""

    def __init__(self, asked: PromptBox) -> None:
        self.asked = asked
        prompt, donor = asked.example
        text = {"continuous_update": False, "style": LABELLED, "layout": WIDE}
        self.prompt = widgets.Text(prompt, description="prompt", **text)
        self.donor = widgets.Text(donor, description="donor", **text)
        layers, ranks = range(asked.n_layers), sorted(asked.p.ranks)
        self.layer = widgets.Dropdown(options=layers, value=asked.layer, description="layer", style=LABELLED)
        self.subspace = widgets.Dropdown(
            options=asked.subspaces, value=MINED_SUBSPACE, description="subspace", style=LABELLED
        )
        self.rank = widgets.Dropdown(options=ranks, value=judged_rank(asked.p), description="rank", style=LABELLED)
        self.strength = widgets.FloatSlider(
            value=1, min=-4, max=8, step=0.5, description="steer ×", continuous_update=False, style=LABELLED
        )
        self.said = widgets.HTML()
        choices = widgets.HBox([self.layer, self.subspace, self.rank], layout=widgets.Layout(flex_flow="row wrap"))
        self.box = widgets.VBox([self.prompt, self.donor, choices, self.strength, self.said])
        self.figure = LiveFigure()
        for control in (self.prompt, self.donor, self.layer, self.subspace, self.rank, self.strength):
            control.observe(lambda change: self.answer(), names="value")

    def answer(self) -> None:
        """Answer what the controls ask, or say why not and leave the figure as it was."""
        try:
            found = self.asked.ask(
                self.prompt.value, self.donor.value, self.layer.value, self.subspace.value, self.rank.value,
                self.strength.value,
            )  # fmt: skip
        except ValueError as problem:
            self.said.value = f'<p role="alert"><b>{html.escape(str(problem))}</b></p>'
            return
        self.said.value = prompt_box.as_html(found)
        note = (
            f"Prompt “{self.prompt.value}”, donor “{self.donor.value}”; layer {self.layer.value}, subspace "
            f"{self.subspace.value} at rank {self.rank.value}, steered × {self.strength.value:g}. An example."
        )
        self.figure.draw(figures.next_tokens(found.table, title=prompt_box.title(found)), note)


def prompts(asked: PromptBox) -> PromptExplorer:
    """Ask the model of 06 prompts of one's own; see `PromptExplorer`."""
    explorer = PromptExplorer(asked)
    display(explorer.box)
    explorer.answer()
    return explorer
