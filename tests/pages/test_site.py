"""Pages work from disk without a network, run nothing foreign, hide nothing that failed or was not run."""

from __future__ import annotations

import itertools
import json
import re

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest

from rkcnn_lib import figures
from rkcnn_lib.figures.display import HERO
from rkcnn_lib.pages.site import build_site
from rkcnn_lib.runs.params import NOTEBOOKS
from tests.pages.pages import (
    EVIL,
    VERDICT,
    dot_figure,
    figure_output,
    open_page,
    read,
    slider_figure,
    until,
    write_run,
)


def test_lists_all_six_notebooks_and_marks_those_not_run(tmp_path):
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()])], tmp_path / "site")
    page = read(index)
    cards = page.select(".cards > li")
    assert [card.select_one(".kicker").get_text()[:2] for card in cards] == [name[:2] for name in NOTEBOOKS]
    assert "PASS" in cards[0].get_text() and "This one." in cards[0].get_text()
    assert all("NOT RUN" in card.get_text() and not card.find("a") for card in cards[1:])
    record = json.loads((tmp_path / "site/site.json").read_text(encoding="utf-8"))
    assert record["not_run"] == list(NOTEBOOKS)[1:]
    assert len(read(build_site([], tmp_path / "empty")).select(".cards > li.absent")) == 6


def test_counts_figures_and_flags_a_page_without_any(tmp_path):
    runs = [
        write_run(tmp_path / "runs", "01_toy_superposition", [dot_figure(), slider_figure()]),
        write_run(tmp_path / "runs", "02_probe_validation"),
        write_run(tmp_path / "runs", "03_gpt2_cache", executed=False),
    ]
    build_site(runs, tmp_path / "site")
    record = json.loads((tmp_path / "site/site.json").read_text(encoding="utf-8"))
    assert [page["figures"] for page in record["pages"]] == [2, 0, 0] and record["figures"] == 2
    assert not record["pages"][0]["flags"]
    assert "no figure" in record["pages"][1]["flags"][0] and "no executed notebook" in record["pages"][2]["flags"][0]
    assert "no figure" in (tmp_path / "site/02_probe_validation.html").read_text(encoding="utf-8")


def test_what_was_withdrawn_is_marked_on_its_page_and_wherever_it_is_cited(tmp_path):
    why = "the score selected nothing."
    runs = [
        write_run(tmp_path / "runs", "04_sae_compare", withdrawn=why, verdicts=[VERDICT]),
        write_run(tmp_path / "runs", "05_multilayer"),
    ]
    index = build_site(runs, tmp_path / "site")
    for name in ("04_sae_compare.html", "index.html", "compare.html"):
        assert why in " ".join(line.get_text() for line in read(tmp_path / "site" / name).select(".banner")), name
    assert read(index).select_one(".headline").get_text().split("Answer", 1)[1].strip() == f"Withdrawn: {why}"
    assert "withdrawn" in read(index).select(".cards > li")[3].select_one(".kicker").get_text()
    assert not read(tmp_path / "site/05_multilayer.html").select(".banner")


def test_banners_for_small_and_unfinished_runs(tmp_path):
    runs = [
        write_run(tmp_path / "runs", "01_toy_superposition", profile="smoke"),
        write_run(tmp_path / "runs", "02_probe_validation", profile="quick--wide"),
        write_run(tmp_path / "runs", "03_gpt2_cache", profile="gpt2", status="failed"),
        write_run(tmp_path / "runs", "04_sae_compare", profile="gpt2"),
    ]
    index = build_site(runs, tmp_path / "site")
    said = {
        file.name[:2]: " ".join(b.get_text() for b in read(file).select("main .banner"))
        for file in index.parent.glob("0*.html")
    }
    assert "A smoke run: sizes of seconds, no conclusions" in said["01"]
    assert "A quick run" in said["02"] and "did not finish (status: failed)" in said["03"] and not said["04"]
    assert "smoke" in read(index).select_one(".banner").get_text()


