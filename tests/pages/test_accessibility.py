"""axe-core finds nothing serious on a page, an index and a comparison, in light and dark, with folds open."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from rkcnn_lib.pages.site import build_site
from rkcnn_lib.runs.params import ROOT
from tests.pages.pages import VERDICT, dot_figure, open_page, slider_figure, until, write_run

AXE = Path(os.environ.get("AXE_CORE") or ROOT / "build/axe-core/axe.min.js")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def axe():
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE} (make axe fetches it where there is npm; or set AXE_CORE)")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("accessible")
    v4 = nbformat.v4
    table = pd.DataFrame({"value": [0.25] * 3}, index=["a", "b", "c"])
    outputs = [
        v4.new_output("display_data", {"text/html": table.to_html()}),
        v4.new_output("stream", text="a printed line " * 40),
        v4.new_output("stream", name="stderr", text="a log " * 60),
        v4.new_output("error", ename="KeyError", evalue="k", traceback=["KeyError: " + "k" * 200]),
    ]
    heat = go.Figure(go.Heatmap(z=np.eye(3)), layout={"title": "A matrix"})
    code = v4.new_code_cell("def f(x):  # a comment\n    return 'text' + str(3.5) if x else None  " + "# long" * 40)
    code.outputs = outputs
    prose = v4.new_markdown_cell(
        "### Deeper\n\nA [link](https://a.example), `code`, **bold**.\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    )
    metrics = [{"arm": arm, "seed": s, "metric": "dead", "value": 0.1} for arm in ("random", "rkcnn") for s in (0, 1)]
    run = write_run(
        root / "runs", "04_sae_compare", [dot_figure(), slider_figure(), heat], [prose, code], profile="quick",
        verdicts=[VERDICT], earlier_gates={"01_toy_superposition": "FAIL", "02_probe_validation": "NOT RUN"},
    )  # fmt: skip
    pd.DataFrame(metrics).to_parquet(run / "metrics.parquet")
    return build_site([run], root / "site").parent


def serious(page, axe):
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}"
        for one in found if one["impact"] in SERIOUS
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["04_sae_compare.html", "index.html", "compare.html"])
def test_axe_finds_nothing_serious(browser, pages, axe, name, scheme):
    page, complaints = open_page(browser, pages / name, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    until(page, "[...document.querySelectorAll('.figure-table')].every(t => t.querySelector('table'))")
    assert serious(page, axe) == [] and not complaints
    page.context.close()


@pytest.mark.browser
def test_axe_does_find_what_is_wrong(browser, pages, axe):
    page, _ = open_page(browser, pages / "index.html")
    page.evaluate("document.querySelector('main p').style.color = '#ccc'")
    page.evaluate("document.querySelector('html').removeAttribute('lang')")
    ids = {line.split(":")[0] for line in serious(page, axe)}
    assert {"color-contrast", "html-has-lang"} <= ids
    page.context.close()
