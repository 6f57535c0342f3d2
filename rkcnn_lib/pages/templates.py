"""The templates that pages are written by, and how they show numbers, durations and records."""

from __future__ import annotations

import math
from typing import Any

import jinja2
from markupsafe import Markup

from rkcnn_lib import figures
from rkcnn_lib.pages import answers, glossary
from rkcnn_lib.pages.figure import ASSETS, figure_block
from rkcnn_lib.strings import cut


def environment() -> jinja2.Environment:
    """Return the templates of all pages, with the filters and the glossary that they use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.globals["glossary"] = {term.name: term for term in glossary.terms()}
    found.filters |= {
        "signed": lambda value: _number(value, "+.3g"),
        "number": lambda value: _number(value, ".4g"),
        "short_number": lambda value: _number(value, ".3g"),
        "duration": _duration,
        "moment": lambda text: str(text or "unknown")[:16].replace("T", " "),
        "brief": brief,
        "reading": answers.reading,
        "rival": figures.rival,
        "figure": lambda spec, number: Markup(figure_block(number, spec)),  # escaped there
        "label": lambda name: Markup(figures.style.label(name)),  # escaped there
        "css": lambda text: str(text or "none").lower().replace(" ", "-"),
    }
    return found


def _number(value: Any, form: str) -> str:
    if isinstance(value, bool) or value is None:
        return "n/a" if value is None else ("yes" if value else "no")
    if isinstance(value, int | float):
        return format(value, form).replace("-", "−") if math.isfinite(value) else "n/a"
    return cut(str(value), 24)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def brief(value: Any, items: int = 12) -> str:
    """A value of a record as text: long lists and mappings cut, and saying so."""
    if isinstance(value, dict):
        shown = [f"{key}: {brief(inner, 6)}" for key, inner in list(value.items())[:items]]
        return "; ".join(shown) + (f"; … ({len(value)} entries)" if len(value) > items else "")
    if isinstance(value, list | tuple):
        shown = [brief(inner, 6) for inner in value[:items]]
        return ", ".join(shown) + (f", … ({len(value)} entries)" if len(value) > items else "")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)