def test_everything_from_a_run_is_escaped(tmp_path):
    evil_check = {"name": EVIL, "value": EVIL, "requirement": EVIL, "passed": False, "chance": EVIL}
    html_output = nbformat.v4.new_output(
        "display_data", {"text/html": f'{EVIL}<p onclick="x()">fine</p><img src=x onerror=alert(1)>'}
    )
    cells = [
        nbformat.v4.new_markdown_cell(f"## {EVIL}\n\n[x](javascript:alert(1)) ![p](http://a.example/p.png)"),
        nbformat.v4.new_code_cell(f"'{EVIL}'", outputs=[html_output, nbformat.v4.new_output("stream", text=EVIL)]),
    ]
    run = write_run(
        tmp_path / "runs", figs=[dot_figure(seed=EVIL), go.Figure(go.Scatter(y=[1], text=[EVIL]))], cells=cells,
        figure_title=EVIL,
        title=EVIL, question=EVIL, headline=EVIL, parameters={EVIL: EVIL}, seeds=[EVIL], variant=EVIL, key=EVIL,
        gate={"verdict": EVIL, "checks": [evil_check]}, verdicts=[dict.fromkeys(VERDICT, EVIL)],
        model={"name": EVIL}, data={EVIL: [EVIL]}, provenance={"device": EVIL, "packages": {EVIL: EVIL}},
        earlier_gates={EVIL: EVIL}, started=EVIL, status=EVIL, profile=EVIL,
    )  # fmt: skip
    index = build_site([run], tmp_path / "site", title=EVIL)
    for file in index.parent.glob("*.html"):
        page, text = read(file), file.read_text(encoding="utf-8")
        assert "<script>window" not in text.replace("&lt;script&gt;", "")
        assert all(s.get("src") or s.get("type") == "application/json" for s in page.find_all("script"))
        assert not [tag for tag in page.find_all(True) for name in tag.attrs if name.startswith("on")]
        assert not page.find_all(href=re.compile("^javascript", re.I))
        assert EVIL in page.get_text() or file.name == "glossary.html", "escaped, not lost"
    build_site([], tmp_path / "site2", title=EVIL)


def test_loads_nothing_from_elsewhere_and_forbids_it(tmp_path):
    cell = nbformat.v4.new_markdown_cell("See [a paper](https://doi.org/10.7717/peerj-cs.2497).")
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()], cells=[cell])], tmp_path / "site")
    for file in index.parent.glob("*.html"):
        page = read(file)
        loaded = [tag["src"] for tag in page.find_all(src=True)] + [tag["href"] for tag in page.find_all("link")]
        assert all(not re.match(r"(https?:)?//", source) for source in loaded)
        local = [*loaded, *[a["href"] for a in page.find_all("a") if not a["href"].startswith("http")]]
        for target in local:
            assert not target.startswith("/")
            name = target.split("#")[0]
            assert target.startswith(("data:", "#")) or (index.parent / name).is_file(), target
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
        script = re.search(r"script-src ([^;]*)", policy)[1]
        assert "'unsafe-inline'" not in script and "http" not in policy and "default-src 'none'" in policy


def test_headings_are_in_order_with_one_h1_and_working_contents(tmp_path):
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()], title="Own title")], tmp_path / "site")
    page = read(index.parent / "01_toy_superposition.html")
    levels = [int(h.name[1]) for h in page.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids)), "two elements share an id"
    links = [a["href"][1:] for a in page.select(".contents a")]
    assert links and set(links) <= set(ids) and len(set(links)) == len(links)
    assert page.find("h1").get_text() == "Own title"


def test_index_answers_with_verdicts_intervals_and_ungated_marks(tmp_path):
    unknown = VERDICT | {
        "hypothesis": "dead",
        "low": float("-inf"),
        "high": float("inf"),
        "verdict": None,
        "gated": True,
    }
    best = {"metric": "dead", "strongest": "kmeans", "value": 0.1, "own": 0.2, "n_others": 3, "difference": -0.1}
    run = write_run(tmp_path / "runs", "04_sae_compare", verdicts=[VERDICT, unknown], strongest=[best])
    index = build_site([run], tmp_path / "site")
    first, second = [item.get_text(" ", strip=True) for item in read(index).select(".answers li")]
    assert first.startswith("explained variance : better on explained variance. ungated What would change it?")
    assert second.startswith("dead : undecided on explained variance.") and "ungated" not in second
    cells = [cell["title"] for cell in read(index).select(".verdict-grid td")]
    assert cells == ["difference +0.011 (+0.006 to +0.016), margin ±0.005, 5 seeds", "no interval, 5 seeds"]
    (strongest,) = [item for item in read(index).select("details") if "best other start" in item.get_text()]
    assert "kmeans" in strongest.get_text() and "0.1" in strongest.get_text()
    rows = read(index.with_name("04_sae_compare.html")).select("table.verdicts tbody tr")
    assert len(rows) == 2 and "rkcnn - random" in rows[0].get_text(" ", strip=True)


def test_index_shows_the_figure_that_a_notebook_marked_with_its_note(tmp_path):
    output = figure_output(slider_figure(), "A leading figure", **{HERO: f"What to see. {EVIL}"})
    cells = [nbformat.v4.new_code_cell("", outputs=[output])]
    run = write_run(tmp_path / "runs", cells=cells)
    page = read(build_site([run], tmp_path / "site"))
    assert page.select_one("figure.drawn script") and f"What to see. {EVIL}" in page.get_text()
    assert "A leading figure" in page.select_one("figcaption").get_text()
    plain = read(build_site([write_run(tmp_path / "other", figs=[slider_figure()])], tmp_path / "plain"))
    assert not plain.select("figure")


