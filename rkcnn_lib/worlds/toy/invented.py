"""Activations made here that 04 and sweeps run on like a model's: their true directions are known."""

from __future__ import annotations

# `toy` is the 20-feature, 5-dimension model of notebook 01, `planted` a random dictionary in heavy superposition.
PLANTED = {"n_features": 256, "d": 64, "mean_active": 4.0}
TOY = {"n_features": 20, "n_hidden": 5, "n_active": 2, "steps": 2000}
WIDTHS = {"toy": TOY["n_hidden"], "planted": PLANTED["d"]}
INVENTED_MODELS = tuple(WIDTHS)
