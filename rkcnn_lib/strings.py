"""Strings from data made fit for a page: nothing in them reorders the text around it or stretches the page."""

from __future__ import annotations

import json
import re
from typing import Any

# Marks that change the direction of the text after them, other control characters, and halves of surrogate
# pairs, which no UTF-8 file can hold. Tabs and line ends stay.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LABEL = 80  # characters that an axis, a legend or a menu has room for
ECHOED = 200  # characters of a value that a message repeats
HOVER = 600  # characters of one text shown on hover
_LABELS = {"name", "legendgroup", "label", "ticktext", "x", "y", "prefix", "labels"}


def visible(text: str) -> str:
    """Return ``text`` with control and direction characters spelled out, as ``⟨U+202E⟩``.

    A right-to-left override in a token would otherwise turn around the numbers that follow it on the page.
    """
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def cut(text: str, length: int = ECHOED) -> str:
    """Return ``text`` at most ``length`` characters long (and a note of its own length), whole if it is short.

    Both ends are kept, and neither an entity nor a tag is cut through.
    """
    if len(text) <= length:
        return text
    head = re.sub(r"(&[^;\s]{0,8}|<[^>]*)$", "", text[: length * 2 // 3])
    tail = re.sub(r"^([^<>&\s]{0,40}>|[a-z#0-9]{0,6};)", "", text[-(length // 6) :])
    return f"{head} … {tail} ({len(text):,} characters)"


def script_json(value: Any) -> str:
    """Return JSON to stand in a script element, where only "<" could end the element or open a comment."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def fit_figure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a figure's data, layout, frames and config with its strings made visible and cut to their room.

    What is drawn binary (``bdata``) is left as it is; so are templates of the hover, whose fields fill later.
    """

    def fit(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: fit(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [fit(inner, key) for inner in value]
        if not isinstance(value, str) or key == "bdata":
            return value
        return cut(value, LABEL if key in _LABELS else HOVER)

    return fit(json.loads(visible(json.dumps(spec, ensure_ascii=False))), "")