def test_a_shown_figure_is_captioned_once_with_its_title(tmp_path, monkeypatch):
    outputs = []

    def keep(data, metadata=None, **_):
        data = data if isinstance(data, dict) else {"text/html": data.data}
        outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata or {}))

    monkeypatch.setattr("rkcnn_lib.figures.display.display", keep)
    figures.show(dot_figure(), f"Mined starts win {EVIL}", "Dots are seeds.")
    run = write_run(tmp_path / "runs", cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    page = read(build_site([run], tmp_path / "site").with_name("01_toy_superposition.html"))
    caption, drawn = page.select_one("figcaption"), page.select_one("figure script").string
    assert caption.get_text(" ", strip=True).startswith(f"Figure 1. Mined starts win {EVIL}")
    assert page.find("article").get_text().count("Mined starts win") == 1 and "Mined starts" not in drawn
    assert "Dots are seeds." in page.get_text()


def test_variants_and_repeats_get_pages_of_their_own(tmp_path):
    runs = [
        write_run(tmp_path / "runs", "04_sae_compare", started="2026-01-01T00:00:00", headline="old"),
        write_run(tmp_path / "runs", "04_sae_compare", started="2026-01-02T00:00:00", headline="new"),
        write_run(tmp_path / "runs", "04_sae_compare", profile="gpt2--layer_9"),
    ]
    index = build_site(runs, tmp_path / "site")
    pages = [page["page"] for page in json.loads((index.parent / "site.json").read_text(encoding="utf-8"))["pages"]]
    assert pages == ["04_sae_compare.html", "04_sae_compare--run2.html", "04_sae_compare--layer_9.html"]
    assert "new" in read(index.parent / pages[0]).select_one(".headline").get_text()
    assert all(read(index).find("a", href=page) for page in pages)


def test_null_fields_are_no_obstacle(tmp_path):
    run = write_run(tmp_path / "runs", figs=[dot_figure()])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(
        json.dumps({k: v if k == "notebook" else None for k, v in record.items()}), encoding="utf-8"
    )
    page = read(build_site([run], tmp_path / "site").parent / "01_toy_superposition.html")
    assert "NOT RUN" in page.get_text() and "A title" in page.find("h1").get_text()


def test_bad_input_is_refused_and_leaves_the_old_site_alone(tmp_path):
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()])], tmp_path / "site")
    before = index.read_text(encoding="utf-8")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no run folder"):
        build_site([tmp_path / "nothing"], tmp_path / "site")
    broken = write_run(tmp_path / "runs", "02_probe_validation")
    (broken / "notebook.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not a notebook"):
        build_site([broken], tmp_path / "site")
    assert index.read_text(encoding="utf-8") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "temporary folders are left behind"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match="not a site made here"):
        build_site([], tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text(encoding="utf-8") == "precious"


def test_a_rebuilt_site_keeps_nothing_of_the_old(tmp_path):
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()])], tmp_path / "site")
    build_site([], tmp_path / "site")
    assert not (index.parent / "01_toy_superposition.html").exists() and index.is_file()


def test_no_output_of_a_notebook_is_lost(tmp_path):
    v4 = nbformat.v4
    table = pd.DataFrame({"a column": [0.25]})
    outputs = [
        v4.new_output("execute_result", {"text/html": table._repr_html_(), "text/plain": "x"}, execution_count=1),
        v4.new_output("execute_result", {"text/plain": "plain value"}, execution_count=1),
        v4.new_output("display_data", {"text/markdown": "some *markdown*"}),
        v4.new_output("stream", text="printed line"),
        v4.new_output("error", ename="KeyError", evalue="k", traceback=["KeyError: a lost key"]),
        v4.new_output("execute_result", figure_output(dot_figure()).data, execution_count=1),
    ]
    cell = v4.new_code_cell("x", outputs=outputs)
    index = build_site([write_run(tmp_path / "runs", cells=[cell])], tmp_path / "site")
    page = read(index.parent / "01_toy_superposition.html")
    text = page.find("article").get_text(" ")
    for part in ("a column", "0.25", "plain value", "some", "printed line", "a lost key"):
        assert part in text
    assert page.select_one("article table") and len(page.select("figure.drawn")) == 1
    record = json.loads((index.parent / "site.json").read_text(encoding="utf-8"))["pages"][0]
    assert record["figures"] == 1 and any("KeyError" in flag for flag in record["flags"])


