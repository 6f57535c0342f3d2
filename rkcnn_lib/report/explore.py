"""Live exploration in JupyterLab (ipywidgets); every widget has a native figure beside it that pages can show."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from rkcnn_lib.measure import matched_cosine
from rkcnn_lib.report import figures
from rkcnn_lib.report.figures.display import bundle
from rkcnn_lib.report.runs import Run
from rkcnn_lib.report.studies.planes import Planes, mine_plane, states


def toy_plane(planes: Planes, run: Run) -> None:
    """Choose how often features are active, one of the trained 5 -> 2 models and a miner; see what it finds.

    The models are those already trained; mining a plane takes well under a second.
    """
    probabilities = planes.table["probability"].drop_duplicates().tolist()
    n_instances = int(planes.table["instance"].max()) + 1
    probability = widgets.SelectionSlider(
        options=probabilities, value=probabilities[-1], description="p(active)", continuous_update=False
    )
    instance = widgets.IntSlider(0, 0, n_instances - 1, description="model", continuous_update=False)
    miner = widgets.Dropdown(options=run.p.miners, value="rkcnn_lift", description="miner")

    def drawn() -> dict[str, Any]:
        X, truth = states(planes, probability.value, instance.value)
        D = mine_plane(X, run.p, miner.value)
        met = f"{matched_cosine(D, truth):.3f}" if len(truth) else "undefined"
        title = f"{miner.value}: {len(D)} directions for {len(truth)} features, matched cosine {met}"
        return bundle(figures.mined_slider({"mined": (np.asarray(truth), np.asarray(D))}, title=title))

    display(widgets.HBox([probability, instance, miner]))
    # A figure that is replaced in place. An Output widget would do the same, but running headlessly it now and then
    # never lets its cell end: the client answers it while the kernel is busy.
    shown = display(drawn(), raw=True, display_id=True)
    for control in (probability, instance, miner):
        control.observe(lambda change: shown.update(drawn(), raw=True), names="value")
