"""The glossary is one alphabetical list, linked once a page from where a term is first used, and nowhere in code."""

from __future__ import annotations

from bs4 import BeautifulSoup

from rkcnn_lib.pages.glossary import link_first_uses, terms


def linked(text):
    soup = BeautifulSoup(f'<section class="prose">{text}</section><p>a latent outside</p>', "html.parser")
    link_first_uses(soup)
    return soup


def test_terms_are_alphabetical_and_each_has_a_meaning_and_a_place_of_its_own():
    names = [term.name.lower() for term in terms()]
    assert names == sorted(names) and len({term.anchor for term in terms()}) == len(names) > 25
    assert all(term.meaning.endswith(".") and "`" not in term.meaning for term in terms())


def test_the_first_use_is_linked_with_its_meaning_and_later_ones_are_not():
    soup = linked("<p>Dead latents and a dead latent; Latents fire.</p><p>latent</p>")
    assert [link.get_text() for link in soup.select("a.term")] == ["Dead latents", "Latents"]
    assert soup.select_one("a.term")["href"] == "glossary.html#dead-latent" and soup.select_one("a.term")["title"]
    assert soup.get_text() == "Dead latents and a dead latent; Latents fire.latenta latent outside"


def test_code_links_headings_and_parts_of_words_stay_as_they_are():
    text = '<h2>SAE</h2><p><code>SAE</code> <a href="x">SAE</a> disarms alarms, multi-seed</p>'
    assert not linked(text).select("a.term")


def test_text_that_looks_like_markup_stays_text():
    soup = linked("<p>&lt;script&gt; of a latent</p>")
    assert "<script>" not in str(soup) and soup.select_one("a.term").get_text() == "latent"
