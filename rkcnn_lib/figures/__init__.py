"""Every figure of the report, in one visual language; each function returns a plotly Figure."""

from __future__ import annotations

from rkcnn_lib.figures.activations import norms_by_position, spectrum, variance_by_dimension
from rkcnn_lib.figures.arms import (
    arm_metrics,
    frozen_dictionary,
    paired_differences,
    quality_front,
    training_curves,
    verdict_overview,
)
from rkcnn_lib.figures.curves import recovery_curve, recovery_curves
from rkcnn_lib.figures.display import show
from rkcnn_lib.figures.fourier import frequency_power
from rkcnn_lib.figures.latents import cosine_histograms, dead_curve, density, latent_map
from rkcnn_lib.figures.layers import causal_by_layer, causal_effects, layer_differences, layer_heatmap
from rkcnn_lib.figures.mining import (
    mined_slider,
    mined_versus_true,
    recovery_by_miner,
    score_distribution,
    selectivity,
)
from rkcnn_lib.figures.style import ARM_COLOURS, ARM_MARKERS, METRIC_LABELS, escape, rival, style_of
from rkcnn_lib.figures.sweeps import sensitivity
from rkcnn_lib.figures.tokens import next_tokens
from rkcnn_lib.figures.toy import interference, toy_curves, toy_directions

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
