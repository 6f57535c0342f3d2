"""Where a notebook's parameters come from, and how they are checked before any compute.

`rkcnn_lib.runs.schemas` holds them: type, default, help and allowed values (kinds of values: `fields`).
``python -m rkcnn_lib.runs.params`` writes the notebooks' cells tagged ``parameters`` from it; parameter files
(``params/PROFILE/NOTEBOOK.yaml``) and ``-p name value`` override the defaults.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rkcnn_lib.files import ROOT, write_text
from rkcnn_lib.runs.fields import ParameterError, yaml_value
from rkcnn_lib.runs.schemas import NOT_DECIDING, NOTEBOOKS, Parameters
from rkcnn_lib.strings import cut

NOTEBOOK_FOLDER = ROOT / "notebooks"
CELL_BEGINS, CELL_ENDS = '# %% tags=["parameters"]\n', "\n\n# %%"
Schema = TypeVar("Schema", bound=BaseModel)


def check_notebook(notebook: str) -> str:
    """Return ``notebook`` if it is one of the six, else raise ParameterError naming the nearest."""
    if notebook not in NOTEBOOKS:
        near = difflib.get_close_matches(notebook, NOTEBOOKS, n=1, cutoff=0.0)[0]
        there = ", ".join(NOTEBOOKS)
        raise ParameterError(f"no notebook {cut(repr(notebook))}; did you mean {near!r}? There are: {there}")
    return notebook


def resolve(notebook: str, given: dict[str, Any] | None = None) -> Parameters:
    """Return the checked parameters of a run: those given, defaults for the others; raise ParameterError."""
    return checked(NOTEBOOKS[check_notebook(notebook)], given or {}, notebook)


def defaults(notebook: str) -> dict[str, Any]:
    return resolve(notebook).model_dump()


def checked(schema: type[Schema], values: dict[str, Any], what: str) -> Schema:
    """Return ``values`` as ``schema``; a refusal (:class:`ParameterError`) begins with ``what``."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_problem(schema, item) for item in error.errors(include_url=False))
        raise ParameterError("\n  - ".join([f"{what} refuses its parameters:", *problems])) from None


def _problem(schema: type[BaseModel], item: Mapping[str, Any]) -> str:
    name = cut(".".join(str(part) for part in item["loc"]))
    given = f"{name} = {cut(repr(item['input']))}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, schema.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(schema.model_fields)}"
        return f"{given}: no such parameter; {hint}"
    if item["type"] == "value_error":  # our own validators of several parameters name them themselves
        return f"{given}: {item['ctx']['error']}" if name else cut(str(item["ctx"]["error"]), 600)
    return f"{given}: {item['msg'][0].lower()}{item['msg'][1:]}"


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Read one YAML file of parameters; an empty file means no overrides."""
    if not path.is_file():
        raise ParameterError(f"no parameter file {path}")
    try:
        values = yaml_value(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not isinstance(values, dict | None):
        raise ParameterError(f"{path}: expected lines `name: value`, found {type(values).__name__}")
    return values or {}


def parameters_cell(notebook: str) -> str:
    """Return the source of a notebook's parameters cell: lines ``name: type = default  # help``."""
    fields, lines = NOTEBOOKS[notebook].model_fields, []
    for name in sorted(fields, key=NOT_DECIDING.__contains__):
        field = fields[name]
        about = field.description or " or ".join(", ".join(get_args(field.annotation)).rsplit(", ", 1))
        lines.append(f"{name}: {_kind(field.annotation)} = {_literal(field.default)}  # {about}")
    return "\n".join(lines)


def _kind(annotation: Any) -> str:
    """Return the plain type behind an annotation: that of ``Count | None`` is int."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return _kind(parts[0])
    return type(parts[0]).__name__ if origin is Literal else (origin or annotation).__name__


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value)
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        path = NOTEBOOK_FOLDER / f"{notebook}.py"
        before, _, rest = path.read_text(encoding="utf-8").partition(CELL_BEGINS)
        after = rest.partition(CELL_ENDS)[2]
        write_text(path, before + CELL_BEGINS + parameters_cell(notebook) + CELL_ENDS + after)
