"""Where a notebook's parameters come from, and how they are checked before any compute.

A notebook's cell tagged ``parameters`` holds the defaults (typed literals, the real GPT-2 run); parameter files
(``params/PROFILE/NOTEBOOK.yaml``) and ``-p name value`` override them; `rkcnn_lib.runs.schemas` says what is allowed.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rkcnn_lib.files import ROOT
from rkcnn_lib.runs.schemas import (
    Cache,
    CausalChecks,
    Multilayer,
    Parameters,
    ProbeValidation,
    SaeCompare,
    ToySuperposition,
)
from rkcnn_lib.runs.yaml_values import ParameterError, cut, yaml_file, yaml_value

__all__ = [
    "NOTEBOOKS", "ParameterError", "assignments", "check_notebook", "checked", "defaults", "read_parameter_file",
    "resolve", "validate", "yaml_value",
]  # fmt: skip

NOTEBOOK_FOLDER = ROOT / "notebooks"
Model = TypeVar("Model", bound=BaseModel)

NOTEBOOKS: dict[str, type[Parameters]] = {
    "01_toy_superposition": ToySuperposition,
    "02_probe_validation": ProbeValidation,
    "03_gpt2_cache": Cache,
    "04_sae_compare": SaeCompare,
    "05_multilayer": Multilayer,
    "06_causal_checks": CausalChecks,
}


def check_notebook(notebook: str) -> str:
    """Return ``notebook`` if it is one of the six, else raise :class:`ParameterError` naming the nearest."""
    if notebook not in NOTEBOOKS:
        near = difflib.get_close_matches(notebook, NOTEBOOKS, n=1, cutoff=0.0)[0]
        raise ParameterError(
            f"no notebook {cut(repr(notebook))}; did you mean {near!r}? There are: {', '.join(NOTEBOOKS)}"
        )
    return notebook


def validate(notebook: str, values: dict[str, Any]) -> Parameters:
    """Check a notebook's values.

    Raises
    ------
    ParameterError
        One line a problem: the parameter, the bad value and what is allowed; for an unknown name the nearest
        known one.
    """
    return checked(NOTEBOOKS[check_notebook(notebook)], values, notebook)


def checked(schema: type[Model], values: dict[str, Any], what: str) -> Model:
    """Return ``values`` as ``schema``; a refusal (:class:`ParameterError`) begins with ``what``."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_problem(schema, item) for item in error.errors(include_url=False)]
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(problems))
        raise ParameterError(f"{what} refuses its parameters:\n{lines}") from None


def _problem(schema: type[BaseModel], item: dict[str, Any]) -> str:
    name = cut(".".join(str(part) for part in item["loc"]))
    if item["type"] == "missing":
        return f"{name}: missing; it must be set"
    told = f"{name} = {cut(repr(item['input']))}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, schema.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(schema.model_fields)}"
        return f"{told}: no such parameter; {hint}"
    if item["type"] == "value_error":  # our own validators of several parameters name them themselves
        return f"{told}: {item['ctx']['error']}" if name else cut(str(item["ctx"]["error"]), 600)
    return f"{told}: {item['msg'][0].lower()}{item['msg'][1:]}"


def defaults(notebook: str) -> dict[str, Any]:
    """Read the defaults from the ``parameters`` cell of ``notebooks/NOTEBOOK.py``."""
    import jupytext  # takes two seconds, and a running notebook does not need it

    cells = jupytext.read(NOTEBOOK_FOLDER / f"{check_notebook(notebook)}.py").cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return assignments(source)


def assignments(source: str) -> dict[str, Any]:
    """Return the names and literal values that a cell assigns, as papermill would see them."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = _literal(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _literal(node.value)
    return found


def _literal(node: ast.expr) -> Any:
    """Return a literal's value; the text of anything else, such as papermill's ``float('inf')``, which no number is."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Read one YAML file of parameters; an empty file means no overrides."""
    if not path.is_file():
        raise ParameterError(f"no parameter file {path}")
    values = yaml_file(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: expected lines `name: value`, found {type(values).__name__}")
    return values


def resolve(notebook: str, overrides: dict[str, Any] | None = None) -> Parameters:
    """Return the checked parameters of a run: the notebook's defaults with ``overrides`` over them."""
    return validate(notebook, defaults(notebook) | (overrides or {}))
