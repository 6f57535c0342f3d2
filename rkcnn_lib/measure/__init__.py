"""Tensors in, numbers out: recovery of known directions, quality and stability of SAEs, interventions, statistics."""

from rkcnn_lib.measure.quality import explained_variance, frozen_dictionary_ev, quality
from rkcnn_lib.measure.recovery import chance, matched_cosine, mmcs, precision, recovery_rate
from rkcnn_lib.measure.stability import pw_max_cosine, pw_mcc, shared_latents, subspace_overlap
from rkcnn_lib.measure.statistics import tokens_to_quality

__all__ = [
    "chance",
    "explained_variance",
    "frozen_dictionary_ev",
    "matched_cosine",
    "mmcs",
    "precision",
    "pw_max_cosine",
    "pw_mcc",
    "quality",
    "recovery_rate",
    "shared_latents",
    "subspace_overlap",
    "tokens_to_quality",
]
