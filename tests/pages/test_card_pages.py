"""Cards on a page, in Chromium: opened by points, bins, search and links, and whatever a token says is only text."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from rkcnn_lib import figures
from rkcnn_lib.pages import CARDS
from rkcnn_lib.pages.book import WORDS
from rkcnn_lib.pages.site import build_site
from rkcnn_lib.strings import readable
from tests.pages.pages import figure_output, open_page, read, until, write_run

HOSTILE = [
    "<script>window.hacked = true</script>",
    '"><img src=x onerror="window.hacked = true">',
    "\u202eright\u2066 to left",
    "y" * 10_000,
    "plain",
    "</script><b>out</b>",
]
PAGE = "04_sae_compare.html"
pytestmark = pytest.mark.browser


def card(arm, latent, group, rate=0.01, cosine=0.9):
    return {
        "id": f"{arm}-{latent}", "arm": arm, "seed": 0, "latent": latent, "group": group, "rate": rate,
        "largest": 4.0, "moved": [1.0, cosine], "raised": [[4, 0.5], [1, 0.25]], "lowered": [[2, -0.5]],
        "facts": [WORDS["alive" if rate else "died"], "Nearest: latent 7 (−0.25); chance 0.30."],
        "examples": [[100, 0, 6, 0, [0, 100, 1, 50]], [50, 0, 6, 3, [3, 40]]] if rate else [],
    }  # fmt: skip


RECORD = {
    "format": 2, "steps": [0, 160], "latents": {"rkcnn": 8, "random": 8}, "between": " ",
    "featured": ["rkcnn-5"], "words": WORDS, "vocabulary": [readable(text) for text in HOSTILE],
    "text": [0, 1, 2, 3, 4, 5],
    "cards": [card("rkcnn", 1, "mined", 0.0), card("rkcnn", 5, "random fill", 0.004, 0.21),
              card("random", 2, "random", 0.1)],
}  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("cards")
    rows = [{name: c[name] for name in ("group", "latent", "rate")} for c in RECORD["cards"]]
    table = pd.DataFrame(rows).assign(card=[c["id"] for c in RECORD["cards"]], cosine=[0.9, 0.21, 0.9])
    groups = {"mined": np.array([0.9, 0.1]), "random fill": np.array([0.21, 0.7])}
    drawn = [
        figures.density({"rkcnn": np.array([0.0, 0.004]), "kmeans": np.array([0.2, 0.004])}),
        figures.cosine_histograms({"step 0": {n: np.ones(2) for n in groups}, "step 160": groups}),
        figures.latent_map(table),
    ]
    fallback = "<p>A few cards.</p><script>window.hacked = true</script>"
    output = nbformat.v4.new_output("display_data", {CARDS: RECORD, "text/html": fallback, "text/plain": "[cards]"})
    cells = [nbformat.v4.new_code_cell("f", outputs=[figure_output(fig)]) for fig in drawn]
    cells.append(nbformat.v4.new_code_cell("c", outputs=[output]))
    run = write_run(root / "runs", "04_sae_compare", cells=cells)
    return build_site([run], root / "site").parent / PAGE


def opened(browser, page_file, anchor="", width=1280):
    class Anchored:
        def as_uri(self):
            return page_file.as_uri() + anchor

    return open_page(browser, Anchored(), width)


def click_point(page, number, trace, point):
    """Click where plotly drew a point of a figure's trace (1 from the top of the page)."""
    place = """([number, trace, point]) => {
        const plot = document.getElementById("plot-" + number), data = plot._fullData[trace];
        const box = plot.getBoundingClientRect();
        const layout = plot._fullLayout, axis = (name) => layout[name.replace(/^([xy])/, "$1axis")];
        const x = axis(data.xaxis), y = axis(data.yaxis);
        return [box.x + x._offset + x.d2p(data.x[point]), box.y + y._offset + y.d2p(data.y[point])]; }"""
    page.evaluate("n => document.getElementById('plot-' + n).scrollIntoView({block: 'center'})", number)
    page.wait_for_timeout(300)  # an opened card may still be scrolling the page
    x, y = page.evaluate(place, [number, trace, point])
    page.mouse.move(x, y - 1)
    until(page, "document.querySelector('.hoverlayer .hovertext')")
    page.mouse.click(x, y - 1)


def shown(page):
    return page.inner_text(".feature-cards .feature-card .card-title strong")


def trace_named(page, number, test):
    return page.evaluate(f"document.getElementById('plot-{number}')._fullData.findIndex(d => {test})")


