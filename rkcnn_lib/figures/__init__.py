"""Every figure of the report, in one visual language; each function returns a plotly Figure.

A figure takes a tidy table, whose columns its docstring names (or arrays by name), and a title: the finding, in words.
Text from data is escaped. An empty table, one that lacks a column, or values outside their range are a ValueError.

    lines        lines with bands along a quantity            heat        heat maps
    dots         dots with intervals, in rows or along        histograms  step lines over bins
    forest       differences and effects, their margins       arrows      arrows on a plane, with a slider
    activations  norms, variances, spectra                    display     drop-downs, sliders, titles; `show`
"""

from __future__ import annotations

from rkcnn_lib.figures.activations import frequency_power, norms_by_position, spectrum, variance_by_dimension
from rkcnn_lib.figures.arrows import mined_slider, toy_directions
from rkcnn_lib.figures.display import show
from rkcnn_lib.figures.dots import arm_metrics, next_tokens, recovery_by_miner, selectivity, sensitivity
from rkcnn_lib.figures.forest import (
    causal_by_layer,
    causal_effects,
    layer_differences,
    paired_differences,
    verdict_overview,
)
from rkcnn_lib.figures.heat import interference, layer_heatmap, mined_versus_true
from rkcnn_lib.figures.histograms import cosine_histograms, density, latent_map, score_distribution
from rkcnn_lib.figures.lines import (
    dead_curve,
    frozen_dictionary,
    quality_front,
    recovery_curve,
    recovery_curves,
    toy_curves,
    training_curves,
)
from rkcnn_lib.figures.style import ARM_COLOURS, ARM_MARKERS, METRIC_LABELS, escape, rival, style_of

__all__ = [
    "ARM_COLOURS",
    "ARM_MARKERS",
    "METRIC_LABELS",
    "arm_metrics",
    "causal_by_layer",
    "causal_effects",
    "cosine_histograms",
    "dead_curve",
    "density",
    "escape",
    "frequency_power",
    "frozen_dictionary",
    "interference",
    "latent_map",
    "layer_differences",
    "layer_heatmap",
    "mined_slider",
    "mined_versus_true",
    "next_tokens",
    "norms_by_position",
    "paired_differences",
    "quality_front",
    "recovery_by_miner",
    "recovery_curve",
    "recovery_curves",
    "rival",
    "score_distribution",
    "selectivity",
    "sensitivity",
    "show",
    "spectrum",
    "style_of",
    "toy_curves",
    "toy_directions",
    "training_curves",
    "variance_by_dimension",
    "verdict_overview",
]
