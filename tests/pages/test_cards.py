"""Feature cards: what they say is what was measured, they bound their number by rule, and no text in them acts."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rkcnn_lib.pages import book
from rkcnn_lib.pages import latents as reader
from rkcnn_lib.pages.book import card_html
from rkcnn_lib.runs.units import Unit
from rkcnn_lib.sae import SAE, SAEConfig
from rkcnn_lib.strings import LONGEST, one_token, readable, unknown_words
from tests.pages.pages import WordTokenizer

D = 4
WORDS = ["<script>alert(1)</script>", "red", "green", "\u202e" + "x" * 10_000]  # token i writes direction i


class Store:
    """Two contexts of eight tokens, one document each; row = the unit vector of its token, doubled in document 1."""

    context_size, d_in = 8, D
    tokens = np.array([1, 2, 3, 0, 2, 2, 3, 1, 2, 3, 3, 2, 0, 3, 2, 2])
    document_ids = np.repeat([0, 1], 8)

    def rows(self, split, seed=0):
        return np.flatnonzero(np.arange(16) % 8 > 0)  # position 0 is left out, as in a real store

    def take(self, rows):
        return (
            torch.eye(D)[torch.as_tensor(self.tokens[rows])] * (1 + torch.as_tensor(self.document_ids[rows]))[:, None]
        )

    def matrix(self, split, seed=0, n_rows=None):
        return self.take(self.rows(split)[:n_rows])


class Tokenizer(WordTokenizer):
    def number(self, word):
        return WORDS.index(word) if word in ("red", "green") else self.unk_token_id

    def decode(self, ids):
        return WORDS[ids[0]]


LM = SimpleNamespace(W_U=torch.eye(D), tokenizer=Tokenizer())


def planted_reader(monkeypatch, silent=()):
    """Two seeds of each arm whose latent i reads and writes token i; seed 1 has them in reverse order."""
    saes = {}
    for arm in book.ARMS:
        for seed in (0, 1):
            sae = SAE(SAEConfig(D, D, k=1))
            with torch.no_grad():
                for weight in (sae.W_enc, sae.W_dec):
                    weight.copy_(torch.eye(D) if seed == 0 else torch.eye(D).flip(0))
                sae.W_enc.copy_(sae.W_dec.T)
                sae.b_enc.fill_(0.0)
                sae.b_dec.zero_()
                sae.b_enc[list(silent)] = -10
            saes[arm, seed] = sae
    rates = torch.full((D,), 0.25)
    rates[list(silent)] = 0
    turned = torch.eye(D) * 0.8 + torch.eye(D).roll(1, 1) * 0.6
    before = torch.tensor([0.5, 0.0, 0.5, 0.0])
    arrays = {
        "density": rates,
        "density_start": before,
        "W_dec_start": turned,
        "W_dec_step_0": turned,
        "W_dec_step_5": torch.eye(D),
    }
    units = {cell: Unit(scalars={"n_mined": 2 * (cell[0] == book.MINED)}, arrays=arrays) for cell in saes}
    monkeypatch.setattr(reader, "model_of", lambda *_: LM)
    monkeypatch.setattr(reader, "spread_of", lambda store: np.eye(D))
    monkeypatch.setattr(reader, "mined_unit", lambda *_: Unit(arrays={"directions": torch.eye(D)[[1, 3]]}))
    run = SimpleNamespace(p=SimpleNamespace(model="atlas", revision=None, heldout_rows=10, n_cards=8), device="cpu")
    made = reader.Reader(SimpleNamespace(units=units), Store(), run)
    made.saes = lambda arm, seed: saes[arm, seed]
    return made


def test_a_latent_that_reads_one_token_is_shown_on_that_token(monkeypatch):
    (card,) = planted_reader(monkeypatch).cards("random", 0, [0])
    assert card.largest == 2.0 and len(card.contexts) == 2
    for context in card.contexts:
        assert Store.tokens[context.rows[context.peak]] == 0
        assert set(Store.tokens[context.rows[context.values > 0]]) == {0}
    assert card.raised[0] == (0, 1.0)


def test_contexts_of_a_card_come_from_different_documents_and_go_down_the_quantiles():
    documents = np.repeat(np.arange(100), 10)
    values = np.linspace(0.001, 1, 1000)
    found = reader.contexts(values, np.arange(1000), documents, size=10)
    assert len({documents[c.rows[0]] for c in found}) == len(found) == len(reader.QUANTILES)
    quantiles = [c.quantile for c in found]
    assert quantiles == sorted(quantiles, reverse=True) and quantiles[0] == 1 and quantiles[-1] < 0.12
    assert all(np.allclose(c.values[c.peak], values[c.rows[c.peak]]) for c in found)


def test_relatives_and_movement_are_signed_cosines_of_what_was_planted(monkeypatch):
    made = planted_reader(monkeypatch)
    (card,) = made.cards("random", 0, [3])
    assert card.near == [(1, 0, 1.0)]  # the other seed has the same latents in reverse order
    assert card.mined == (1, 1.0)  # directions 1 and 3 were mined
    assert card.moved == pytest.approx([1.0, 0.8])
    (turned,) = made.cards("random", 0, [0])
    assert turned.mined[1] == 0.0


def test_a_latent_is_said_to_have_died_only_if_it_fired_before(monkeypatch):
    made = planted_reader(monkeypatch, silent=(0, 1))
    assert [book.life(card) for card in made.cards("random", 0, [0, 1, 2, 3])] == ["died", "dead", "alive", "revived"]


def test_facts_say_in_words_what_was_measured_beside_its_chance_level(monkeypatch):
    made = planted_reader(monkeypatch)
    (card,) = made.cards("random", 0, [3])
    fires, moved, near, mined = book.as_record([card], made)["cards"][0]["facts"]
    assert fires.startswith("Fires on 25 % of 10 held-out tokens; before training on none. Revived")
    assert moved == "Cosine of its decoder row with its start: 1.00 (step 0), 0.80 (step 5)."
    assert re.fullmatch(
        r"Nearest live latents .*: seed 1: latent 0 \(\+1.00\); chance 0.\d\d, 95 % point \d.\d\d.", near
    )
    assert re.fullmatch(r"Nearest mined direction: number 1 \(\+1.00; chance 0.\d\d, 95 % point \d.\d\d\).", mined)


def test_a_search_by_token_finds_the_latent_that_reads_it(monkeypatch):
    made = planted_reader(monkeypatch)
    assert [latent for latent, _ in made.firing_on("random", 0, 2)] == [2]
    assert made.firing_on("random", 0, 77) == []


def test_the_number_of_cards_is_bounded_and_they_span_the_firing_rates_of_both_groups():
    rates = np.linspace(0, 1, 400)
    chosen = book.choose(rates, n_mined=100, n_cards=40)
    assert len(chosen) == 40 and sum(latent < 100 for latent in chosen) == 10
    assert {0, 99, 100, 399} <= set(chosen)
    assert book.choose(rates, n_mined=100, n_cards=1000) == list(range(400))
    assert book.choose(rates, n_mined=0, n_cards=4) == [0, 133, 266, 399]


def test_the_record_is_json_that_holds_each_text_once_and_reads_back_as_it_was(monkeypatch):
    made = planted_reader(monkeypatch)
    cards = made.cards("rkcnn", 0, [0, 1, 2, 3])
    record = json.loads(json.dumps(book.as_record(cards, made)))
    assert [c["id"] for c in record["cards"]] == [f"rkcnn-{i}" for i in range(4)]
    assert [c["group"] for c in record["cards"]] == ["mined", "mined", "fill", "fill"]
    assert len(set(record["vocabulary"])) == len(record["vocabulary"]) == D
    for card, told in zip(cards, record["cards"], strict=True):
        for context, (_, start, length, peak, active) in zip(card.contexts, told["examples"], strict=True):
            shown = [record["vocabulary"][i] for i in record["text"][start : start + length]]
            assert shown == [readable(WORDS[token]) for token in Store.tokens[context.rows]]
            assert peak == context.peak and active[::2] == np.flatnonzero(context.values).tolist()


def test_text_from_data_is_escaped_and_nothing_in_it_acts(monkeypatch):
    made = planted_reader(monkeypatch)
    record = book.as_record(made.cards("rkcnn", 0, [0, 3]), made)
    page = "".join(card_html(record, card) for card in record["cards"])
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "\u202e" not in page and "⟨U+202E⟩" in page and "(10,001 characters)" in page
    assert "x" * (LONGEST + 1) not in page


def test_controls_and_direction_marks_become_visible():
    assert readable("a\u202eb\x07c\nd\u200be") == "a⟨U+202E⟩b⟨U+0007⟩c↵d⟨U+200B⟩e"
    assert readable("naïve שלום 你好") == "naïve שלום 你好"


def test_a_dead_latent_gives_a_card_without_contexts(monkeypatch):
    made = planted_reader(monkeypatch, silent=(1,))
    (card,) = made.cards("rkcnn", 0, [1])
    record = book.as_record([card], made)
    assert not card.contexts and record["words"]["no contexts"] in card_html(record, record["cards"][0])


def test_words_that_are_no_token_are_refused_with_the_reason():
    assert one_token(LM, " red ") == 1 and unknown_words(LM, "red blue green") == ["blue"]
    for text, told in (("blue", "not in this model's vocabulary"), ("", "Type a word"), ("red green", "2 tokens")):
        with pytest.raises(ValueError, match=told):
            one_token(LM, text)
    with pytest.raises(ValueError, match="no tokens"):
        one_token(None, "red")


def test_latents_of_rows_that_are_no_tokens_have_cards_without_text(monkeypatch):
    made = planted_reader(monkeypatch)
    made.lm = None
    record = json.loads(json.dumps(book.as_record(made.cards("rkcnn", 0, [0]), made)))
    (card,) = record["cards"]
    assert card["examples"] == card["raised"] == []
    assert [line.split(":")[0] for line in card["facts"][2:]] == [
        "Nearest live latents of other seeds", "Nearest mined direction"
    ]  # fmt: skip
    assert book.NO_TOKENS in card_html(record, card)
