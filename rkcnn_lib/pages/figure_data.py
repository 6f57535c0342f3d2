"""In words, what a figure holds: for a reader without scripts, and for one who does not see it."""

from __future__ import annotations

import html
import re
from typing import Any

SERIES_NAMED = 12


def plain(text: object) -> str:
    """A text of plotly's pseudo-HTML without its tags, entities and forced line breaks."""
    return " ".join(html.unescape(re.sub(r"</?(?:br|b|i|sup|sub|span)\b[^>]*>", " ", str(text or ""))).split())


def in_words(spec: dict[str, Any]) -> str:
    """Series, axes, views and steps of a figure, in a sentence or two.

    Parameters
    ----------
    spec : dict
        data, layout and frames, as plotly writes them.
    """
    layout = spec.get("layout") or {}
    names = list(dict.fromkeys(name for trace in spec.get("data") or [] if (name := plain(trace.get("name")))))
    said = []
    if names:
        more = f" and {len(names) - SERIES_NAMED} more" if len(names) > SERIES_NAMED else ""
        said.append(f"Series: {', '.join(names[:SERIES_NAMED])}{more}.")
    axes = [f"{side}: {title}" for side in ("xaxis", "yaxis") if (title := _title(layout.get(side)))]
    if axes:
        said.append(" ".join(f"{axis.replace('xaxis', 'Across').replace('yaxis', 'Up')}." for axis in axes))
    menus = [menu for menu in layout.get("updatemenus") or [] if menu.get("type") == "dropdown"]
    views = [plain(button.get("label")) for menu in menus for button in menu.get("buttons") or []]
    if views:
        said.append(f"Views: {', '.join(views)}.")
    steps = [plain(step.get("label")) for slider in layout.get("sliders") or [] for step in slider.get("steps") or []]
    if steps:
        said.append(f"Steps: {', '.join(steps)}.")
    return " ".join(said) or "One series without a name."


def _title(axis: Any) -> str:
    title = axis.get("title") if isinstance(axis, dict) else None
    return plain(title.get("text") if isinstance(title, dict) else title)
