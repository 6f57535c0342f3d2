"""Bad parameters are refused before compute, by name, value and what is allowed."""

import jupytext
import pytest
from papermill import inspect_notebook

from rkcnn_lib.cli import parsed
from rkcnn_lib.runs.params import (
    NOTEBOOK_FOLDER,
    NOTEBOOKS,
    ROOT,
    ParameterError,
    check_notebook,
    defaults,
    parameters_cell,
    read_parameter_file,
    resolve,
    yaml_value,
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
        ("06_causal_checks", {"n_subsets": 100, "n_directions": 50}, ["n_subsets = 100", "150"]),
        ("01_toy_superposition", {"n_subsets": 100, "n_directions": 50}, ["n_subsets = 100", "150"]),
        ("04_sae_compare", {"arms": ["random", "rkcnn_lyft"]}, ["rkcnn_lyft"]),
        (
            "04_sae_compare",
            {"arms": ["random", "random", "rkcnn"]},
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


# What no model and no machine could give; what needs the model's facts or the memory is in test_runs.
BAD = {
    "01_toy_superposition": {
        "miners": [["rkcnn", "pca", "pca"], ["pca"], []], "n_seeds": [1, 1e9], "n_active": [0, 21],
        "subset_size": [1, 6], "n_hidden": [1, 2.5], "plane_instances": [0, 1e30], "n_subsets": [100, 10**400],
        "curve_noise": [[-0.1], [float("inf")], [0.1, 0.10]], "curve_n_subsets": [[600, 6e2], [100]],
        "curve_subset_size": [[2, 6]], "curve_features": [[1]], "curve_active": [[21]], "profile": ["", "../up", "a/b"],
    },
    "02_probe_validation": {
        "n_probed": [201, 2], "n_neighbours": [0, 101, 1e9], "atlas_labels": [[], ["topic", "topic"], ["colour"]],
        "n_active": [60, 61], "n_features": [1e9], "n_permutations": [1e9], "atlas_layer": [1e9, "last"],
        "curve_sizes": [[4, 4]], "subset_size": [21], "n_contexts": [1, float("nan")],
    },
    "03_gpt2_cache": {"layer": [2.5, "8th"], "n_tokens": [10, 1e30], "context_size": [1], "model": ["", 5]},
    "04_sae_compare": {
        "lr": [float("inf"), float("nan"), 0, "fast"], "expansion": [float("inf"), 0, -1, 1e9],
        "k": [0, True, "010x"], "front_k": [[16, 16.0]], "frozen_k": [[], [8, 8]], "published": [["a", "a"], [""]],
        "arms": [["random", "rkcnn", "random"]], "variants": [["random_frozen_decoder"] * 2],
        "n_jobs": [0, 1e9], "delta_ev": [float("inf")], "steps": [0, 1e30], "l1": [3.0, float("inf")],
        "force": ["perhaps"],
    },
    "05_multilayer": {"layers": [[], [0, 0], [True]], "more_hooks": [["resid_pre"] * 2, ["mlp_out"]], "sweep": [""]},
    "06_causal_checks": {
        "ranks": [[], [2, 2], [0], [float("inf")]], "das_layers": [[0, 0]], "relation": [""], "isolated": ["capital"],
        "sae_expansion": [float("inf")], "positions": ["first"], "delta_predict": [0.5],
    },
}  # fmt: skip


@pytest.mark.parametrize(("notebook", "name"), [(notebook, name) for notebook in BAD for name in BAD[notebook]])
def test_a_value_that_no_model_could_give_is_refused_when_parameters_are_resolved(notebook, name):
    for value in BAD[notebook][name]:
        changed = {"architecture": "relu", "other_architecture": None} if name == "l1" and value > 4 else {}
        with pytest.raises(ParameterError, match=name):
            resolve(notebook, {name: value} | changed)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_number_is_finite_and_no_yes_or_no_and_a_list_names_each_value_once(notebook):
    for name, value in defaults(notebook).items():
        if isinstance(value, list) and value:
            bad = [[*value, value[0]], [True], "[true]"]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bad = [True, False, float("inf"), float("nan"), *([10**30] if isinstance(value, int) else [])]
        else:
            bad = [] if isinstance(value, bool) else [True, False]
        for one in bad:
            with pytest.raises(ParameterError, match=name):
                resolve(notebook, {name: one})


def test_without_any_curve_01_is_refused():
    curves = [name for name in defaults("01_toy_superposition") if name.startswith("curve_") and name != "curve_seeds"]
    with pytest.raises(ParameterError, match="at least one of them"):
        resolve("01_toy_superposition", {name: [] for name in curves})


def test_a_long_value_is_cut_in_a_message():
    for given in ({"model": "x" * 10**6, "layr": 1}, {"layr" * 10**5: "y" * 10**6}, {"arms": ["random"] * 10**5}):
        with pytest.raises(ParameterError) as refusal:
            resolve("04_sae_compare", {"k": 0} | given)
        assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1.0e-3", 0.001), ("5e2", 500.0), ("500_000", 500_000), ("[8, 1e-3]", [8, 0.001]), ("", None),
        ("no", "no"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("true", True), ("None", None), ("~", None),
        ("'010'", "010"), ("0", 0), ("-0.5", -0.5), ("a/b:c#d", "a/b:c#d"),
    ],
)  # fmt: skip
def test_yaml_is_read_as_it_is_meant(text, value):
    read = yaml_value(text, "-p name")
    assert read == value and type(read) is type(value)


def test_a_value_on_the_command_line_is_read_as_in_a_file():
    assert parsed([("lr", "1e-3"), ("l1", "None"), ("layers", "[8, -1]")]) == {
        "lr": 1e-3,
        "l1": None,
        "layers": [8, -1],
    }
    with pytest.raises(ParameterError, match=r"^-p layers, line 1, column 4: expected the node content"):
        parsed([("layers", "[8,")])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("k: 8\nlr: 1\nk: 16\n", "line 3, column 1: k is there twice"),
        ("k: 010", "010 begins with 0"),
        ("k: &a [1]\nl: *a", "anchors"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "anchors"),
        ("k: !!python/name:os.system x", "tags"),
        ("k: [1,", "line 1, column 7"),
        ("k: 1\n\tl: 2", "line 2"),
        ("k: " + "9" * 10_000, "digits"),
        ("[" * 5000, "recursion"),
        ("k: \x07", "special characters"),
    ],
)
def test_what_yaml_might_mean_otherwise_is_refused_in_one_line_with_the_path(text, told, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError) as refusal:
        read_parameter_file(path)
    said = str(refusal.value)
    assert said.startswith(str(path)) and told in said and "\n" not in said and len(said) < len(str(path)) + 400


