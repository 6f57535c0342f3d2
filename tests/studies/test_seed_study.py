"""The smallest world: a start from the truth stays there, and every number has its chance level."""

import pytest

from rkcnn_lib.studies import planes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RKCNN_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        patch.setattr(planes, "STARTS", ("random", "rkcnn_unscored", "rkcnn", "truth"))
        yield planes.seed_study(n_seeds=2, steps=100)[0]


def at(study, start, step):
    rows = study[(study["miner"] == start) & (study["step"] == step)]
    return rows["value"]


def test_a_start_from_the_truth_starts_there_and_stays(study):
    assert at(study, "truth", 0).min() > 0.999
    assert at(study, "truth", 100).min() > planes.MET


def test_a_random_start_is_within_chance_before_training(study):
    rows = study[(study["miner"] == "random") & (study["step"] == 0)]
    assert (rows["value"] < 0.99).all() and rows["value"].mean() < rows["chance_upper"].mean()


def test_mined_directions_lie_at_the_truth_before_training(study):
    rows = study[(study["miner"] == "rkcnn") & (study["step"] == 0)]
    assert (rows["value"] > rows["chance_upper"]).all()


def test_successes_are_counted_over_all_models(study):
    counts = planes.success(study)
    assert (counts["models"] == 2).all() and counts.loc["truth", "found at step 0"] == 2
    assert "of 2 toy models" in planes.seed_study_title(study)
