"""A sweep file is refused in words or gives exactly the settings it asks for."""

import itertools

import pytest
import yaml

from rkcnn_lib.runs.params import ROOT, ParameterError
from rkcnn_lib.studies.sweeps import read_sweep

FILES = sorted((ROOT / "params").glob("*/sweeps/*.yaml"))


def written(tmp_path, **entries):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return read_sweep(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_every_sweep_file_can_be_run_and_names_its_profile(path):
    planned = read_sweep(path)
    assert planned.p.profile.split("--")[0] == path.parts[-3] and planned.settings
    if planned.p.model != "gpt2":
        planned.check()
    else:  # not to be had here: 768 wide
        latents = [(p, round(p.expansion * 768)) for p in planned.settings]
        assert all(p.subsets_for(n) >= 3 * n for p, n in latents)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"axes": {"expantion": [1, 2]}}, "did you mean 'expansion'"),
        ({"axes": {"zzz": [1, 2]}}, "axes are layers, hooks"),
        ({"axes": {"hook": ["mlp_out"]}}, "did you mean 'hooks'"),
        ({"axes": {"lift": [True]}}, "the lift follows the score"),
        ({"axes": {"model": ["gpt2"]}}, "the same for all settings"),
        ({"axes": {"k": []}}, "k is empty"),
        ({"axes": {"k": [8, 8]}}, "each value once"),
        ({"axes": {"k": [8, "8"]}}, "k = [8, '8']: name each value once"),
        ({"axes": {"k": [8, 8.0]}}, "k = [8, 8.0]: name each value once"),
        ({"axes": {"k": [8, True]}}, "k = True"),
        ({"axes": {"lr": [1e-3, float("inf")]}}, "lr = inf"),
        ({"axes": {"k": list(range(1, 1001)), "steps": list(range(1, 1001))}}, "1,000,000 settings"),
        ({"axes": {"k": [8]}, "factor": True}, "factor = True"),
        ({"axes": {"k": [8]}, "parameters": {"n_seeds": 10**12}}, "n_seeds = 1000000000000"),
        ({"axes": {"k": [8]}, "parameters": {"n_seeds": "five"}}, "n_seeds = 'five'"),
        ({"axes": {"seeds": [2**40]}}, "whole numbers from 0"),
        ({"axes": {"layers": [True]}}, "whole numbers"),
        ({"axes": {"k": [8, 0]}}, "k = 0"),
        ({"axes": {"hooks": ["mlp_out", "nonsense"]}}, "hook = 'nonsense'"),
        ({"axes": {"layers": [0, "last"]}}, "whole numbers"),
        ({"axes": {"seeds": [-1]}}, "whole numbers from 0"),
        ({"axes": {"n_subsets": [4800, 2]}}, "n_subsets = 2"),
        ({"axes": {"k": [8]}, "parameters": {"k": 4}}, "given twice"),
        ({"axes": {"k": [8]}, "parameters": {"kk": 4}}, "kk = 4"),
        ({"axes": {"k": [8]}, "axis": {}}, "did you mean 'axes'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(entries, told, tmp_path):
    with pytest.raises(ParameterError) as refusal:
        written(tmp_path, **entries)
    assert told in str(refusal.value)


def test_a_grid_holds_every_combination_once_and_places_are_not_searched_over(tmp_path):
    axes = {"layers": [0, -1], "hooks": ["mlp_out", "resid_pre"], "seeds": [3, 4], "k": [8, 16, 32], "lr": [1e-3, 1e-4]}
    planned = written(tmp_path, axes=axes)
    assert [(p.k, p.lr) for p in planned.settings] == list(itertools.product(axes["k"], axes["lr"]))
    assert all(planned.values(p) == {"k": p.k, "lr": p.lr} for p in planned.settings)
    assert (planned.layers, planned.hooks, planned.seeds) == ([0, -1], ["mlp_out", "resid_pre"], [3, 4])
    assert planned.p.n_seeds == 2 and planned.swept == ("k", "lr")


def test_no_axis_at_all_is_one_setting_with_the_defaults(tmp_path):
    planned = written(tmp_path)
    assert len(planned.settings) == 1 and planned.seeds == [0, 1, 2, 3, 4] and planned.layers is None


def read(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return read_sweep(path)


def test_a_setting_has_the_values_that_05_reads_whatever_way_they_are_written(tmp_path):
    planned = read(tmp_path, "axes: {lr: [1e-3, 0.0003, 1], k: [8, '16']}")
    chosen = [planned.values(p) for p in planned.settings]
    assert chosen == [{"lr": lr, "k": k} for lr in (1e-3, 3e-4, 1.0) for k in (8, 16)]
    assert {type(value) for values in chosen for value in values.values()} == {float, int}
    with pytest.raises(ParameterError, match="name each value once"):
        read(tmp_path, "axes: {lr: [1e-3, 1.0e-3]}")
    with pytest.raises(ParameterError, match=r"sweep.yaml, line 2, column 1: axes is there twice"):
        read(tmp_path, "axes: {k: [8]}\naxes: {k: [16]}")


def test_every_setting_is_held_against_the_model_at_every_hook(tmp_path):
    planned = written(tmp_path, parameters={"model": "atlas", "n_tokens": 60_000}, axes={"k": [8, 600]})
    with pytest.raises(ParameterError, match="k = 600: expansion = 4 gives 512 latents"):
        planned.check()
    hooks = {"hooks": ["mlp_post", "mlp_out"], "subset_size": [200]}
    with pytest.raises(ParameterError, match="subset_size = 200: the activations have 128 dimensions"):
        written(tmp_path, parameters={"model": "atlas", "n_tokens": 60_000}, axes=hooks).check()
    with pytest.raises(ParameterError, match=r"n_subsets = 100, .* fewer than 3 subsets for each"):
        written(tmp_path, parameters={"model": "atlas", "n_tokens": 60_000}, axes={"n_subsets": [1600, 100]}).check()