def test_a_table_of_more_than_eight_rows_is_folded_behind_a_line_that_names_its_rows(tmp_path):
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": pd.DataFrame({"x": 0.5}, index=rows)._repr_html_()})
        for rows in (list("abcdefgh"), ["one & all", "two", "three", *"defghi"])
    ]
    run = write_run(tmp_path / "runs", cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    page = read(build_site([run], tmp_path / "site").with_name("01_toy_superposition.html"))
    short, long = page.select("article .table-scroll")
    assert short.find_parent("details") is None
    assert long.find_parent("details").summary.get_text() == "Table of 9 rows: one & all, two, three, ..."


def test_logs_do_not_tell_where_the_machine_keeps_its_files(tmp_path):
    places = (
        "/home/someone/.venv/lib/python3.11/site-packages/joblib/x.py:7",
        "/srv/someone/rkcnn_lib/probe/y.py:1",
        "3/4",
    )
    text = "\n".join(f"{place}: UserWarning" for place in places)
    output = nbformat.v4.new_output("stream", name="stderr", text=text)
    run = write_run(tmp_path / "runs", cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    page = read(build_site([run], tmp_path / "site").with_name("01_toy_superposition.html")).get_text()
    assert "joblib/x.py:7: UserWarning" in page and "rkcnn_lib/probe/y.py:1" in page and "3/4" in page
    assert "someone" not in page


def test_code_is_folded_and_progress_bars_are_settled(tmp_path):
    parts = ["10%\r55%", "\r80%", "\r100%\n"]  # what papermill leaves of one bar that moved three times
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in parts]
    outputs.insert(1, nbformat.v4.new_output("stream", name="stdout", text="between"))
    cell = nbformat.v4.new_code_cell("secret_call()", outputs=outputs)
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()], cells=[cell])], tmp_path / "site")
    page = read(index.parent / "01_toy_superposition.html")
    assert "secret_call" in page.select_one("details.code").get_text()
    assert [log.get_text().strip() for log in page.select("details.log pre")] == ["100%"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    web = go.Figure(go.Scattergl(y=[1, 2, 3], text=[EVIL] * 3))
    output = nbformat.v4.new_output("display_data", {"text/html": EVIL})
    runs = [
        write_run(
            root / "runs", figs=[dot_figure(EVIL), slider_figure()], figure_title=EVIL, title=EVIL, verdicts=[VERDICT]
        ),
        write_run(
            root / "runs", "02_probe_validation", [web], cells=[nbformat.v4.new_code_cell("x", outputs=[output])]
        ),
    ]
    return build_site(runs, root / "site").parent


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_two_figures_are_drawn_without_a_network(browser, site, width, scheme):
    page, complaints = open_page(browser, site / "01_toy_superposition.html", width, scheme)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.querySelector('.main-svg')).length"
    )
    assert drawn == 2 and not complaints
    assert not page.evaluate("window.hacked === true")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.context.close()


@pytest.mark.browser
def test_webgl_figure_is_drawn_and_foreign_script_is_not_run(browser, site):
    page, complaints = open_page(browser, site / "02_probe_validation.html")
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot .main-svg').length") > 0
    assert not page.evaluate("window.hacked === true")
    assert not [text for text in complaints if "GL Driver" not in text and "WebGL" not in text], complaints
    page.context.close()


@pytest.mark.browser
def test_slider_drop_down_and_code_button_change_the_page(browser, site):
    page, complaints = open_page(browser, site / "01_toy_superposition.html")
    first = "document.querySelectorAll('.js-plotly-plot')[0]"
    page.select_option("#figure-1 select", label="dead latents")
    until(page, f"{first}.layout.xaxis.title.text.includes('dead')")
    slid = "document.querySelectorAll('.js-plotly-plot')[1]"
    page.focus("#figure-2 input[type=range]")
    page.keyboard.press("ArrowRight")
    until(page, f"Math.abs({slid}.data[1].y[0] - 0.5) < 1e-6")
    assert page.inner_text("#figure-2 output") == "p = 0.01"
    assert page.evaluate("document.querySelectorAll('details.code[open]').length") == 0
    page.click("#toggle-code")
    assert page.evaluate("document.querySelectorAll('details.code:not([open])').length") == 0
    assert not complaints
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_index_fits_and_is_silent(browser, site, width):
    page, complaints = open_page(browser, site / "index.html", width)
    assert not complaints and page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_an_address_with_a_figure_in_it_ends_at_that_figure(browser, tmp_path, width):
    figs = [dot_figure(), slider_figure(), dot_figure(), slider_figure()]
    file = build_site([write_run(tmp_path / "runs", figs=figs)], tmp_path / "site").with_name(
        "01_toy_superposition.html"
    )
    page, complaints = open_page(browser, file, width)
    page.goto("about:blank")
    page.goto(file.as_uri() + "#figure-3")
    until(page, "document.documentElement.dataset.figures === '4'")
    page.wait_for_timeout(100)
    top = page.evaluate("document.querySelector('#figure-3').getBoundingClientRect().top")
    bar = page.evaluate("document.querySelector('.top').getBoundingClientRect().bottom")
    assert bar - 1 <= top < 160 and not complaints
    page.context.close()
