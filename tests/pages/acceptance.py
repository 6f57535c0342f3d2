"""Opens every page of a finished site in Chromium and tries what a reader would; prints a line a page.

``python -m tests.pages.acceptance FOLDER`` exits with 1 if anything failed. The time of the first figure is a
measurement of this machine, printed and judged by nobody.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.pages.pages import chromium, open_page

WIDTHS = {"light": 1280, "dark": 390}
FIRST_FIGURE = """() => {
  window.firstFigure = new Promise(resolve => {
    new MutationObserver((_, me) => {
      if (document.querySelector('.plot .main-svg .xy, .plot .main-svg .plot')) {
        me.disconnect(); requestAnimationFrame(() => resolve(performance.now()));
      }
    }).observe(document, {childList: true, subtree: true});
  });
}"""


def try_figures(page) -> list[str]:
    """Open each figure's data, choose every entry of its menus and the ends of its slider."""
    faults = []
    plots = page.locator(".plot").count()
    drawn = page.evaluate("document.querySelectorAll('.plot .main-svg[role=img]').length")
    if drawn != plots:
        faults.append(f"{drawn} of {plots} figures drawn")
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    for figure in page.locator("figure.drawn").all():
        name = figure.get_attribute("id")
        for menu in figure.locator("select").all():
            for value in menu.evaluate("menu => [...menu.options].map(option => option.value)"):
                menu.select_option(value)
        for slider in figure.locator("input[type=range]").all():
            slider.focus()
            page.keyboard.press("Home")
            before = figure.locator("output").inner_text()
            page.keyboard.press("End")
            if slider.get_attribute("max") != "0" and figure.locator("output").inner_text() == before:
                faults.append(f"{name}: its slider changes nothing")
        page.wait_for_timeout(50)
        if not figure.locator(".figure-table tbody tr").count():
            faults.append(f"{name}: no data")
        if "could not be drawn" in figure.inner_text():
            faults.append(f"{name}: not drawn after a choice")
    return faults


def try_table(page) -> list[str]:
    """Sort the comparison by each header, both ways, and subtract each run."""
    faults = []
    for header in page.locator("#comparison thead th").all():
        if header.is_visible():
            for wanted in ("ascending", "descending"):
                header.locator("button").click()
                if header.get_attribute("aria-sort") != wanted:
                    faults.append(f"{header.inner_text()!r} does not sort {wanted}")
    for value in page.locator("#against").evaluate("menu => [...menu.options].map(option => option.value)"):
        page.select_option("#against", value)
        if not page.locator("#comparison tbody tr:visible").count():
            faults.append(f"no row left against {value!r}")
    return faults


def try_links(page, folder: Path) -> list[str]:
    """Every link within the site leads to a file, and every anchor to an element."""
    targets = page.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))")
    faults = []
    for target in sorted(set(targets)):
        file, _, anchor = target.partition("#")
        if target.startswith(("http", "mailto:", "data:")):
            continue
        if file and not (folder / file).is_file():
            faults.append(f"{target} leads nowhere")
        elif not file and anchor.startswith("card-"):
            faults += try_card(page, anchor)
        elif not file and "=" not in anchor and not page.evaluate("id => !!document.getElementById(id)", anchor):
            faults.append(f"#{anchor} leads nowhere")
    return faults


def try_card(page, anchor: str) -> list[str]:
    """An address with a card in it shows that card."""
    page.evaluate("anchor => { location.hash = anchor }", anchor)
    try:
        latent = anchor.rsplit("-", 1)[-1]
        page.locator("#cards", has_text=f"latent {latent}").wait_for(timeout=2000)
    except Exception:  # playwright's own kind of timeout
        return [f"#{anchor} shows no card"]
    return []


def visit(browser, file: Path, scheme: str) -> tuple[list[str], float | None]:
    """What is wrong with a page at a scheme's width, and the milliseconds until its first figure stood."""
    page, complaints = open_page(browser, file, WIDTHS[scheme], scheme, before=FIRST_FIGURE)
    first = page.evaluate("window.firstFigure") if page.query_selector(".plot") else None
    faults = try_figures(page) if page.query_selector(".plot") else []
    if page.query_selector("#comparison"):
        faults += try_table(page)
    faults += try_links(page, file.parent)
    if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        faults.append("scrolls sideways")
    faults += [f"console: {text[:200]}" for text in complaints if "GL Driver" not in text]
    page.context.close()
    return faults, first


def main(folder: Path) -> int:
    """Visit every page in light and wide, dark and narrow; print what was found."""
    from playwright.sync_api import sync_playwright

    wrong = 0
    with sync_playwright() as play:
        browser = chromium(play)
        for file in sorted(folder.resolve().glob("*.html")):
            for scheme, width in WIDTHS.items():
                faults, first = visit(browser, file, scheme)
                wrong += len(faults)
                figure = f", first figure after {first:.0f} ms" if first is not None else ""
                print(f"{file.name} {width} {scheme}: {'; '.join(faults) or 'good'}{figure}", flush=True)
        browser.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
