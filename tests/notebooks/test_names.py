"""What a notebook takes from the library is there: found without running it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_takes_from_the_library_is_there(notebook):
    tree = ast.parse(notebook.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rkcnn_lib"):
            package = importlib.import_module(node.module)
            for name in node.names:
                try:
                    modules[name.asname or name.name] = importlib.import_module(f"{node.module}.{name.name}")
                except ModuleNotFoundError:
                    assert hasattr(package, name.name), f"{node.module}.{name.name}"
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    ours = [(node.value.id, node.attr) for node in taken if node.value.id in modules]
    missing = [f"{module}.{name}" for module, name in ours if not hasattr(modules[module], name)]
    assert modules and not missing
