"""The browser of the tests of pages, started once."""

from __future__ import annotations

import pytest

from tests.pages.pages import CHROMIUM, chromium


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here (looked for chromium, chromium-browser, google-chrome)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        started = chromium(play)
        yield started
        started.close()
