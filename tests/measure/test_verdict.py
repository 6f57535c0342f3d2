"""Verdicts: planted differences get their word, noise seldom gets one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rkcnn_lib.measure.statistics import verdict_table, verdict_word


def tidy(hypothesis: str = "H1", **differences: np.ndarray) -> pd.DataFrame:
    """Differences (n_seeds,) of each measure as the table that is judged."""
    parts = [
        pd.DataFrame({"hypothesis": hypothesis, "measure": name, "seed": range(len(d)), "difference": d})
        for name, d in differences.items()
    ]
    return pd.concat(parts, ignore_index=True)


def around(mean: float, sd: float = 0.001, n: int = 6) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=n)
    return mean + sd * (noise - noise.mean()) / noise.std(ddof=1)


def judged(differences: pd.DataFrame, delta: float) -> pd.DataFrame:
    """The verdicts with the same margin for each measure."""
    return verdict_table(differences, dict.fromkeys(differences["measure"], delta))


def words(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["measure"], table["word"], strict=True))


def test_planted_differences_get_their_word():
    planted = tidy(up=around(0.1), same=around(0.01), down=around(-0.1), edge=around(0.05), noisy=around(0.1, sd=0.5))
    table = judged(planted, 0.05)
    assert words(table) == {
        "up": "better", "same": "equivalent", "down": "worse", "edge": "undecided", "noisy": "undecided"
    }  # fmt: skip
    assert table["difference"].tolist() == pytest.approx([0.1, 0.01, -0.1, 0.05, 0.1])
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()


def test_equivalence_is_found_where_seeds_agree_and_not_where_they_scatter():
    assert words(judged(tidy(m=around(0.0, sd=0.01)), 0.05)) == {"m": "equivalent"}
    assert words(judged(tidy(m=around(0.0, sd=0.20)), 0.05)) == {"m": "undecided"}


def test_below_five_seeds_everything_is_undecided():
    assert words(judged(tidy(m=around(1.0, n=4)), 0.05)) == {"m": "undecided"}
    assert words(judged(tidy(m=around(1.0, n=5)), 0.05)) == {"m": "better"}


def test_the_edges_of_an_interval_belong_to_equivalence():
    assert verdict_word(-0.1, 0.1, 0.1, 5) == "equivalent"
    assert verdict_word(0.1, 0.3, 0.1, 5) == "undecided" == verdict_word(-0.3, -0.1, 0.1, 5)


def test_each_measure_has_its_own_margin_and_each_hypothesis_its_own_adjustment():
    noise = np.random.default_rng(1).normal(size=(2, 6))
    one = judged(tidy("H1", a=0.3 + noise[0]), 0.0).iloc[0]
    beside = judged(pd.concat([tidy("H1", a=0.3 + noise[0]), tidy("H2", b=noise[1])]), 0.0).iloc[0]
    within = judged(tidy("H1", a=0.3 + noise[0], b=noise[1]), 0.0).iloc[0]
    assert beside["p"] == one["p"] and within["p"] > one["p"] and within["low"] < one["low"]
    assert words(verdict_table(tidy(a=around(0.1), b=around(0.1)), {"a": 0.05, "b": 0.2})) == {
        "a": "better", "b": "equivalent"
    }  # fmt: skip


def test_six_measures_on_which_nothing_differs_are_rarely_told_apart():
    rng, n = np.random.default_rng(0), 300
    wrong = 0
    for _ in range(n):
        shared = rng.normal(size=6)
        null = tidy(**{f"m{i}": shared + rng.normal(size=6) for i in range(6)})
        wrong += judged(null, 0.0)["word"].isin(["better", "worse"]).any()
    assert wrong <= 0.05 * n + 2.5 * np.sqrt(0.05 * 0.95 * n)


def test_six_differences_that_are_exactly_the_margin_seldom_get_any_word():
    """Far from zero they reject "no difference" at every step: Holm's steps must go by the margin."""
    rng, n = np.random.default_rng(0), 400
    wrong = 0
    for _ in range(n):
        table = judged(tidy(**{f"m{i}": rng.normal(0.05, 0.01, size=8) for i in range(6)}), 0.05)
        wrong += (table["word"] != "undecided").any()
    assert wrong <= 0.05 * n + 2.5 * np.sqrt(0.05 * 0.95 * n)


def test_a_clear_effect_is_nearly_always_called_better():
    rng, n = np.random.default_rng(0), 200
    tables = [judged(tidy(**{name: rng.normal(1.0, 0.4, size=8) for name in "ab"}), 0.1) for _ in range(n)]
    assert sum((table["word"] == "better").all() for table in tables) >= 0.9 * n


def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent():
    """The truth lies on the margin itself: the worst case of a wrong equivalence."""
    rng, n = np.random.default_rng(0), 400
    wrong = sum(judged(tidy(m=rng.normal(0.05, 0.02, size=6)), 0.05)["word"].item() == "equivalent" for _ in range(n))
    assert wrong <= 0.025 * n + 2.5 * np.sqrt(0.025 * 0.975 * n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judged(pd.concat([tidy(m=around(0.1))] * 2), 0.1), "two differences"),
        (lambda: judged(tidy(m=np.array([0.1, np.nan])), 0.1), "finite"),
    ],
)
def test_misuse_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