def test_a_file_that_is_not_utf8_is_refused_with_path_and_byte(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"profile: caf\xe9\n")
    with pytest.raises(ParameterError, match=r"latin.yaml: not UTF-8 text \(byte 12\)"):
        read_parameter_file(tmp_path / "latin.yaml")


def test_infinity_is_refused_as_a_number_and_as_the_text_that_papermill_writes():
    with pytest.raises(ParameterError, match="lr = inf: input should be a finite number"):
        resolve("04_sae_compare", {"lr": float("inf")})
    with pytest.raises(ParameterError, match=r"lr = \"float\('inf'\)\""):
        resolve("04_sae_compare", {"lr": "float('inf')"})


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_parameters_cell_is_what_the_class_says(notebook):
    cells = jupytext.read(NOTEBOOK_FOLDER / f"{notebook}.py").cells
    (cell,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert cell == parameters_cell(notebook), "run `make notebooks`"
    # papermill's help reads a parameter from one line, and 04's list of arms is longer than a page is wide
    assert all(len(line) <= 120 for line in cell.splitlines() if not line.startswith("arms: "))
    namespace = {}
    exec(cell, namespace)
    assert {name: namespace[name] for name in NOTEBOOKS[notebook].model_fields} == defaults(notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_defaults_are_values_that_the_class_allows(notebook):
    assert resolve(notebook, defaults(notebook)) == resolve(notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_shows_every_parameter_with_type_default_and_help(notebook):
    shown = inspect_notebook(NOTEBOOK_FOLDER / f"{notebook}.ipynb")
    assert set(shown) == set(NOTEBOOKS[notebook].model_fields)
    assert all(
        one["inferred_type_name"] in ("str", "int", "float", "bool", "list") and one["default"] and one["help"]
        for one in shown.values()
    )
