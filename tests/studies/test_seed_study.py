"""The smallest world: a start from the truth stays there, and every number has its chance level."""

import pytest

from rkcnn_lib.studies import seed_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RKCNN_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield seed_study.seed_study(n_seeds=3, steps=300)


def at(study, start, step):
    rows = study.table[(study.table["miner"] == start) & (study.table["step"] == step)]
    return rows["value"]


def test_a_start_from_the_truth_starts_there_and_stays(study):
    assert at(study, "truth", 0).min() > 0.999
    assert at(study, "truth", 300).min() > seed_study.MET


def test_a_random_start_is_within_chance_before_training(study):
    rows = study.table[(study.table["miner"] == "random") & (study.table["step"] == 0)]
    assert (rows["value"] < 0.99).all() and rows["value"].mean() < rows["chance_upper"].mean()


def test_mined_directions_lie_at_the_truth_before_training(study):
    rows = study.table[(study.table["miner"] == "rkcnn") & (study.table["step"] == 0)]
    assert (rows["value"] > rows["chance_upper"]).all()


def test_successes_are_counted_over_all_models(study):
    counts = seed_study.success(study.table)
    assert (counts["models"] == 3).all() and counts.loc["truth", "found at step 0"] == 3
    assert "of 3 toy models" in seed_study.title(study.table)
