"""What parameters are made of: bounded numbers, lists without repeats, and a class that refuses the rest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from rkcnn_lib.runs.yaml_values import cut, yaml_value


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
