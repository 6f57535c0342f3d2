"""notebooks/*.py are the source; each *.ipynb says the same, holds no outputs, and has one parameters cell."""

import ast

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks

from rkcnn_lib.runs.params import NOTEBOOK_FOLDER, NOTEBOOKS, defaults, resolve

EACH = pytest.mark.parametrize("notebook", NOTEBOOKS)


def test_there_are_six_pairs_and_nothing_else():
    assert sorted(p.stem for p in NOTEBOOK_FOLDER.glob("*.py")) == list(NOTEBOOKS)
    assert sorted(p.stem for p in NOTEBOOK_FOLDER.glob("*.ipynb")) == list(NOTEBOOKS)


@EACH
def test_the_pair_says_the_same(notebook):
    source = jupytext.read(NOTEBOOK_FOLDER / f"{notebook}.py")
    built = nbformat.read(NOTEBOOK_FOLDER / f"{notebook}.ipynb", as_version=4)
    compare_notebooks(built, source, fmt="py:percent", compare_ids=False)


@EACH
def test_the_built_notebook_holds_no_outputs_and_names_the_kernel(notebook):
    built = nbformat.read(NOTEBOOK_FOLDER / f"{notebook}.ipynb", as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in built.cells)
    assert built.metadata["kernelspec"]["name"] == "python3"


@EACH
def test_the_first_cell_asks_and_the_second_holds_commented_literals(notebook):
    cells = jupytext.read(NOTEBOOK_FOLDER / f"{notebook}.py").cells
    assert cells[0].cell_type == "markdown" and "?" in cells[0].source.splitlines()[0]
    assert [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])] == [1]
    for line in cells[1].source.splitlines():
        assert ":" in line and "#" in line, f"no type or no comment: {line}"


@EACH
def test_the_defaults_are_what_the_parameter_model_asks_for(notebook):
    assert set(defaults(notebook)) == set(NOTEBOOKS[notebook].model_fields)
    assert resolve(notebook).profile == "gpt2"


@EACH
def test_notebooks_call_and_do_not_compute(notebook):
    for cell in jupytext.read(NOTEBOOK_FOLDER / f"{notebook}.py").cells:
        if cell.cell_type == "code":
            nodes = list(ast.walk(ast.parse(cell.source)))
            assert not any(isinstance(n, ast.For | ast.While | ast.FunctionDef | ast.ClassDef) for n in nodes)


@EACH
def test_every_figure_is_shown_with_its_finding_and_a_note(notebook):
    source = ast.parse((NOTEBOOK_FOLDER / f"{notebook}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    shown = [call for call in calls if ast.unparse(call.func) == "figures.show"]
    assert shown and all(len(call.args) == 3 for call in shown), [call.lineno for call in shown if len(call.args) != 3]
