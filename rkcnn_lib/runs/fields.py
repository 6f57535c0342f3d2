"""What parameters are made of: values as a person writes them, bounded numbers, lists without repeats.

YAML is read by the rules of YAML 1.2: ``1e-3`` is a number, ``no`` and ``2024-01-01`` are texts. (By those of 1.1,
which PyYAML follows, ``1e-3`` is a text, ``010`` is 8 and ``1:30`` is 90.) ``None`` is none, as in Python.
"""

import re
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from rkcnn_lib.strings import cut


class ParameterError(ValueError):
    """Parameters that a notebook refuses; the message has one line a problem: name, value, what is allowed."""


def yaml_value(text: str, where: str) -> Any:
    """Return the value of one YAML text; raise ParameterError, in one line that begins with ``where``, if it has none.

    Refused are also keys that are there twice, numbers with leading zeros, and anchors, aliases and tags, which no
    parameter needs (nine lines of them make a billion values).
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ParameterError(f"{where}{place}: {cut(' '.join(str(reason).split()))}") from None
    except (ValueError, RecursionError) as error:  # a number of 10,000 digits; brackets 1,000 deep
        raise ParameterError(f"{where}: not read as YAML: {cut(str(error))}") from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # those of YAML 1.2 are added below

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or getattr(event, "tag", None):
            _refuse(event, "anchors (&), aliases (*) and tags (!) are not read here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    _refuse(key, f"{cut(key.value)} is there twice: keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def begins_with_0(self, node: yaml.ScalarNode) -> None:
        _refuse(node, f"{cut(node.value)} begins with 0: leave the zero out, or quote it if it is a text")


def _refuse(at: Any, why: str) -> None:
    raise yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)


_DECIMAL = r"[-+]?([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("zero", r"[-+]?0[0-9_]+", list("-+0")),
    ("float", rf"{_DECIMAL}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:zero", _Loader.begins_with_0)


# ---------------------------------------------------------------- fields of parameters


def at_least(least: int, most: int = 10**12) -> Any:
    """Return the type of a whole number within bounds; what the model and the memory allow is looked at later."""
    return Annotated[int, Field(ge=least, le=most)]


def several(item: Any, least: int = 0) -> Any:
    """Return the type of a list of distinct values: one that is there twice would be computed and written twice."""
    length = Field(min_length=least, max_length=1000)
    return Annotated[list[item], BeforeValidator(_listed), length, AfterValidator(_distinct)]


def _listed(value: Any) -> Any:
    """Turn the string that ``papermill -p layers "[8, 12]"`` hands over into the list it means."""
    if isinstance(value, str):
        parsed = yaml_value(value, "as a list")
        value = parsed if isinstance(parsed, list) else [parsed]
    return _no_truths(value)


def _distinct(values: list[Any]) -> list[Any]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"name each value once, not {cut(repr(twice[0]))} again")
    return values


def _no_truths(value: Any) -> Any:
    if any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
        raise ValueError("true and false are no numbers and no names")
    return value


def require(holds: bool, p: BaseModel, names: str, why: str) -> None:
    """Raise ValueError, with the values of the parameters named and why, unless something holds."""
    if not holds:
        values = ", ".join(f"{name} = {cut(repr(getattr(p, name)))}" for name in names.split())
        raise ValueError(f"{values}: {why}")


class Checked(BaseModel):
    """No unknown name, no infinite number, and no yes or no where a number is asked (``true`` would be 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truths_where_asked(cls, value: Any, info: Any) -> Any:
        return value if cls.model_fields[info.field_name].annotation is bool else _no_truths(value)


def param(default: Any, about: str | None = None) -> Any:
    """Return a parameter's default and what its comment in the notebook says; None: the values it may have."""
    return Field(default, description=about)


def with_defaults(**defaults: Any) -> Any:
    """Decorate a notebook's class: inherited parameters get other defaults."""

    def decorate(schema: type[BaseModel]) -> type[BaseModel]:
        for name, default in defaults.items():
            schema.model_fields[name].default = default
        schema.model_rebuild(force=True)
        return schema

    return decorate
