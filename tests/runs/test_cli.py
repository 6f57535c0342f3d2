"""The command line refuses in words, plans before it starts, and names what it knows."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from rkcnn_lib import cli
from rkcnn_lib.files import ROOT
from rkcnn_lib.runs import machine
from rkcnn_lib.runs.params import ParameterError, read_parameter_file, resolve
from rkcnn_lib.runs.run import own_kernel
from rkcnn_lib.studies import plan
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
    assert given == {"subset_size": None, "layers": [0, 2], "lr": 1e-3, "model": "gpt2"}


def test_a_profile_lists_its_notebooks_in_order_without_variants():
    assert list(cli.profile_parameters(cli.ROOT / "params" / "smoke")) == list(cli.NOTEBOOKS)


def test_a_parameter_file_named_after_no_notebook_is_refused(tmp_path):
    (tmp_path / "07_more.yaml").write_text("profile: x\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="07_more"):
        cli.profile_parameters(tmp_path)


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
        plan.estimate(resolve("04_sae_compare", {"model": "planted", "steps": steps}), "cpu", 1e11)
        for steps in (100, 1000)
    )
    # 9 arms are mined; 11 arms and variants trained, 9 arms for 7/8 of the steps in all, 5 at each of 2 further k and 5
    # with the other architecture (4 trials); each of 9 with 2 encoders on one seed
    assert few.units == round((9 + 11 + 9 * 0.875 + 5 * 2 + 5 * 4) * 5 + 9 * 2)
    assert many.seconds > few.seconds > 0 and few.disk > 0


def test_gpt2s_comparison_fits_an_hour_on_a_card_of_24_gigabytes_and_all_arms_little_over_two(monkeypatch):
    """By arithmetic for a card at half of 20 TFLOP/s and half of 600 GB/s; no such card was at hand."""
    gpt2 = ModelFacts("gpt2", "GPT-2", "hub", "commit:0", 12, 768, 3072, 1024, 50257)
    monkeypatch.setattr(plan, "model_facts", lambda *_: gpt2)

    def step_seconds(config, batch, device):
        n, d, code, weights = config.d_sae, config.d_in, 4 * batch * config.d_sae, 4 * config.d_sae * config.d_in
        if config.uses_topk:  # one dense product; its result is read for the top k; five gathers of k rows a token
            products, moved = 1, 3 * code + 5 * 4 * batch * config.k * d + 16 * weights
        else:
            products, moved = 5, 10 * code + 16 * weights
        return products * 2 * batch * n * d / 1e13 + moved / 3e11

    monkeypatch.setattr(plan, "step_seconds", step_seconds)
    found = plan.estimate(resolve("04_sae_compare"), "cuda", 2e13)
    assert found.units == 307 and found.seconds < 2.2 * 3600 and found.memory < 24e9
    sized = read_parameter_file(ROOT / "params" / "gpt2" / "04_sae_compare.yaml")
    assert plan.estimate(resolve("04_sae_compare", sized), "cuda", 2e13).seconds < 3600


def test_the_doctor_finds_the_embedded_model(capsys):
    cli.main(["doctor"])
    assert "knows where the Eiffel Tower is" in capsys.readouterr().out


def rkcnn(*words, outputs, python=(sys.executable,), **more):
    environment = os.environ | {"RKCNN_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"} | more
    command = [*python, "-m", "rkcnn_lib.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_ctrl_c_ends_kernel_and_workers_in_one_line(tmp_path):
    words = ["run", "01_toy_superposition", "-f", "params/smoke/01_toy_superposition.yaml"]
    environment = os.environ | {"RKCNN_OUTPUTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "rkcnn_lib.cli", *words], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as command:  # fmt: skip
        us = psutil.Process(command.pid)
        while not list((tmp_path / "units").rglob("unit.json")):  # the kernel is at work
            time.sleep(0.2)
        started = us.children(recursive=True)
        os.killpg(command.pid, signal.SIGINT)
        told = command.communicate(timeout=60)[0]
    assert command.returncode == 130 and "Traceback" not in told
    assert told.strip().splitlines()[-1] == "rkcnn: stopped; the same command goes on where it was"
    assert started and not psutil.wait_procs(started, timeout=10)[1]


@pytest.mark.slow
def test_a_file_where_a_folder_should_be_is_one_line_with_its_path(tmp_path):
    (tmp_path / "file").touch()
    done = rkcnn("run", "03_gpt2_cache", "-f", "params/smoke/03_gpt2_cache.yaml", outputs=tmp_path / "file")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and str(tmp_path / "file") in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(outputs, monkeypatch):
    for n in range(3):
        (outputs / "cache" / f"cache{n}").mkdir(parents=True)
    with open(os.devnull, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(cli, "caches", lambda *_: (_ for _ in ()).throw(BrokenPipeError))
        assert cli.main(["cache", "ls"]) == 0


@pytest.mark.slow
def test_the_same_run_is_found_under_every_locale(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from rkcnn_lib.runs.params import NOTEBOOKS, resolve, read_parameter_file as read\n"
        "from rkcnn_lib.runs.run import run_key\n"
        "print([run_key(n, resolve(n, read(Path('params/smoke') / (n + '.yaml')))) for n in NOTEBOOKS])"
    )
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    keys = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
        for more in ({"PYTHONUTF8": "1"}, ascii_alone)
    ]
    assert keys[0].stdout and keys[0].stdout == keys[1].stdout, keys[1].stderr


def test_a_terminal_that_cannot_show_a_character_ends_nothing(tmp_path):
    (tmp_path / "cache" / "größer").mkdir(parents=True)
    more = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rkcnn("cache", "ls", outputs=tmp_path, **more)
    assert done.returncode == 0 and done.stdout.startswith("gr\\u27e8U+DCC3")


def test_an_installed_package_says_that_notebooks_need_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "NOTEBOOK_FOLDER", tmp_path / "notebooks")
    for words in (["run", "04_sae_compare"], ["report", "params/quick"], ["site"], ["sweep", "f", "--out", "o"]):
        assert cli.main(words) == 2 and "in a checkout of the project" in capsys.readouterr().err
    assert cli.main(["cache", "ls"]) == 0


def test_runs_use_their_own_interpreter_whatever_kernel_is_called_python3(monkeypatch, tmp_path):
    about = tmp_path / "kernels" / "python3" / "kernel.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["/bin/false"]
    with own_kernel() as name:
        assert KernelSpecManager().get_kernel_spec(name).argv[0] == sys.executable
    assert os.environ["JUPYTER_PATH"] == str(tmp_path)
    with pytest.raises(machine.Note, match="/bin/false, not this interpreter"):
        machine._kernel()


@pytest.mark.slow
def test_the_doctor_names_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = rkcnn("doctor", outputs=tmp_path / "file")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "memory, disk" in line and str(tmp_path / "file") in line
