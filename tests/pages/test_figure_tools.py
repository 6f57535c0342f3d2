"""Plotly's tool bar is there for a pointer only, in the colours of the page, and in nobody's way."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from rkcnn_lib.pages.site import build_site
from tests.pages.pages import dot_figure, open_page, slider_figure, until, write_run


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory):
    root = tmp_path_factory.mktemp("tools")
    legend = go.Figure([go.Scatter(y=[1, 3, 2], name="one"), go.Scatter(y=[2, 1, 3], name="two")])
    legend.layout.legend = {"x": 1, "xanchor": "right", "y": 1.2}
    run = write_run(root / "runs", figs=[dot_figure(), slider_figure(), legend])
    return build_site([run], root / "site").with_name("01_toy_superposition.html")


BARS = "[...document.querySelectorAll('.modebar')]"
MEETS = """number => {
  const box = element => element.getBoundingClientRect(), figure = document.getElementById("figure-" + number);
  const bar = box(figure.querySelector(".modebar"));
  return [...figure.querySelectorAll(".legend, .bglayer, .xtick, .ytick, select, button, input, output")]
    .filter(element => !element.closest(".modebar")).map(box)
    .filter(b => b.width && b.x < bar.right && b.right > bar.x && b.y < bar.bottom && b.bottom > bar.y).length;
}"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (720, "dark")])
def test_tools_of_a_figure_come_on_hover_in_the_colours_of_the_page_and_cover_nothing(
    browser, with_tools, width, scheme
):
    page, complaints = open_page(browser, with_tools, width, scheme)
    assert (
        page.evaluate(f"{BARS}.map(bar => getComputedStyle(bar.querySelector('.modebar-group')).opacity)") == ["0"] * 3
    )
    colours = """bar => [getComputedStyle(bar.querySelector('.modebar-group')).backgroundColor,
        getComputedStyle(bar.querySelector('.modebar-btn:not(.active) path')).fill]"""
    wanted = {"light": ["rgb(255, 255, 255)", "rgb(89, 98, 109)"], "dark": ["rgb(20, 23, 28)", "rgb(163, 171, 182)"]}
    assert page.evaluate(f"{BARS}.map({colours})") == [wanted[scheme]] * 3
    page.hover("#plot-3")
    until(page, f"getComputedStyle({BARS}[2].querySelector('.modebar-group')).opacity === '1'")
    assert [page.evaluate(MEETS, number) for number in (1, 2, 3)] == [0, 0, 0] and not complaints
    page.context.close()


@pytest.mark.browser
def test_where_nothing_hovers_a_figure_has_no_tools_that_would_stand_for_ever(browser, with_tools):
    context = browser.new_context(viewport={"width": 1024, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(with_tools.as_uri())
    until(page, "document.documentElement.dataset.figures === '3'")
    assert page.evaluate("matchMedia('(hover: none)').matches") and page.evaluate(f"{BARS}.length") == 0
    context.close()
