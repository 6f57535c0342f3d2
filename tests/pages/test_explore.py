"""Explorers: a typed prompt is answered as the planted model must, bad ones are refused in words, controls redraw."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from rkcnn_lib import figures
from rkcnn_lib.pages import explore
from rkcnn_lib.pages.explore import ABLATE, CLEAN, KEEP, STEER, PromptBox
from rkcnn_lib.studies.causal_subspaces import Subspace
from tests.measure.planted_reader import LABELS, PER_LABEL, D, PlantedReader
from tests.pages.pages import PLOTLY, WordTokenizer
from tests.pages.test_cards import planted_reader

ENTITIES = LABELS * PER_LABEL


class Tokenizer(WordTokenizer):
    """Entity i is the word e<i>, label i is <b>i (markup: it must be shown as text)."""

    def number(self, word):
        return int(word[1:]) if word[:1] == "e" and word[1:].isdigit() else self.unk_token_id

    def decode(self, ids):
        return f"e{ids[0]}" if ids[0] < ENTITIES else f"<b>{ids[0] - ENTITIES}"


@pytest.fixture
def asked():
    lm = PlantedReader(seed=0)
    lm.tokenizer, lm.cfg = Tokenizer(), SimpleNamespace(n_ctx=6, n_layers=1)
    bases = {"mined": lm.basis(0, 1), "decoy": lm.basis(2, 3)}
    measured = SimpleNamespace(
        subspaces={(name, 0): Subspace(name, 0, 1, lambda rank, A=A: A[:, :rank]) for name, A in bases.items()},
        ground=SimpleNamespace(donated=torch.zeros(1, 1, D)),
    )
    drawn = [(SimpleNamespace(text="e3 e4"), SimpleNamespace(text="e3 e5"))]  # labels 0 and 1
    p = SimpleNamespace(hook="resid_post", layer=0, positions="both", ranks=[1, 2])
    return PromptBox(lm, p, measured, SimpleNamespace(judged=SimpleNamespace(drawn=drawn)))


def answer(found, run):
    part = found.table[found.table["run"] == run]
    return part.loc[part["probability"].idxmax(), "token"]


def test_exchanging_what_is_read_turns_the_answer_and_keeping_it_keeps_it(asked):
    found = asked.ask(*asked.example, layer=0, subspace="mined", rank=2, strength=1.0)
    assert [answer(found, run) for run in (CLEAN, KEEP, ABLATE, STEER)] == ["<b>0", "<b>0", "<b>1", "<b>1"]
    assert (found.answer, found.foil) == ("<b>0", "<b>1")
    assert found.differences[CLEAN] > 0 > found.differences[ABLATE]
    assert found.differences[KEEP] == pytest.approx(found.differences[CLEAN], abs=1e-3)


def test_exchanging_what_is_not_read_changes_nothing(asked):
    found = asked.ask(*asked.example, layer=0, subspace="decoy", rank=2, strength=3.0)
    for run in (ABLATE, STEER):
        assert found.differences[run] == pytest.approx(found.differences[CLEAN], abs=1e-3)
    assert answer(found, KEEP) == "<b>1", "all that is read came from the donor"


def test_the_whole_activation_is_the_donor_and_strength_zero_is_the_model_itself(asked):
    found = asked.ask(*asked.example, layer=0, subspace=explore.WHOLE, rank=1, strength=0.0)
    assert found.differences[KEEP] == pytest.approx(found.differences[CLEAN], abs=1e-3)
    assert found.differences[STEER] == pytest.approx(found.differences[CLEAN], abs=1e-3)
    assert answer(found, ABLATE) == "<b>1"


@pytest.mark.parametrize(
    ("prompt", "donor", "told"),
    [("  ", "e1", "prompt is empty"), ("e1", "", "donor prompt is empty"), ("e1 what", "e2", "does not know: what"),
     ("e1 " * 7, "e2", "has 7 tokens; this model reads 6"), ("e1", " e1 ", "are the same")],
)  # fmt: skip
def test_prompts_that_cannot_be_used_are_refused_with_the_reason(asked, prompt, donor, told):
    with pytest.raises(ValueError, match=told):
        asked.ask(prompt, donor, layer=0, subspace="mined", rank=2, strength=1.0)


def test_prompts_of_unequal_length_are_exchanged_at_their_last_tokens_and_this_is_said(asked):
    found = asked.ask("e3 e4", "e9 e9 e5", layer=0, subspace="mined", rank=2, strength=1.0)
    assert "last token alone: the prompt has 2 tokens, the donor 3" in found.remarks[0]
    assert answer(found, ABLATE) == "<b>1"


def test_the_explorer_redraws_on_a_change_and_says_what_is_wrong_without_raising(asked, monkeypatch):
    drawn = []
    handle = SimpleNamespace(update=lambda data, raw, metadata=None: drawn.append(data))
    monkeypatch.setattr(explore, "display", lambda *a, **k: handle if k else None)
    explorer = explore.prompts(asked)
    assert "&lt;b&gt;0" in explorer.message.value and "<b>0" not in explorer.message.value
    explorer.subspace.value = "decoy"
    kinds = [sorted(data) for data in drawn]
    assert kinds == [["text/html"], ["text/html"], [PLOTLY, "text/plain"], ["text/html"]], (
        "another kind, title, figure, note"
    )
    assert "decoy" in drawn[-1]["text/html"]
    explorer.prompt.value = "nonsense"
    assert len(drawn) == 4 and "does not know: nonsense" in explorer.message.value


def test_the_browser_reaches_every_latent_by_number_step_and_token(monkeypatch):
    from rkcnn_lib.pages import book

    made = planted_reader(monkeypatch)
    cards = made.cards("rkcnn", 0, [0, 1, 2, 3])
    monkeypatch.setattr(explore, "display", lambda *_: None)
    browser = explore.latents(book.Book(book.as_record(cards, made), pd.DataFrame(), made))
    browser.latent.value = 2
    assert "rkcnn, seed 0, latent 2" in browser.card.value
    browser._step(2)
    assert browser.latent.value == 0, "after the last comes the first"
    browser.token.value = "green"
    assert "latent 2" in browser.card.value and "mean activation" in browser.message.value
    browser.seed.value = 1  # a SAE that has no cards yet: its latents are in reverse order
    assert "rkcnn, seed 1, latent 1" in browser.card.value
    browser.token.value = "blue"
    assert "not in this model" in browser.message.value
    browser.arm.value = "random"
    assert "random, seed 1" in browser.card.value


def test_the_figure_of_next_tokens_escapes():
    table = pd.DataFrame({"token": ["<b>x", "y"], "run": ["keep", "keep"], "probability": [0.2, 0.8]})
    fig = figures.next_tokens(table)
    assert "&lt;b&gt;x" in fig.data[0].text and "&lt;b&gt;x" in fig.layout.yaxis.ticktext


def test_the_latent_map_puts_those_that_never_fire_apart_and_links_every_point():
    table = pd.DataFrame(
        {"group": ["mined", "mined", "random"], "latent": [0, 1, 2], "rate": [0.0, 0.01, 0.2],
         "cosine": [1.0, 0.5, -0.1], "card": ["a-0", "a-1", "r-2"]}
    )  # fmt: skip
    fig = figures.latent_map(table)
    panels = {name: [c for t in fig.data if (t.xaxis or "x") == name for c in t.customdata] for name in ("x", "x2")}
    assert panels["x"] == ["a-0"] and sorted(panels["x2"]) == ["a-1", "r-2"]


def test_a_name_of_two_words_is_known_where_it_is_one_token():
    from rkcnn_lib.strings import one_token, token_text, unknown_words
    from rkcnn_lib.worlds import load_model

    lm = load_model("atlas", device="cpu")
    assert unknown_words(lm, "The Eiffel Tower is in blorft") == ["blorft"]
    assert token_text(lm, one_token(lm, "Eiffel Tower")) == "Eiffel Tower"
