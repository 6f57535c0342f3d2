"""A site is weighed, a run can be one file that needs nothing beside it, and what cannot be shared is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest

from rkcnn_lib import cli
from rkcnn_lib.pages.render import plotly_script, trace_types
from rkcnn_lib.pages.site import build_site, inlined, run_folders, single_file, weight_lines
from tests.pages.pages import dot_figure, open_page, read, slider_figure, until, write_run


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    cell = nbformat.v4.new_markdown_cell("See [a paper](https://doi.org/10.7717/peerj-cs.2497).")
    run = write_run(root / "runs", figs=[dot_figure(), slider_figure()], cells=[cell])
    (run / "metrics.parquet").unlink()
    pd.DataFrame({"value": [0.25]}).to_parquet(run / "metrics.parquet")
    return single_file(run, root / "out" / "one.html")


def test_the_site_holds_plotly_once_and_its_weights_add_up(tmp_path):
    runs = [write_run(tmp_path / "runs", name, [dot_figure()]) for name in ("01_toy_superposition", "03_gpt2_cache")]
    folder = build_site(runs, tmp_path / "site").parent
    sizes = {line.split()[2]: float(line.split()[0]) for line in weight_lines(folder)[:-1]}
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    assert sum(sizes.values()) == pytest.approx(total, abs=0.01 * len(sizes))
    assert len([path for path in folder.rglob("*") if path.stat().st_size > 1e6 and path.is_file()]) == 1
    assert sizes["01_toy_superposition.html"] < 0.3, "a page holds plotly itself"
    assert weight_lines(folder)[-1] == f"{total:8.2f} MB  in all (plotly.min.js once)"


def test_pages_load_the_small_plotly_where_it_draws_all_and_may_then_compile_nothing(tmp_path):
    solid = go.Figure(go.Scatter3d(x=[0, 1], y=[0, 1], z=[0, 1]))
    for figure, small in ((dot_figure(), True), (solid, False)):
        run = write_run(tmp_path / f"runs-{small}", "03_gpt2_cache", [figure])
        page = build_site([run], tmp_path / f"site-{small}").with_name("03_gpt2_cache.html")
        assert ((page.parent / "assets/plotly.min.js").stat().st_size < 2e6) is small
        policies = page.read_text(encoding="utf-8"), single_file(run, tmp_path / "one.html").read_text(encoding="utf-8")
        for text in policies:
            assert ("unsafe-eval" not in text.partition("</head>")[0]) is small


def test_frames_count_among_the_traces_that_a_figure_needs():
    figure = {"data": [{"x": [1]}], "frames": [{"data": [{"type": "scatter3d"}]}, {"layout": {}}]}
    assert trace_types(figure) == {"scatter", "scatter3d"}


def test_the_small_plotly_is_of_the_installed_version():
    text, compiles = plotly_script({"scatter"})
    assert not compiles, "pages load all of plotly.js: run `make plotly-js` for the version that is installed now"
    assert "new Function(" not in text and "eval(" not in text


def test_a_heavy_site_says_so(tmp_path):
    folder = build_site([], tmp_path / "site").parent
    (folder / "runs").mkdir()
    with (folder / "runs/huge").open("wb") as file:
        file.truncate(20_000_000)
    assert "more than the 15 MB" in weight_lines(folder)[-1]


def test_a_single_file_loads_nothing_and_names_every_script_by_its_hash(single):
    page = read(single)
    assert not page.find_all(src=True) and not page.find_all("link", rel="stylesheet")
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    allowed = re.search("script-src ([^;]*)", policy)[1].split()
    scripts = [s.string for s in page.find_all("script") if s.get("type") != "application/json"]
    hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'" for s in scripts]
    assert allowed == hashes and len(scripts) > 3
    assert "file:" not in policy and "'self'" not in policy
    for link in page.find_all("a", href=True):
        assert link["href"].startswith(("#", "https:", "data:")), link
    assert page.find("a", href="https://doi.org/10.7717/peerj-cs.2497")


def test_a_single_file_carries_the_data_of_its_run(single, tmp_path):
    links = {a["download"]: a["href"] for a in read(single).find_all("a", download=True)}
    assert set(links) == {"run.json", "metrics.parquet"}
    record = json.loads(base64.b64decode(links["run.json"].split(",")[1]))
    assert record["notebook"] == "01_toy_superposition"
    (tmp_path / "m.parquet").write_bytes(base64.b64decode(links["metrics.parquet"].split(",")[1]))
    assert pd.read_parquet(tmp_path / "m.parquet")["value"].tolist() == [0.25]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_single_file_works_alone(browser, single, width, scheme):
    page, complaints = open_page(browser, single, width, scheme)
    assert page.evaluate("document.documentElement.dataset.figures") == "2"
    page.select_option("#figure-1 select", label="dead latents")
    page.click("#figure-1 .figure-data summary")
    page.wait_for_selector("#figure-1 .figure-table table")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not complaints
    page.context.close()


@pytest.mark.browser
def test_a_script_put_into_a_single_file_does_not_run(browser, single, tmp_path):
    foreign = tmp_path / "foreign.html"
    foreign.write_text(
        single.read_text(encoding="utf-8").replace("<article>", "<script>window.hacked = 1</script><article>"),
        encoding="utf-8",
    )
    page, complaints = open_page(browser, foreign)
    assert page.evaluate("window.hacked") is None and any("Content Security Policy" in text for text in complaints)
    page.context.close()


def test_scripts_that_speak_of_script_tags_stay_whole(tmp_path):
    page = tmp_path / "page.html"
    (tmp_path / "own.js").write_text("const a = '</script><!--', b = /<\\/script/;", encoding="utf-8")
    page.write_text(
        '<html><head><meta http-equiv="Content-Security-Policy" content="script-src \'self\' file: x">'
        '<script src="own.js" defer></script></head><body>end</body></html>',
        encoding="utf-8",
    )
    text = inlined(page)
    assert text.count("</script>") == 1 and "<\\/script><\\!--" in text


def test_refuses_folders_without_runs_and_finds_nested_ones(tmp_path):
    write_run(tmp_path / "runs")
    write_run(tmp_path / "runs", "02_probe_validation", status="failed")
    assert [folder.parent.name for folder in run_folders([tmp_path / "runs"])] == ["01_toy_superposition"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run"):
        run_folders([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no run"):
        single_file(tmp_path / "empty", tmp_path / "x.html")
    with pytest.raises(ValueError, match="is a folder"):
        single_file(tmp_path / "runs", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_prints_weights_and_writes_single_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    run = write_run(tmp_path / "runs", "03_gpt2_cache", profile="quick", finished="2026-01-01")
    assert cli.main(["site", "--also", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "03_gpt2_cache.html" in said and "in all (plotly.min.js once)" in said
    assert cli.main(["site", "--single-file", "03_gpt2_cache"]) == 0 and (tmp_path / "03_gpt2_cache.html").is_file()
    assert cli.main(["site", "--single-file", str(run), "--out", str(tmp_path / "named.html")]) == 0
    assert (tmp_path / "named.html").stat().st_size > 1.5e6
    assert cli.main(["site", "--single-file", "04_sae_compare"]) == 2
    assert "no finished run of 04_sae_compare" in capsys.readouterr().err
    assert cli.main(["site", "--single-file", "nonsense"]) == 2
    assert cli.main(["site", "--single-file", "03_gpt2_cache", "--also", str(tmp_path)]) == 2


@pytest.mark.browser
def test_on_paper_figures_fit_and_colours_are_light_and_come_back(browser, single):
    page, complaints = open_page(browser, single, 1280, "dark")
    wide = page.evaluate("document.querySelector('.main-svg').getBoundingClientRect().width")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    until(page, "document.querySelectorAll('.main-svg').length >= 4")
    widths = page.evaluate("[...document.querySelectorAll('.main-svg')].map(svg => svg.getBoundingClientRect().width)")
    assert max(widths) <= 680 < wide
    ink = page.evaluate("getComputedStyle(document.querySelector('#plot-1 .xtick text')).fill")
    assert ink == "rgb(36, 41, 47)", "dark ink on white paper"
    hidden = [
        ".top",
        ".figure-data",
        "details.code",
        ".modebar-container",
        ".figure-step input",
        ".figure-controls button",
    ]
    assert not [one for one in hidden if page.locator(one).count() and page.locator(one).first.is_visible()]
    assert page.locator("#figure-1 select").is_visible(), "which view is printed"
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    until(page, f"document.querySelector('.main-svg').getBoundingClientRect().width === {wide}")
    assert not complaints
    page.context.close()
