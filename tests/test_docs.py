"""README and docs hold: every link leads somewhere, every command names what exists, README stays short."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from rkcnn_lib.runs.params import NOTEBOOKS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "outputs/published/README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
VERBS = {"report", "run", "mine", "sweep", "site", "cache", "doctor"}


def anchors(page: Path) -> set[str]:
    """The anchors of a Markdown page's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_names_what_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["rkcnn"]:
            assert words[1] in VERBS, line
            assert words[1] != "run" or words[2] in NOTEBOOKS, line
        for word in words:
            assert not word.startswith(("params/", "notebooks/")) or (ROOT / word).exists(), line


def test_readme_shows_what_the_published_runs_say():
    spec = importlib.util.spec_from_file_location("from_runs", ROOT / "docs/from_runs.py")
    shown = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shown)
    record, metrics = shown.read(shown.WORLDS[0])
    drawn = shown.picture(metrics, shown.answers.place(record), record["parameters"]["n_seeds"])
    assert shown.PICTURE.read_text(encoding="utf-8") == drawn
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert shown.table([shown.read(world)[0] for world in shown.WORLDS]) in readme


def test_readme_is_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200
