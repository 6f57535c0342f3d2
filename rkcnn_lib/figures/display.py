"""How a figure is shown in a notebook: the figure, then one line of interpretation under it."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from IPython.display import HTML, display

from rkcnn_lib.figures.style import escape

MIMETYPE = "application/vnd.plotly.v1+json"
HERO = "rkcnn_hero"  # in an output's metadata: the note of a figure that leads the index


def show(fig: go.Figure, note: str, *, hero: bool = False) -> None:
    """Display a figure and, below it, a line that begins with *Figure note*.

    Parameters
    ----------
    fig : plotly.graph_objects.Figure
        A plain figure: a FigureWidget stores megabytes in the notebook and is dead once exported.
    note : str
        What the figure shows, its chance level and what it does not show; plain text, escaped here.
    hero : bool
        Whether the report's index shows this figure too.

    Raises
    ------
    ValueError
        If ``fig`` is a FigureWidget or draws nothing, or the note is empty.
    """
    if not note.strip():
        raise ValueError("show: a figure needs a note that says what to read in it")
    display(bundle(fig), raw=True, metadata={HERO: note} if hero else None)
    display(HTML(note_html(note)))


def note_html(note: str) -> str:
    """Return a figure's note as HTML; its text is escaped here."""
    return f'<p class="figure-note"><b>Figure note.</b> {escape(note)}</p>'


def bundle(fig: go.Figure) -> dict[str, Any]:
    """Return what a notebook stores of a figure, by mime type; refuses what :func:`show` refuses."""
    if type(fig).__name__ == "FigureWidget":
        raise ValueError("show: give a plotly Figure, not a FigureWidget (it does not survive export)")
    if not len(fig.data):
        raise ValueError("show: the figure has no traces")
    spec = json.loads(fig.to_json())
    spec["config"] = {"responsive": True, "displaylogo": False}
    name = " ".join((fig.layout.title.text or "figure").replace("<br>", " ").split())
    return {MIMETYPE: spec, "text/plain": f"[figure] {name}"}
