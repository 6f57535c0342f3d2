"""L0 at equal explained variance: planted fronts give the known number of latents."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rkcnn_lib.studies.front import against_live, l0_at_equal_ev, live_title

P = SimpleNamespace(k=16)


def front(**quality):
    """Return a front whose arms explain ``quality[arm](l0)`` at k = 8, 16 and 32, the same for two seeds."""
    return pd.DataFrame([
        {"arm": arm, "seed": seed, "k": k, "l0": float(k), "metric": "explained_variance", "value": of(k) + 0.01 * seed}
        for arm, of in quality.items()
        for seed in (0, 1)
        for k in (8, 16, 32)
    ])  # fmt: skip


def needed(table, arm):
    found = l0_at_equal_ev(table, P)
    return found[found["arm"] == arm]["value"].to_numpy()


def test_an_arm_that_does_with_half_the_latents_is_found_to_need_half():
    table = front(random=lambda k: 0.1 * np.log(k), rkcnn=lambda k: 0.1 * np.log(2 * k))
    np.testing.assert_allclose(needed(table, "random"), 16)
    np.testing.assert_allclose(needed(table, "rkcnn"), 8)


def test_two_names_for_the_same_front_need_the_same():
    table = front(random=lambda k: 0.1 * np.log(k), rkcnn_unscored=lambda k: 0.1 * np.log(k))
    assert (needed(table, "random") == needed(table, "rkcnn_unscored")).all()


def test_an_arm_off_the_front_is_cut_off_at_its_end():
    table = front(random=lambda k: 0.1 * np.log(k), best=lambda k: 0.9 + 0.001 * k, worst=lambda k: 0.001 * k)
    np.testing.assert_allclose(needed(table, "best"), 8)
    np.testing.assert_allclose(needed(table, "worst"), 32)
    cut = l0_at_equal_ev(table, P).groupby("arm")["cut"].first()
    assert cut.to_dict() == {"best": "at most", "random": "", "worst": "at least"}


def test_each_seed_is_held_to_its_own_random_arm():
    table = front(random=lambda k: 0.1 * np.log(k), rkcnn=lambda k: 0.1 * np.log(k))
    table.loc[(table["arm"] == "random") & (table["seed"] == 1), "value"] += 0.1 * np.log(1.5)
    np.testing.assert_allclose(needed(table, "rkcnn"), [16, 24], rtol=0.05)


def test_no_front_gives_an_empty_table():
    assert l0_at_equal_ev(pd.DataFrame(), P).empty


def test_one_penalty_makes_no_front():
    from rkcnn_lib.runs.params import ParameterError, resolve

    with pytest.raises(ParameterError, match="front_k = "):
        resolve("04_sae_compare", {"architecture": "relu", "l1": 1.0})


def test_variance_stands_beside_the_live_latents_of_its_own_arm_and_length():
    rows = [
        (arm, seed, tokens, metric, value)
        for arm, alive in (("random", 10), ("rkcnn", 20))
        for tokens in (1, 2)
        for seed in (0, 1)
        for metric, value in (("explained_variance", 0.5), ("live", alive * tokens + seed))
    ]
    found = against_live(pd.DataFrame(rows, columns=["arm", "seed", "tokens", "metric", "value"]))
    assert set(found["metric"]) == {"explained_variance"} and len(found) == 8
    assert found.groupby(["arm", "tokens"])["live"].first().tolist() == [10.5, 20.5, 20.5, 40.5]
    assert live_title(found) == "rkcnn explains 0.5000 with 40 live latents, random explains 0.5000 with 20"
