"""The comparison page holds the runs' own numbers, compares only like with like, and sorts and filters in the page."""

from __future__ import annotations

import pandas as pd
import pytest

from rkcnn_lib.pages.compare import LAYOUTS
from rkcnn_lib.pages.site import build_site
from rkcnn_lib.runs.params import NOTEBOOKS
from tests.pages.pages import open_page, read, until, write_run

SAE = "04_sae_compare"


def sae_table(shift=0.0, arms=("random", "kmeans", "rkcnn"), seeds=5):
    rows = []
    for i, arm in enumerate(arms):
        for seed in range(seeds):
            jitter = 0.001 * seed
            rows += [
                {"arm": arm, "seed": seed, "metric": "explained_variance", "value": 0.9 + 0.01 * i + shift + jitter},
                {"arm": arm, "seed": seed, "metric": "dead", "value": 0.3 - 0.1 * i + jitter},
                {
                    "arm": arm,
                    "seed": seed,
                    "metric": "PW-MCC, whitened after training",
                    "value": 0.5,
                    "chance_mean": 0.61,
                },
                {"arm": arm, "seed": seed, "metric": "frozen_ev", "value": 77.0},
            ]
    return pd.DataFrame(rows)


def run_with(root, table, notebook=SAE, **record):
    folder = write_run(root, notebook, executed=False, **record)
    table.to_parquet(folder / "metrics.parquet")
    return folder


def rows_of(page):
    return page.select("#comparison tbody tr")


def test_a_row_holds_the_mean_interval_and_chance_of_its_arm(tmp_path):
    index = build_site([run_with(tmp_path / "runs", sae_table())], tmp_path / "site")
    page = read(index.parent / "compare.html")
    lift = next(row for row in rows_of(page) if row["data-arm"] == "rkcnn")
    text = lift.get_text(" ", strip=True)
    assert "0.922" in text and "chance 0.61" in text and "77" not in text
    assert "0.92 to 0.924" in text  # t interval of 0.920 ... 0.924, five seeds
    assert lift.find("a")["href"] == f"{SAE}.html"
    heads = [button.get_text() for button in page.select("#comparison thead button")]
    assert any(head.startswith("explained variance (share)") for head in heads)
    assert not any("matched" in head and "PW-MCC" not in head for head in heads), "a column that nothing fills"


def test_values_of_one_seed_are_no_replication(tmp_path):
    rows = [
        {"world": "toy", "label": label, "seed": 0, "group": "top", "probe": "kNN", "metric": "balanced_accuracy",
         "value": value, "chance_mean": 0.5}
        for label, value in (("a", 0.6), ("b", 0.8))
    ]  # fmt: skip
    run = run_with(tmp_path / "runs", pd.DataFrame(rows), "02_probe_validation")
    index = build_site([run], tmp_path / "site")
    (row,) = rows_of(read(index.parent / "compare.html"))
    assert "0.7" in row.get_text() and " to " not in row.get_text()
    assert row["data-part"] == "toy"


def test_curves_over_other_settings_do_not_enter_the_mean(tmp_path):
    rows = [
        {"miner": "kmeans", "seed": s, "metric": "matched_cosine", "value": 0.9, "axis": None, "x": None,
         "probability": None}
        for s in range(3)
    ]  # fmt: skip
    rows += [{"miner": "kmeans", "seed": s, "metric": "matched_cosine", "value": 0.1, "axis": "n", "x": 10.0,
              "probability": None} for s in range(3)]  # fmt: skip
    index = build_site([run_with(tmp_path / "runs", pd.DataFrame(rows), "01_toy_superposition")], tmp_path / "site")
    (row,) = rows_of(read(index.parent / "compare.html"))
    assert row.select_one("td[data-value] b").get_text() == "0.9"


