"""Drop-downs, buttons, sliders, and the last touch that gives a figure its title, margins and size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rkcnn_lib.figures.style import escape
from rkcnn_lib.strings import cut

TITLE_COLUMNS = 92  # characters a title line holds on a notebook-wide figure
TITLE_LINE = 22  # pixels
MENU_SPACE = 46  # pixels above the plot for a drop-down or a row of buttons
SLIDER_SPACE = 86  # pixels below the plot for a slider


class Choices:
    """Traces that a drop-down shows one set at a time; with a single set there is no drop-down."""

    def __init__(self, fig: go.Figure) -> None:
        self.fig = fig
        self._sets: list[tuple[str, int, int, dict[str, Any]]] = []

    def add(self, name: str, traces: Iterable[go.Scatter], layout: dict[str, Any] | None = None) -> None:
        """Add the traces of one choice; ``layout`` holds what changes with it (``{"xaxis.range": ...}``)."""
        start = len(self.fig.data)
        self.fig.add_traces(list(traces))
        self._sets.append((name, start, len(self.fig.data), layout or {}))

    def close(self) -> None:
        """Show the first choice and add the drop-down."""
        total = len(self.fig.data)
        for _, start, stop, _ in self._sets[1:]:
            for trace in self.fig.data[start:stop]:
                trace.visible = False
        for path, value in self._sets[0][3].items():
            self.fig.update_layout({path.replace(".", "_"): value})
        if len(self._sets) > 1:
            buttons = [
                {
                    "label": cut(name, 60),
                    "method": "update",
                    "args": [{"visible": [start <= i < stop for i in range(total)]}, layout],
                }
                for name, start, stop, layout in self._sets
            ]
            add_menu(self.fig, {"type": "dropdown", "buttons": buttons, "active": 0, "x": 0, "xanchor": "left"})


def add_menu(fig: go.Figure, menu: dict[str, Any]) -> None:
    """Put a drop-down or a row of buttons right above the plot."""
    placed = {"y": 1, "yanchor": "bottom", "pad": {"b": 10}, "showactive": True} | menu
    fig.update_layout(updatemenus=[*fig.layout.updatemenus, placed])


def log_axis(values: Any) -> dict[str, Any]:
    """A logarithmic axis with few labels: 1, 2 and 5 of each decade, or decades only where there are many."""
    values = np.asarray(values, dtype=float)
    decades = np.log10(values.max() / values.min())
    return {"type": "log", "tickmode": "linear", "dtick": 1 if decades > 3.5 else "D2"}


def scale_buttons(fig: go.Figure, axis: str, first: str) -> None:
    """Linear and logarithmic scale for ``axis`` ("xaxis" or "yaxis"), beginning with ``first``."""
    kinds = {
        "log": {"type": "log", "tickmode": "linear", "dtick": "D2", "autorange": True},
        "linear": {"type": "linear", "tickmode": "auto", "autorange": True},
    }
    fig.update_layout({axis: kinds[first]})
    buttons = [
        {
            "label": f"{kind} {axis[0]}",
            "method": "relayout",
            "args": [{f"{axis}.{key}": value for key, value in kinds[kind].items()}],
        }
        for kind in sorted(kinds, key=lambda kind: kind != first)
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "active": 0, "x": 1, "xanchor": "right"}
    add_menu(fig, menu)


def add_slider(
    fig: go.Figure, frames: Mapping[str, list[dict[str, Any]]], prefix: str = "", play: bool = False, active: int = 0
) -> None:
    """Add frames (name -> updates of the traces, in their order) and the native slider that goes through them.

    ``active`` is the number of the frame that the figure itself shows; ``play`` adds a button that goes through all.
    Values in frames must be plain lists: what a browser reads inside a frame is not decoded from binary.
    """
    names = list(frames)
    fig.frames = [go.Frame(name=str(i), data=frames[name]) for i, name in enumerate(names)]
    moved = {"mode": "immediate", "transition": {"duration": 250}, "frame": {"duration": 350, "redraw": True}}
    steps = [{"label": escape(name), "method": "animate", "args": [[str(i)], moved]} for i, name in enumerate(names)]
    fig.update_layout(
        sliders=[
            {
                "steps": steps,
                "active": active,
                "x": 0,
                "len": 1,
                "pad": {"t": 46, "b": 4},
                "currentvalue": {"prefix": escape(prefix), "xanchor": "left", "font": {"size": 13}},
            }
        ]
    )
    if play:
        menu = {
            "type": "buttons",
            "x": 1,
            "xanchor": "right",
            "showactive": False,
            "buttons": [{"label": "▶ play", "method": "animate", "args": [None, moved]}],
        }
        add_menu(fig, menu)


def finish(fig: go.Figure, title: str | None, height: int, legend: str | None = None, **layout: Any) -> go.Figure:
    """Give a figure the template, its title (escaped, wrapped), its margins and a height in pixels.

    ``legend`` is "right" (many entries), "top" (a few, beside the menu) or None.
    ``height`` is that of the plot with its axes; room for title, menu and slider is added. The room that the
    title takes is written into ``layout.meta`` so that a page may set the title as text of its own.
    """
    lines = textwrap.wrap(title, TITLE_COLUMNS) if title else []
    title_space = 14 + TITLE_LINE * len(lines) if lines else 0
    top = 18 + title_space + (MENU_SPACE if fig.layout.updatemenus or legend == "top" else 0)
    bottom = 58 + (SLIDER_SPACE if fig.layout.sliders else 0)
    fig.update_layout(
        template="rkcnn",
        height=height + top + (bottom - 58),
        showlegend=legend is not None,
        margin={"t": top, "b": bottom},
        meta={"rkcnn_title_space": title_space},
        **layout,
    )
    if legend == "top":
        fig.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})
    if lines:
        fig.update_layout(
            title={
                "text": "<br>".join(escape(line) for line in lines),
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 12},
            }
        )
    return fig
