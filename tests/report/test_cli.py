"""The command line refuses in words, plans before it starts, and names what it knows."""

import pytest

from rkcnn_lib.report import cli, plan
from rkcnn_lib.report.params import ParameterError, resolve
from rkcnn_lib.worlds import ModelFacts


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "04_sae_compare", "-p", "layr", "8"], "did you mean 'layer'"),
        (["run", "04_sae_comparison"], "did you mean '04_sae_compare'"),
        (["run", "04_sae_compare", "-p", "model", "atlas", "-p", "layer", "99"], "layer = 99"),
        (["run", "04_sae_compare", "-p", "model", "atlas", "-p", "k", "0"], "k = 0"),
        (["run", "04_sae_compare", "-f", "absent.yaml"], "no parameter file"),
        (["report", "params/absent"], "params/quick"),
        (["run", "04_sae_compare", "-p", "model", "/no/such/folder"], "no such folder"),
    ],
)
def test_bad_input_ends_in_one_message_without_a_traceback(words, told, capsys):
    assert cli.main(words) in (1, 2)
    message = capsys.readouterr().err
    assert told in message and "Traceback" not in message


def test_a_value_on_the_command_line_may_be_none_a_number_or_a_list():
    given = dict(cli.parsed([("subset_size", "None"), ("layers", "[0, 2]"), ("lr", "1e-3"), ("model", "gpt2")]))
    assert given == {"subset_size": None, "layers": [0, 2], "lr": "1e-3", "model": "gpt2"}


def test_a_profile_lists_its_notebooks_in_order_without_variants():
    assert list(cli.profile_files(cli.ROOT / "params" / "smoke")) == list(cli.NOTEBOOKS)


def test_a_parameter_file_named_after_no_notebook_is_refused(tmp_path):
    (tmp_path / "07_more.yaml").write_text("profile: x\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="07_more"):
        cli.profile_files(tmp_path)


def test_a_long_profile_is_not_started_unasked(monkeypatch, capsys):
    monkeypatch.setattr(plan, "estimate", lambda *_: plan.Estimate(1, 10_000.0, 1e9, 1e6))
    plans = {"01_toy_superposition": resolve("01_toy_superposition")}
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert plan.confirm(plans, yes=False) is False
    assert "--yes" in capsys.readouterr().err
    assert plan.confirm(plans, yes=True) is True


def test_a_plan_that_does_not_fit_the_disk_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "estimate", lambda *_: plan.Estimate(1, 1.0, 1e9, 1e18))
    with pytest.raises(RuntimeError, match="free"):
        plan.confirm({"01_toy_superposition": resolve("01_toy_superposition")}, yes=True)


def test_the_estimate_counts_cells_and_grows_with_steps():
    few, many = (
        plan.estimate("04_sae_compare", resolve("04_sae_compare", {"model": "planted", "steps": steps}), "cpu", 1e11)
        for steps in (100, 1000)
    )
    # 6 arms are mined; 8 arms and variants, 3 at each of 2 further k, 2 with the other architecture (4 trials) trained
    assert few.units == (6 + 8 + 4 * 2 + 2 * 4) * 5 and many.seconds > few.seconds > 0 and few.disk > 0


def test_the_default_comparison_fits_an_hour_on_a_card_of_24_gigabytes(monkeypatch):
    """By arithmetic for a card at half of 20 TFLOP/s and half of 600 GB/s; no such card was at hand."""
    gpt2 = ModelFacts("gpt2", "GPT-2", "hub", "commit:0", 12, 768, 3072, 1024, 50257)
    monkeypatch.setattr("rkcnn_lib.worlds.model_facts", lambda *_: gpt2)

    def step_seconds(config, batch, device):
        n, d, code, weights = config.d_sae, config.d_in, 4 * batch * config.d_sae, 4 * config.d_sae * config.d_in
        if config.uses_topk:  # one dense product; its result is read for the top k; five gathers of k rows a token
            products, moved = 1, 3 * code + 5 * 4 * batch * config.k * d + 16 * weights
        else:
            products, moved = 5, 10 * code + 16 * weights
        return products * 2 * batch * n * d / 1e13 + moved / 3e11

    monkeypatch.setattr(plan, "step_seconds", step_seconds)
    found = plan.estimate("04_sae_compare", resolve("04_sae_compare"), "cuda", 2e13)
    assert found.units == 150 and found.seconds < 3600 and found.memory < 24e9


def test_the_doctor_finds_the_embedded_model(capsys):
    cli.main(["doctor"])
    assert "knows where the Eiffel Tower is" in capsys.readouterr().out
