"""Whatever a token, a parameter or a name holds is shown as text: it runs, reorders and stretches nothing."""

from __future__ import annotations

import json

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup

from rkcnn_lib import figures, strings
from rkcnn_lib.pages import glossary, render, site
from rkcnn_lib.strings import cut, fit_figure, visible
from tests.pages.pages import PLOTLY, VERDICT, dot_figure, open_page, read, write_run

SCRIPT = "<script>window.hacked = 1</script>"
IMAGE = '"><img src=x onerror="window.hacked = 2">'
TURNED = "\u202e1000.0 \u2066x\u200f"
LONG = "token" * 2000
LINK = '<i>x</i><a href="//a.b">y</a>'  # tags that plotly's own labels would obey
HOSTILE = [SCRIPT, IMAGE, TURNED, LONG, LINK]
ALL = " ".join(HOSTILE)
MARKS = [chr(code) for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]


def test_marks_that_turn_text_are_spelled_out():
    assert visible("a\u202eb\x00\ud800") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩"
    assert visible("שלום, 日本語 😀\tand\nmore") == "שלום, 日本語 😀\tand\nmore", "text in any script stays"


def test_long_strings_are_cut_between_entities_and_say_how_long_they_were():
    assert cut("short", 10) == "short"
    said = cut("x" * 50 + "&lt;" * 400, 80)
    assert "(1,650 characters)" in said and len(said) < 110
    assert said.replace("&lt;", "").replace("x", "").strip() == "…  (1,650 characters)", said
    spec = {"data": [{"name": LONG, "text": [LONG, 3], "x": {"bdata": "A" * 9000, "dtype": "f4"}}], "layout": {}}
    fitted = fit_figure(spec)["data"][0]
    assert len(fitted["name"]) < 120 and len(fitted["text"][0]) < 700 and fitted["text"][1] == 3
    assert fitted["x"]["bdata"] == "A" * 9000 and spec["data"][0]["name"] == LONG


def hostile_figure():
    rows = [
        {"arm": arm, "seed": seed, "metric": metric, "value": 0.5}
        for arm in HOSTILE for seed in ("0", ALL) for metric in HOSTILE
    ]  # fmt: skip
    return figures.arm_metrics(pd.DataFrame(rows))


def hostile_run(root):
    v4 = nbformat.v4
    table = pd.DataFrame({ALL: HOSTILE}, index=pd.Index(HOSTILE, name=IMAGE))
    outputs = [
        v4.new_output("display_data", {"text/html": table.to_html()}),
        v4.new_output("display_data", {"text/html": f"<p>{SCRIPT}{IMAGE}</p>{table.to_html(escape=False)}"}),
        v4.new_output("display_data", {"text/markdown": ALL}),
        v4.new_output("display_data", {"text/plain": ALL}),
        v4.new_output("stream", text=ALL),
        v4.new_output("error", ename=IMAGE, evalue=SCRIPT, traceback=[ALL]),
    ]
    raw = go.Figure(
        go.Scatter(x=[1, 2], y=[1, 2], text=HOSTILE[:2], name=SCRIPT + IMAGE, hovertemplate=IMAGE + "%{text}")
    )
    slider = figures.toy_directions({name: [[1.0, 0.0]] for name in HOSTILE})
    check = dict.fromkeys(("name", "value", "requirement", "chance"), ALL) | {"passed": True}
    run = write_run(
        root, "04_sae_compare", figs=[hostile_figure(), slider, raw], figure_title=ALL,
        cells=[v4.new_code_cell(ALL, outputs=outputs), v4.new_markdown_cell("## " + ALL)],
        title=ALL, question=ALL, headline=ALL, parameters={ALL: ALL, "layer": IMAGE, "hook": SCRIPT}, seeds=[ALL],
        gate={"verdict": IMAGE, "checks": [check]},
        verdicts=[dict.fromkeys(VERDICT, ALL)], model={"name": ALL}, data={ALL: ALL}, earlier_gates={ALL: IMAGE},
        provenance={"device": ALL, "packages": {IMAGE: SCRIPT}, "git_commit": IMAGE}, started=IMAGE, profile=IMAGE,
        variant=SCRIPT, key=IMAGE,
    )  # fmt: skip
    rows = [
        {"arm": arm, "seed": seed, "metric": "explained_variance", "value": 0.5} for arm in HOSTILE for seed in (0, 1)
    ]
    pd.DataFrame(rows).to_parquet(run / "metrics.parquet")
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    return site.build_site([hostile_run(root / "runs")], root / "site", title=ALL).parent


def files(folder):
    return sorted(folder.glob("*.html"))


def faults(folder):
    """What a page must not hold, found in the pages of a folder."""
    found = []
    for file in files(folder):
        text, page = file.read_text(encoding="utf-8"), read(file)
        found += [repr(mark) for mark in MARKS if mark in text or json.dumps(mark)[1:-1] in text]
        found += [f"<{tag.name} {name}>" for tag in page.find_all(True) for name in tag.attrs if name.startswith("on")]
        found += [str(s) for s in page.find_all("script") if not s.get("src") and s.get("type") != "application/json"]
        if file.name != glossary.PAGE:  # it holds nothing from a run
            found += [part for part in ("window.hacked = 1", "⟨U+202E⟩") if part not in page.get_text()]  # dropped
    return found