def test_tokens_are_text_whatever_they_say(browser, page_file):
    page, complaints = opened(browser, page_file, "#card-rkcnn-5", width=390)
    tokens = page.eval_on_selector_all(".context .token", "all => all.map(one => one.textContent)")
    assert tokens[:6] == RECORD["vocabulary"] and tokens[:2] == HOSTILE[:2] and tokens[5] == HOSTILE[5]
    assert page.evaluate("document.querySelectorAll('.feature-cards :is(img, b, script:not(.card-data))').length") == 0
    assert not page.evaluate("window.hacked === true") and not complaints
    assert "(10,000 characters)" in tokens[3] and len(tokens[3]) < 100
    assert "\u202e" not in page.inner_text(".feature-cards") and "⟨U+202E⟩" in tokens[2]
    bidi = page.eval_on_selector_all(".feature-card .token", "all => all.map(one => getComputedStyle(one).unicodeBidi)")
    assert set(bidi) == {"isolate"}
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.context.close()


def test_a_link_opens_its_card_and_one_to_no_card_says_so(browser, page_file):
    page, _ = opened(browser, page_file, "#card-random-2")
    assert shown(page) == "random, seed 0, latent 2"
    until(page, "Math.abs(document.querySelector('.feature-cards').getBoundingClientRect().top) < 400")
    page.evaluate("location.hash = 'card-random-99'")
    until(page, "document.querySelector('.card-status').textContent.includes('no card “random-99”')")
    page.evaluate("location.hash = 'card-rkcnn-1'")
    until(page, "document.querySelector('.card-title').textContent.includes('latent 1')")
    text = page.inner_text(".feature-card")
    assert WORDS["died"] in text and WORDS["no contexts"] in text and "latent 7 (−0.25); chance 0.30" in text
    page.context.close()


def test_a_point_of_the_map_opens_its_card_and_changes_the_address(browser, page_file):
    page, complaints = opened(browser, page_file)
    assert shown(page) == "rkcnn, seed 0, latent 5", "the featured card comes first"
    for name, x in (("random", "x2"), ("mined", "x")):
        trace = trace_named(page, 3, f"d.name === '{name}' && d.xaxis === '{x}' && d.x.length")
        click_point(page, 3, trace, 0)
        arm = {"mined": "rkcnn"}.get(name, name)
        until(page, f"location.hash.startsWith('#card-{arm}')")
    assert shown(page) == "rkcnn, seed 0, latent 1"
    assert page.get_attribute(".card-status a", "href") == "#figure-3" and not complaints
    page.context.close()


def test_a_bin_of_a_histogram_lists_its_latents(browser, page_file):
    page, _ = opened(browser, page_file)
    trace = trace_named(page, 1, "d.meta && d.meta.rkcnn_bins === 'rate' && d.meta.arm === 'rkcnn'")
    point = page.evaluate(f"[...document.getElementById('plot-1')._fullData[{trace}].y].findIndex(y => y > 0)")
    click_point(page, 1, trace, point)
    until(page, "document.querySelector('.card-status').textContent.startsWith('1 latents of rkcnn')")
    assert page.locator(".card-list button").all_inner_texts() == ["rkcnn 5"]
    page.locator("#figure-2 input[type=range]").fill("1")
    trace = trace_named(page, 2, "d.meta && d.meta.group === 'random fill'")
    until(page, f"document.getElementById('plot-2')._fullData[{trace}].y[48] > 0")  # the bin from 0.2
    click_point(page, 2, trace, 48)
    until(page, "document.querySelector('.card-status').textContent.includes('at step 160')")
    assert page.locator(".card-list button").all_inner_texts() == ["rkcnn 5"]
    page.context.close()


def test_search_and_steps_work_from_the_keyboard_and_are_announced(browser, page_file):
    page, complaints = opened(browser, page_file)
    field = page.get_by_label("Latent or token")
    field.fill("1")
    field.press("Enter")
    assert shown(page) == "rkcnn, seed 0, latent 1" and page.url.endswith("#card-rkcnn-1")
    field.fill("4")
    field.press("Enter")
    assert "Latent 4 of rkcnn has no card" in page.inner_text(".card-status[aria-live=polite]")
    field.fill("PLAIN")
    field.press("Enter")
    assert "2 latents of rkcnn" in page.inner_text(".card-status")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert shown(page) == "rkcnn, seed 0, latent 5"
    page.get_by_role("button", name="Next").press("Enter")
    assert shown(page) == "rkcnn, seed 0, latent 1", "after the last comes the first"
    page.get_by_label("Start").select_option("random")
    assert shown(page) == "random, seed 0, latent 2" and not complaints
    page.context.close()


def test_without_a_script_a_few_cards_are_shown_and_their_scripts_are_not(page_file):
    page = read(page_file)
    fallback = page.select_one(".feature-cards .card-fallback")
    assert fallback.get_text() == "A few cards." and not fallback.find("script")
    assert page.find("script", src="assets/cards.js")
    assert "</script><b>" not in page_file.read_text(encoding="utf-8")
