"""Behind each figure is a table of what it shows, in words a reader understands; menus and sliders answer keys."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from rkcnn_lib import figures
from rkcnn_lib.pages.render import in_words
from rkcnn_lib.pages.site import build_site
from tests.pages.pages import dot_figure, open_page, read, slider_figure, until, write_run


def test_words_name_series_axes_views_and_steps():
    dots = in_words(json.loads(dot_figure().to_json()))
    assert "rkcnn" in dots and "Views: explained variance, dead latents." in dots and "Across:" in dots
    steps = in_words(json.loads(slider_figure().to_json()))
    assert "Steps: p = 0.1, p = 0.01." in steps
    assert in_words({"data": [{"y": [1]}]}) == "One series without a name."
    many = {"data": [{"name": f"<b>s{i}</b>"} for i in range(20)]}
    assert "s11 and 8 more" in in_words(many) and "<b>" not in in_words(many)


def curve_figure():
    rows = [
        {"arm": arm, "seed": seed, "metric": "dead", "step": step, "value": 0.1 * seed + step}
        for arm in ("random", "rkcnn") for seed in range(3) for step in (1, 10)
    ]  # fmt: skip
    return figures.training_curves(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    matrix = go.Figure(go.Heatmap(z=np.arange(6.0).reshape(2, 3), y=["first", "second"]))
    long = go.Figure(go.Scatter(y=np.arange(1000.0), name="=formula()"))
    run = write_run(root / "runs", figs=[dot_figure(), slider_figure(), curve_figure(), matrix, long])
    return build_site([run], root / "site").with_name("01_toy_superposition.html")


def table_of(page, number):
    page.locator(f"#figure-{number} details.figure-data summary").click()
    page.wait_for_selector(f"#figure-{number} .figure-table table")
    rows = f"[...document.querySelectorAll('#figure-{number} .figure-table tr')]"
    return page.evaluate(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")


@pytest.mark.browser
def test_the_table_follows_what_the_figure_shows(browser, drawn):
    page, complaints = open_page(browser, drawn)
    header, *rows = table_of(page, 1)
    assert header[0] == "Row" and "explained variance (share)" in header
    assert {row[0] for row in rows} == {"random", "rkcnn"} and any("seed 0; 0.5" in row[-1] for row in rows)
    page.select_option("#figure-1 select", label="dead latents")
    until(page, "document.querySelector('#figure-1 .figure-table thead').textContent.includes('dead')")
    _, *rows = table_of(page, 2)
    assert rows[0][:2] == ["1", "0"]
    page.focus("#figure-2 input[type=range]")
    page.keyboard.press("End")
    until(page, "document.querySelector('#figure-2 .figure-table tbody').textContent.includes('0.5')")
    assert not complaints
    page.context.close()


@pytest.mark.browser
def test_bands_intervals_and_matrices_become_numbers(browser, drawn):
    page, complaints = open_page(browser, drawn)
    header, *rows = table_of(page, 3)
    assert header[-3:-1] == ["Low", "High"] and "training step" in header
    assert rows[0][:2] == ["random", "1"] and rows[0][3:5] == ["1", "1.2"], "the band is the range of the seeds"
    header, *rows = table_of(page, 4)
    assert rows == [["first", "0", "1", "2"], ["second", "3", "4", "5"]]
    assert not complaints
    page.context.close()


@pytest.mark.browser
def test_a_cut_table_says_so_and_the_file_holds_all(browser, drawn):
    page, complaints = open_page(browser, drawn)
    assert len(table_of(page, 5)) == 401
    assert "Cut: the first 400 rows" in page.inner_text("#figure-5 .figure-table")
    with page.expect_download() as download:
        page.click("#figure-5 .figure-table button")
    lines = download.value.path().read_text(encoding="utf-8").strip().split("\n")
    assert len(lines) == 1001 and lines[1].startswith("'=formula()"), "no text may act as a spreadsheet's formula"
    assert not complaints
    page.context.close()


@pytest.mark.browser
def test_no_text_of_a_saved_table_begins_as_a_formula_does(browser, tmp_path):
    starts = ["=", "+", "-", "@", "＝", "＋", "－", "＠", "\t=", "\r=", "\r", "\u00a0=", "\ufeff=", "=\r"]
    names = [f"{start}{i}" for i, start in enumerate(starts)]
    traces = [go.Scatter(x=names, y=[1] * len(names), name=name, text=names) for name in names]
    traces.append(go.Heatmap(z=[[1] * len(names)] * len(names), x=names, y=names))
    run = write_run(tmp_path / "runs", figs=[go.Figure(traces)])
    page, complaints = open_page(browser, build_site([run], tmp_path / "site").with_name("01_toy_superposition.html"))
    page.click("#figure-1 .figure-data summary")
    with page.expect_download() as download:
        page.click("#figure-1 .figure-table button")
    with download.value.path().open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row if cell]
    assert {f"'{start}{i}" for i, start in enumerate(starts[:8])} <= set(cells) and not complaints
    assert [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@＝＋－＠") or cell[0] in "\t\r\ufeff"] == []
    page.context.close()


def test_without_scripts_the_words_are_there(tmp_path):
    index = build_site([write_run(tmp_path / "runs", figs=[dot_figure()])], tmp_path / "site")
    fold = read(index.with_name("01_toy_superposition.html")).select_one("figure details.figure-data")
    assert "rkcnn" in fold.get_text() and fold["data-plot"] == "plot-1"


@pytest.mark.browser
def test_a_choice_survives_a_change_of_colours_and_width(browser, drawn):
    page, complaints = open_page(browser, drawn)
    page.select_option("#figure-1 select", label="dead latents")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 800})
    title = "document.querySelector('#plot-1').layout.xaxis.title.text.includes('dead')"
    until(page, f"document.querySelector('#plot-1').dataset.narrow === 'true' && {title}")
    assert page.locator("#figure-1 select").count() == 1 and not complaints
    page.context.close()