def test_no_page_holds_a_foreign_element_or_a_turning_mark(pages):
    assert faults(pages) == []


@pytest.mark.parametrize("guard", ["visible", "safe_html", "templates"])
def test_without_any_one_guard_the_check_above_fails(tmp_path, monkeypatch, guard):
    if guard == "visible":
        for module in (site, strings):
            monkeypatch.setattr(module, "visible", lambda text: text.encode("utf-8", "replace").decode())
    elif guard == "safe_html":
        monkeypatch.setattr(render, "safe_html", lambda text, flags: text)
    else:
        made = site.environment()
        made.autoescape = False
        monkeypatch.setattr(site, "environment", lambda: made)
    assert faults(site.build_site([hostile_run(tmp_path / "runs")], tmp_path / "site", title=ALL).parent)


GOOD = ["http://a.b", "HTTPS://a.b/c?d=1:2#e", "mailto:a@b.c", "#here", "notes.html", "a/b.html#c:d", "?q=1:2"]
BAD = [
    "javascript:x", "da\tta:text/html,x", "da\nta:text/html,x", "\x01data:x", " \x00java\rscript:x", "da&Tab;ta:x",
    "vbscript:x", "file:///etc/x", "ftp://a.b", "\u2028data:x", "//a.b", "\\\\a.b", "/\\a.b", "\t//a.b", "x:y",
]  # fmt: skip


def test_links_lead_to_http_mail_a_place_of_the_page_or_a_file_beside_it_and_nowhere_else():
    def links(href):
        return BeautifulSoup(render.safe_html(f'<a href="{href}">x</a>', []), "html.parser").find_all("a", href=True)

    assert [href for href in GOOD if not links(href)] == [] and [href for href in BAD if links(href)] == []


@pytest.mark.browser
def test_a_menu_calls_no_function_of_plotly_but_those_of_menus(browser, tmp_path):
    methods = ["restyle", "purge", "newPlot", "downloadImage", "toString", "__proto__", "skip"]
    spec = json.loads(dot_figure().to_json())
    spec["layout"]["updatemenus"][0]["buttons"] = [
        {"method": method, "args": [{"name": "of a menu"}], "label": method} for method in methods
    ]
    output = nbformat.v4.new_output("display_data", {PLOTLY: spec})
    run = write_run(tmp_path / "runs", cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    page, complaints = open_page(
        browser, site.build_site([run], tmp_path / "site").with_name(f"{run.parent.name}.html")
    )
    shown = "JSON.stringify((document.querySelector('#plot-1').data || []).map(trace => trace.name))"
    for i, method in list(enumerate(methods))[::-1]:  # the allowed one last
        before = page.evaluate(shown)
        page.select_option("#figure-1 select", index=i)
        page.wait_for_timeout(50)
        assert (page.evaluate(shown) == before) is (method != "restyle") and not complaints, (method, complaints)
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_strings_are_text_in_a_browser(browser, pages, width):
    for file in files(pages):
        page, complaints = open_page(browser, file, width)
        page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        for point in page.query_selector_all(".plot .point")[:6]:
            point.hover(force=True)
        page.wait_for_timeout(200)
        assert not page.evaluate("window.hacked"), file.name
        assert not page.evaluate("document.querySelectorAll('img[src=x], [onerror]').length"), file.name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            f"{file.name} scrolls sideways"
        )
        if file.name != glossary.PAGE:  # it holds nothing from a run
            assert "<script>window.hacked" in page.inner_text("body")
        assert not complaints, complaints
        page.context.close()


@pytest.mark.browser
def test_arms_in_figures_tables_and_menus_are_literal(browser, pages):
    page, complaints = open_page(browser, next(pages.glob("04_*.html")))
    ticks = page.evaluate("[...document.querySelectorAll('#plot-1 .ytick text')].map(t => t.textContent)")
    assert SCRIPT in ticks and IMAGE in ticks and LINK in ticks and any("(10,000 characters)" in tick for tick in ticks)
    options = page.evaluate("[...document.querySelectorAll('#figure-1 option')].map(o => o.textContent)")
    assert SCRIPT in options and IMAGE in options and LINK in options
    assert not page.evaluate("document.querySelectorAll('#plot-1 svg a, #plot-2 svg a').length")
    assert page.evaluate("document.querySelector('#plot-1 .main-svg').getBoundingClientRect().width <= 1000")
    page.click("#figure-1 .figure-data summary")
    page.wait_for_selector("#figure-1 tbody th")  # the table is written once the fold has opened
    names = page.evaluate("[...document.querySelectorAll('#figure-1 tbody th')].map(t => t.textContent)")
    assert SCRIPT in names and IMAGE in names and LINK in names and not complaints
    page.context.close()
