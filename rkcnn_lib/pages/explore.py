"""Live exploration in JupyterLab (ipywidgets); every widget has a native figure beside it that pages can show."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import display

from rkcnn_lib import figures
from rkcnn_lib.figures.display import TITLE, bundle, note_html, title_html
from rkcnn_lib.measure import matched_cosine
from rkcnn_lib.pages import blocks, prompt_box
from rkcnn_lib.pages.book import SEED, Book, as_record, card_html
from rkcnn_lib.pages.prompt_box import PromptBox
from rkcnn_lib.runs.run import Run
from rkcnn_lib.strings import one_token, readable
from rkcnn_lib.studies.causal import judged_rank
from rkcnn_lib.studies.causal_subspaces import MINED as MINED_SUBSPACE
from rkcnn_lib.studies.planes import Planes, mine_plane, states
from rkcnn_lib.vocabulary import MINED

WIDE = widgets.Layout(width="min(100%, 44rem)")


def labelled(kind: type, label: str, *args: Any, **options: Any) -> Any:
    """Return a control whose label has as much room as the others'."""
    return kind(*args, description=label, style={"description_width": "6rem"}, **options)


def on_change(call: Callable[[], None], *controls: Any) -> None:
    """Call once a control has another value."""
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
        self.active = labelled(widgets.Select, "most active", options=[], rows=6, layout=WIDE)
        self.message, self.card = widgets.HTML(), widgets.HTML(layout=widgets.Layout(max_width="60rem"))
        back, onward = (widgets.Button(description=text) for text in ("← previous", "next →"))
        back.on_click(lambda _: self._step(-1))
        onward.on_click(lambda _: self._step(1))
        on_change(self._another_sae, self.arm, self.seed)
        on_change(self._draw, self.latent)
        on_change(self._search, self.token)
        on_change(self._choose, self.active)
        self.active.layout.display = "none"
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


class PromptExplorer:
    """Type a prompt and a donor, choose a layer and a subspace: what the model says as it is, and with the part kept,
    exchanged or steered along."""

    def __init__(self, asked: PromptBox) -> None:
        self.asked = asked
        late = {"continuous_update": False}
        (prompt, donor), drop = asked.example, widgets.Dropdown
        self.prompt = labelled(widgets.Text, "prompt", prompt, layout=WIDE, **late)
        self.donor = labelled(widgets.Text, "donor", donor, layout=WIDE, **late)
        self.layer = labelled(drop, "layer", options=range(asked.n_layers), value=asked.layer)
        self.subspace = labelled(drop, "subspace", options=asked.subspaces, value=MINED_SUBSPACE)
        self.rank = labelled(drop, "rank", options=sorted(asked.p.ranks), value=judged_rank(asked.p))
        self.strength = labelled(widgets.FloatSlider, "steer ×", value=1, min=-4, max=8, step=0.5, **late)
        self.message = widgets.HTML()
        choices = widgets.HBox([self.layer, self.subspace, self.rank], layout=widgets.Layout(flex_flow="row wrap"))
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
        self.figure.draw(figures.next_tokens(answers.table), prompt_box.title(answers), note)


def prompts(asked: PromptBox) -> PromptExplorer:
    """Ask the model of 06 prompts of one's own; see `PromptExplorer`."""
    explorer = PromptExplorer(asked)
    display(explorer.box)
    explorer.answer()
    return explorer
