"""The script that tries a finished site passes a good one and finds what is broken in a bad one."""

from __future__ import annotations

import pytest

from rkcnn_lib.pages.site import build_site
from tests.pages.acceptance import visit
from tests.pages.pages import dot_figure, slider_figure, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("accepted")
    return build_site([write_run(root / "runs", figs=[dot_figure(), slider_figure()])], root / "site").parent


@pytest.mark.browser
@pytest.mark.parametrize("name", ["01_toy_superposition.html", "compare.html", "index.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_good_site_passes(browser, folder, name, scheme):
    faults, first = visit(browser, folder / name, scheme)
    assert faults == [] and (first is None) == (name[0] != "0")


@pytest.mark.browser
def test_a_broken_page_is_found_out(browser, folder):
    text = (folder / "01_toy_superposition.html").read_text(encoding="utf-8")
    wide = '<p style="width: 3000px">wide</p><a href="gone.html">x</a><a href="#gone">x</a><script>1</script>'
    broken = folder / "broken.html"
    broken.write_text(
        text.replace("<article>", wide + "<article>").replace('id="plot-2-data">{', 'id="plot-2-data">'),
        encoding="utf-8",
    )
    try:
        said = " ".join(visit(browser, broken, "light")[0])
    finally:
        broken.unlink()
    for fault in ("1 of 2 figures", "gone.html leads nowhere", "#gone leads nowhere", "scrolls sideways", "console:"):
        assert fault in said, fault
