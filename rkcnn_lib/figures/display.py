"""What every figure begins and ends with: tables checked, drop-downs, sliders, axes, size, title and note beside it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, display

from rkcnn_lib.figures.style import escape
from rkcnn_lib.strings import cut

MIMETYPE = "application/vnd.plotly.v1+json"
TITLE = "rkcnn_title"  # in an output's metadata: the title of a figure
HERO = "rkcnn_hero"  # there too: the note of a figure that leads the index
MENU_SPACE = 46  # pixels above the plot for a drop-down or a row of buttons
SLIDER_SPACE = 86  # pixels below the plot for a slider

# One choice of a drop-down: its name, its traces, and what of the layout goes with it ({"xaxis.range": ...}).
Choice = tuple[str, Sequence[Any], Mapping[str, Any]]


def show(fig: go.Figure, title: str, note: str, *, hero: bool = False) -> None:
    """Display a figure between its title, the finding in words, and a line that begins with *Figure note*.

    Title and note are plain text, escaped here. The note says what is shown, its chance level and what is not shown.
    The report's index shows a ``hero`` too. ValueError for a FigureWidget, a figure that draws nothing, and an empty
    title or note.
    """
    if not (title.strip() and note.strip()):
        raise ValueError("show: a figure needs a title, its finding, and a note that says what to read in it")
    figure = bundle(fig, title)
    display(HTML(title_html(title)))
    display(figure, raw=True, metadata={TITLE: title} | ({HERO: note} if hero else {}))
    display(HTML(note_html(note)))


def title_html(title: str) -> str:
    """Return a figure's title as HTML, escaped; pages leave it out, since they caption the figure with it."""
    return f'<p class="figure-title"><b>{escape(title)}</b></p>'


def note_html(note: str) -> str:
    """Return a figure's note as HTML, escaped."""
    return f'<p class="figure-note"><b>Figure note.</b> {escape(note)}</p>'


def bundle(fig: go.Figure, title: str) -> dict[str, Any]:
    """Return what a notebook stores of a figure, by mime type."""
    if type(fig).__name__ == "FigureWidget":
        raise ValueError("show: give a plotly Figure, not a FigureWidget (it does not survive export)")
    if not len(fig.data):
        raise ValueError("show: the figure has no traces")
    spec = json.loads(fig.to_json())
    spec["config"] = {"responsive": True, "displaylogo": False}
    return {MIMETYPE: spec, "text/plain": f"[figure] {title}"}


def checked(table: pd.DataFrame, columns: Sequence[str], numeric: Sequence[str]) -> pd.DataFrame:
    """Rows of ``table`` whose numeric columns are all finite; ValueError: a missing column, no such row."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"the table lacks {missing}; it has {list(table.columns)} and needs {list(columns)}")
    if table.empty:
        raise ValueError("the table has no rows, so there is nothing to draw")
    table = table.assign(**{name: pd.to_numeric(table[name], errors="coerce").astype("float64") for name in numeric})
    finite = table[np.isfinite(table[list(numeric)]).all(axis=1)]
    if finite.empty:
        raise ValueError(f"no row has finite values in {list(numeric)}")
    return finite


def as_array(values: Any) -> np.ndarray:
    """An array or a tensor as float64."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def parts_of(table: pd.DataFrame, column: str = "metric") -> list[tuple[str, pd.DataFrame]]:
    """The rows of each value of ``column``, in order of appearance; all, named "value", where there is none."""
    if column not in table.columns:
        return [("value", table)]
    return [(str(name), table[table[column] == name]) for name in table[column].unique()]


def chosen(choices: Sequence[Choice]) -> go.Figure:
    """A figure whose traces a drop-down shows one set at a time; with a single set there is no drop-down.

    A trace that is "legendonly" waits in the legend whenever its set is shown.
    """
    fig = go.Figure([trace for _, traces, _ in choices for trace in traces])
    owners = [number for number, (_, traces, _) in enumerate(choices) for _ in traces]
    own = [True if trace.visible is None else trace.visible for trace in fig.data]
    for trace in fig.data[owners.count(0) :]:
        trace.visible = False
    fig.update_layout({path.replace(".", "_"): value for path, value in choices[0][2].items()})
    buttons = []
    for i, (name, _, layout) in enumerate(choices):
        visible = [owner == i and how for owner, how in zip(owners, own, strict=True)]
        buttons.append({"label": cut(name, 60), "method": "update", "args": [{"visible": visible}, dict(layout)]})
    if len(choices) > 1:
        add_menu(fig, buttons)
    return fig