def test_every_notebook_and_every_run_has_a_place(tmp_path):
    assert set(LAYOUTS) == set(NOTEBOOKS)
    runs = [write_run(tmp_path / "runs", notebook, executed=False) for notebook in NOTEBOOKS]  # no known metric
    index = build_site(runs, tmp_path / "site")
    rows = rows_of(read(index.parent / "compare.html"))
    assert [row["data-notebook"] for row in rows] == list(NOTEBOOKS)
    assert "nothing to compare" in build_site([], tmp_path / "empty").with_name("compare.html").read_text(
        encoding="utf-8"
    )
    assert all(page.find(href="compare.html") for page in map(read, index.parent.glob("*.html")))


def test_further_runs_are_compared_but_do_not_lead(tmp_path):
    own = run_with(tmp_path / "runs", sae_table(), started="2026-01-01T00:00:00", headline="own")
    other = run_with(tmp_path / "runs", sae_table(), started="2026-02-01T00:00:00", profile="gpt2", headline="other")
    index = build_site([own], tmp_path / "site", also=[other, own])
    assert "own" in (index.parent / f"{SAE}.html").read_text(encoding="utf-8")
    assert len(rows_of(read(index.parent / "compare.html"))) == 6
    assert (index.parent / f"{SAE}--run2.html").is_file() and not (index.parent / f"{SAE}--run3.html").exists()


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    run = write_run(tmp_path / "runs", SAE, executed=False)
    (run / "metrics.parquet").write_text("not a table", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.parquet cannot be read"):
        build_site([run], tmp_path / "site")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    toy = pd.DataFrame([{"miner": "kmeans", "seed": s, "metric": "matched_cosine", "value": 0.9} for s in range(3)])
    runs = [
        run_with(root / "runs", toy, "01_toy_superposition"),
        run_with(root / "runs", sae_table(), started="2026-02-02T00:00:00"),
        run_with(root / "runs", sae_table(0.05, ("random", "rkcnn")), profile="gpt2"),
    ]
    return build_site(runs, root / "site").with_name("compare.html")


SHOWN = "[...document.querySelectorAll('#comparison tbody tr')].filter(r => !r.hidden).map(r => r.dataset.arm)"
NUMBERS = """[...document.querySelectorAll('#comparison tbody tr')].filter(r => !r.hidden)
  .map(r => r.cells[COLUMN].querySelector('b')?.textContent ?? r.cells[COLUMN].title)"""


def column(page, name):
    return page.evaluate(
        f"[...document.querySelectorAll('#comparison thead th')].findIndex(h => h.textContent.includes('{name}'))"
    )


@pytest.mark.browser
def test_headers_sort_by_keyboard_and_say_so(browser, compared):
    page, complaints = open_page(browser, compared)
    at = column(page, "dead latents")
    head = page.locator("#comparison thead th").nth(at)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.evaluate(SHOWN) == ["rkcnn", "kmeans", "rkcnn", "random", "random"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.evaluate(SHOWN)[:2] == ["random", "random"]
    assert page.evaluate("document.querySelectorAll('[aria-sort=none]').length") > 5 and not complaints
    page.context.close()


@pytest.mark.browser
def test_filters_hide_rows_and_columns_that_nothing_fills(browser, compared):
    page, complaints = open_page(browser, compared)
    assert len(page.evaluate(SHOWN)) == 5, "the arms of 04 come first"
    page.select_option("#filter-profile", "gpt2")
    assert page.evaluate(SHOWN) == ["random", "rkcnn"]
    page.select_option("#filter-arm", "random")
    assert "1 of 6 rows" in page.inner_text("#compare-status")
    page.click("button[type=reset]")
    assert len(page.evaluate(SHOWN)) == 6
    page.fill("#filter-text", "toy KMEANS")
    until(page, "document.querySelector('#compare-status').textContent.startsWith('1 of 6 rows')")
    assert page.evaluate(SHOWN) == ["kmeans"]
    head = page.locator("#comparison thead th")
    assert not head.nth(column(page, "dead latents")).is_visible() and head.nth(column(page, "matched")).is_visible()
    assert not complaints
    page.context.close()


@pytest.mark.browser
def test_differences_are_within_the_same_notebook_and_say_why_not(browser, compared):
    page, complaints = open_page(browser, compared)
    at = column(page, "explained variance")
    page.select_option("#filter-notebook", "")
    page.select_option("#against", "04_sae_compare")
    toy, *rest = page.evaluate(NUMBERS.replace("COLUMN", str(at)))
    assert rest == ["0", "0", "0", "+0.05", "+0.04"] and not toy
    page.select_option("#against", "04_sae_compare--run2")
    assert "no row kmeans" in page.evaluate(NUMBERS.replace("COLUMN", str(at)))[2]
    matched = page.evaluate(NUMBERS.replace("COLUMN", str(column(page, "matched signed cosine (one"))))
    assert "another notebook" in matched[0]
    page.select_option("#against", "own")
    page.select_option("#against-arm", "random")
    assert page.evaluate(NUMBERS.replace("COLUMN", str(at)))[1:] == ["0", "+0.01", "+0.02", "0", "+0.01"]
    page.select_option("#against", "")
    assert page.evaluate(NUMBERS.replace("COLUMN", str(at)))[1] == "0.902" and not complaints
    page.context.close()


@pytest.mark.browser
def test_the_address_keeps_the_choices(browser, compared):
    page, _ = open_page(browser, compared)
    page.select_option("#filter-profile", "gpt2")
    page.locator("#comparison thead button").nth(column(page, "dead latents")).click()
    address = page.url
    page.context.close()
    page, complaints = open_page(browser, compared)
    page.goto("about:blank")
    page.goto(address)
    assert page.evaluate(SHOWN) == ["rkcnn", "random"] and page.input_value("#filter-profile") == "gpt2"
    page.goto(address.split("#")[0] + "#notebook=nonsense&sort=99-ascending&arm=%3Cb%3E")
    page.reload()
    assert len(page.evaluate(SHOWN)) == 6 and not complaints
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_table_scrolls_inside_the_page(browser, compared, width):
    page, complaints = open_page(browser, compared, width)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not complaints
    page.context.close()


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    root = tmp_path_factory.mktemp("long")
    arms = [f"arm{i:03}" for i in range(700)]
    return build_site([run_with(root / "runs", sae_table(arms=arms, seeds=1))], root / "site").with_name("compare.html")


@pytest.mark.browser
def test_rows_of_a_long_table_come_as_they_are_scrolled_to_and_are_all_sorted_searched_and_printed(browser, long):
    page, complaints = open_page(browser, long)
    assert len(page.evaluate(SHOWN)) == 200 and "700 of 700 rows" in page.inner_text("#compare-status")
    assert "500 further rows" in page.inner_text("#compare-rest")
    shown = [200]
    while shown[-1] < 700:  # a key that comes while the page lays rows out does not scroll: as a reader, press again
        page.keyboard.press("End")
        page.wait_for_timeout(300)
        shown.append(len(page.evaluate(SHOWN)))
        assert len(shown) < 50
    assert 600 in shown
    assert not page.locator("#compare-rest").is_visible()
    page.locator("#comparison thead button").nth(column(page, "Arm")).click()
    page.locator("#comparison thead button").nth(column(page, "Arm")).click()
    assert page.evaluate(SHOWN) == [f"arm{i:03}" for i in range(699, 499, -1)]
    page.select_option("#against", "own")
    page.select_option("#against-arm", "arm000")
    page.fill("#filter-text", "arm00")
    until(page, "document.querySelector('#compare-status').textContent.startsWith('10 of 700')")
    assert page.evaluate(SHOWN) == [f"arm{i:03}" for i in range(9, -1, -1)]
    numbers = page.evaluate(NUMBERS.replace("COLUMN", str(column(page, "explained variance"))))
    assert numbers == [f"+0.0{i}" for i in range(9, 0, -1)] + ["0"], (
        "rows that were out of sight hold their differences"
    )
    page.click("button[type=reset]")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert len(page.evaluate(SHOWN)) == 700
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert len(page.evaluate(SHOWN)) == 200 and not complaints
    page.context.close()
