"""Every figure of the report, in one visual language; each function returns a plotly Figure, `show` displays it.

A figure takes a tidy table, whose columns its docstring names (or arrays by name); its title, the finding in words, is
given to `show`. Text from data is escaped. An empty table, or one that lacks a column, is a ValueError.
"""

# ruff: noqa: F401 (what is imported here is the list of figures)
from __future__ import annotations

from rkcnn_lib.figures.arrows import mined_slider, toy_directions
from rkcnn_lib.figures.display import show
from rkcnn_lib.figures.dots import arm_metrics, next_tokens, recovery_by_miner, selectivity, sensitivity
from rkcnn_lib.figures.forest import causal_by_layer, causal_effects, layer_differences, paired_differences
from rkcnn_lib.figures.heat import interference, layer_heatmap, mined_versus_true
from rkcnn_lib.figures.histograms import (
    cosine_histograms,
    density,
    frequency_power,
    latent_map,
    score_distribution,
    spectrum,
    variance_by_dimension,
)
from rkcnn_lib.figures.lines import (
    funnel,
    norms_by_position,
    quality_front,
    recovery_curve,
    recovery_curves,
    toy_curves,
    training_curves,
)
from rkcnn_lib.figures.style import style_of
