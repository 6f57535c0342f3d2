"""Bad parameters are refused before compute, by name, value and what is allowed."""

import pytest

from rkcnn_lib.report.params import (
    NOTEBOOKS,
    ROOT,
    ParameterError,
    assignments,
    check_notebook,
    read_parameter_file,
    resolve,
)

FILES = sorted((ROOT / "params").glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_parameter_file_is_accepted_and_names_its_own_profile(path):
    notebook, _, variant = path.stem.partition("--")
    values = resolve(notebook, read_parameter_file(path))
    assert values.profile == (f"{path.parent.name}--{variant}" if variant else path.parent.name)


@pytest.mark.parametrize("profile", ["smoke", "quick", "gemma", "gpt2"])
def test_every_profile_has_all_six_notebooks(profile):
    assert {path.stem for path in FILES if path.parent.name == profile} >= set(NOTEBOOKS)


@pytest.mark.parametrize(
    ("notebook", "given", "told"),
    [
        ("04_sae_compare", {"layr": 8}, ["layr = 8", "did you mean 'layer'"]),
        ("04_sae_compare", {"k": 0}, ["k = 0", "greater than or equal to 1"]),
        ("04_sae_compare", {"hook": "nonsense"}, ["hook = 'nonsense'", "'resid_pre'", "'attn_out'"]),
        ("04_sae_compare", {"n_subsets": 100, "n_directions": 50}, ["n_subsets = 100", "150"]),
        ("01_toy_superposition", {"n_subsets": 100, "n_directions": 50}, ["n_subsets = 100", "150"]),
        ("04_sae_compare", {"arms": ["random", "rkcnn_lyft"]}, ["rkcnn_lyft"]),
        (
            "04_sae_compare",
            {"arms": ["random", "random", "rkcnn_lift"]},
            ["arms = [", "name each value once, not 'random' again"],
        ),
        ("05_multilayer", {"more_hooks": ["mlp_out"]}, ["name each hook once", "not hook = 'mlp_out' again"]),
        ("04_sae_compare", {"l1": 2.0}, ["l1 = 2.0", "topk has no L1 penalty"]),
        ("04_sae_compare", {"lr": "fast"}, ["lr = 'fast'"]),
        ("04_sae_compare", {"n_tokens": 10}, ["n_tokens = 10"]),
        ("05_multilayer", {"layers": "[8, x]"}, ["layers.1 = 'x'"]),
        ("01_toy_superposition", {"n_active": 21}, ["n_active = 21", "n_features = 20"]),
        ("02_probe_validation", {"control": "none at all"}, ["control = 'none at all'", "'gaussian'"]),
    ],
)
def test_a_bad_value_is_refused_by_name_value_and_what_is_allowed(notebook, given, told):
    with pytest.raises(ParameterError) as refusal:
        resolve(notebook, given)
    assert all(words in str(refusal.value) for words in told), refusal.value


def test_all_problems_are_told_at_once():
    with pytest.raises(ParameterError) as refusal:
        resolve("04_sae_compare", {"layr": 8, "k": 0, "steps": -1})
    assert str(refusal.value).count("\n") == 3


def test_values_that_papermill_hands_over_as_text_are_understood():
    assert resolve("05_multilayer", {"layers": "[8, 12]"}).layers == [8, 12]
    assert resolve("04_sae_compare", {"lr": "1e-3"}).lr == 1e-3
    assert resolve("04_sae_compare", {"subset_size": None}).subset_size is None


def test_parameters_cannot_be_changed_after_the_check():
    values = resolve("04_sae_compare")
    with pytest.raises(ValueError, match="frozen"):
        values.k = 3


def test_an_unknown_notebook_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match="did you mean '04_sae_compare'"):
        check_notebook("04_sae_comapre")


def test_a_file_that_is_missing_or_no_yaml_mapping_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no parameter file"):
        read_parameter_file(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="name: value"):
        read_parameter_file(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_parameter_file(tmp_path / "empty.yaml") == {}


def test_assignments_reads_what_a_parameters_cell_sets():
    assert assignments("# Parameters\nlayr = 8\nx: int = 2  # two\n") == {"layr": 8, "x": 2}