def add_menu(fig: go.Figure, buttons: list[dict[str, Any]], **menu: Any) -> None:
    """Put a drop-down, or what else ``menu`` makes of it, right above the plot on its left."""
    looks = {"type": "dropdown", "active": 0, "showactive": True, "buttons": buttons, "pad": {"b": 10}}
    looks |= {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"} | menu
    fig.update_layout(updatemenus=[*fig.layout.updatemenus, looks])


def log_axis(values: Any) -> dict[str, Any]:
    """A logarithmic axis with few labels: 1, 2 and 5 of each decade, or decades only where there are many."""
    decades = np.log10(np.max(values) / np.min(values))
    return {"type": "log", "tickmode": "linear", "dtick": 1 if decades > 3.5 else "D2"}


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """The y axis of a dot plot whose rows are ``names``, first row on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [escape(name).replace(" - ", "<br>− ") for name in names],
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def window(values: Any, wide: Any = (), keep: Sequence[float] = ()) -> list[float]:
    """An axis range that holds ``values`` and ``keep`` and, up to three times their span, the ``wide`` ends.

    The t interval of two seeds is thirteen standard errors long: it runs out of the axis, and the hover names its ends.
    """
    core, ends = (np.asarray(some, dtype=float).ravel() for some in ([*np.ravel(values), *keep], wide))
    core, ends = core[np.isfinite(core)], ends[np.isfinite(ends)]
    low, high = core.min(), core.max()
    span = high - low or abs(high) * 0.2 or 1.0
    if ends.size:
        low, high = min(low, max(ends.min(), low - 1.5 * span)), max(high, min(ends.max(), high + 1.5 * span))
    pad = 0.06 * (high - low or span)
    return [float(low - pad), float(high + pad)]


def scale_buttons(fig: go.Figure, axis: str, first: str) -> None:
    """Linear and logarithmic scale for ``axis`` ("xaxis" or "yaxis"), beginning with ``first``."""
    scales = {
        "log": {"type": "log", "tickmode": "linear", "dtick": "D2", "autorange": True},
        "linear": {"type": "linear", "tickmode": "auto", "autorange": True},
    }
    fig.update_layout({axis: scales[first]})
    buttons = []
    for name, scale in sorted(scales.items(), key=lambda pair: pair[0] != first):
        changed = {f"{axis}.{key}": value for key, value in scale.items()}
        buttons.append({"label": f"{name} {axis[0]}", "method": "relayout", "args": [changed]})
    add_menu(fig, buttons, type="buttons", direction="right", x=1, xanchor="right")


def add_slider(fig: go.Figure, frames: Mapping[str, list[dict[str, Any]]], play: bool = False, active: int = 0) -> None:
    """Add frames (name -> updates of the traces, in their order) and the native slider that goes through them.

    ``active`` is the number of the frame that the figure itself shows; ``play`` adds a button that goes through all.
    Values in frames must be plain lists: what a browser reads inside a frame is not decoded from binary.
    """
    fig.frames = [go.Frame(name=str(i), data=data) for i, data in enumerate(frames.values())]
    moved = {"mode": "immediate", "transition": {"duration": 250}, "frame": {"duration": 350, "redraw": True}}
    steps = [{"label": escape(name), "method": "animate", "args": [[str(i)], moved]} for i, name in enumerate(frames)]
    looks = {"x": 0, "len": 1, "pad": {"t": 46, "b": 4}}
    looks["currentvalue"] = {"prefix": "", "xanchor": "left", "font": {"size": 13}}
    fig.update_layout(sliders=[{"steps": steps, "active": active, **looks}])
    if play:
        button = {"label": "▶ play", "method": "animate", "args": [None, moved]}
        add_menu(fig, [button], type="buttons", showactive=False, x=1, xanchor="right")


def finish(fig: go.Figure, height: int, legend: str | None = None, **layout: Any) -> go.Figure:
    """Give a figure the template, its margins and the height in pixels of its plot, with room for menu and slider.

    ``legend`` is "right" (many entries), "top" (a few, beside the menu) or None. ``layout.meta`` says what room is free
    once a page puts controls of its own in the place of menu and slider.
    """
    top = MENU_SPACE if fig.layout.updatemenus or legend == "top" else 0
    bottom = SLIDER_SPACE if fig.layout.sliders else 0
    fig.update_layout(
        template="rkcnn",
        height=height + 18 + top + bottom,
        showlegend=legend is not None,
        margin={"t": 18 + top, "b": 58 + bottom},
        meta={"rkcnn_room": {"t": 0 if legend == "top" else top, "b": bottom}},
        **layout,
    )
    if legend == "top":
        fig.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})
    return fig
