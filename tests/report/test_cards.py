"""Feature cards: latents chosen by rule, read where they fire, text made safe; on an SAE whose latents are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rkcnn_lib.report.studies.cards import as_html, cards, choose
from rkcnn_lib.sae import SAE, SAEConfig

D = 4
WORDS = ["<script>alert(1)</script>", "red", "green", "blue"]  # token i writes direction i


class Store:
    """Two contexts of eight tokens, one document each; row = the unit vector of its token."""

    context_size = 8
    tokens = np.array([1, 2, 3, 0, 2, 2, 3, 1, 2, 3, 3, 2, 0, 3, 2, 2])
    document_ids = np.repeat([0, 1], 8)

    def rows(self, split):
        assert split == "heldout"
        return np.flatnonzero(np.arange(16) % 8 > 0)  # position 0 is left out, as in a real store

    def take(self, rows):
        return torch.eye(D)[torch.as_tensor(self.tokens[rows])]


@pytest.fixture
def sae():
    sae = SAE(SAEConfig(D, D, k=1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


LM = SimpleNamespace(W_U=torch.eye(D), tokenizer=SimpleNamespace(decode=lambda ids: WORDS[ids[0]]))


def test_a_latent_that_reads_one_token_is_shown_on_that_token(sae):
    (card,) = cards(sae, Store(), LM, [(0, "mined")])
    assert card.rate == 2 / 14 and card.largest == 1.0
    for _, tokens, values, counts in card.examples:
        assert tokens[counts] == WORDS[0]
        assert [token for token, value in zip(tokens, values, strict=True) if value > 0] == [WORDS[0]]
    assert {kind for kind, *_ in card.examples} == {"largest", "median"}
    assert card.raised[0] == WORDS[0]


def test_examples_of_a_kind_come_from_different_documents(sae):
    (card,) = cards(sae, Store(), LM, [(2, "mined")])
    largest = [tokens for kind, tokens, *_ in card.examples if kind == "largest"]
    assert len(largest) == 2  # two documents, though the latent fires on eight tokens


def test_text_from_data_is_escaped(sae):
    page = as_html(cards(sae, Store(), LM, [(0, "mined")])[0])
    assert "<script>" not in page and "&lt;script&gt;" in page and "<mark" in page


def test_latents_are_chosen_by_their_rates_and_dead_ones_never():
    rates = np.concatenate([np.linspace(0.01, 0.1, 10), np.zeros(5), np.linspace(0.5, 0.6, 5)])
    chosen = choose(rates, n_mined=12)
    assert [latent for latent, group in chosen if group == "mined"] == [2, 4, 6, 8]
    assert [latent for latent, group in chosen if group == "random fill"] == [16, 17, 18]
    assert choose(np.zeros(6), n_mined=3) == []


def test_a_dead_latent_gives_an_empty_card(sae):
    with torch.no_grad():
        sae.b_enc[1] = -10
    (card,) = cards(sae, Store(), LM, [(1, "mined")])
    assert card.rate == 0 and not card.examples and as_html(card)
