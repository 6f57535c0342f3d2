"""Where activations come from: invented data, toy models, the embedded language model, any causal language model.

Importing this room imports torch, but neither transformers nor transformer_lens nor datasets: those are imported
by the functions that need them.
"""

from __future__ import annotations

from rkcnn_lib.worlds.activations.capture import capture, capture_layers, check_sizes, open_or_capture
from rkcnn_lib.worlds.activations.store import ActivationStore, CacheError, MemoryStore
from rkcnn_lib.worlds.models.bridge import pick_device
from rkcnn_lib.worlds.models.hooks import HOOKS, hook_name, hook_width
from rkcnn_lib.worlds.models.hub import ModelUnavailable
from rkcnn_lib.worlds.models.load import ModelFacts, check_layer, load_model, model_facts
from rkcnn_lib.worlds.text import TextUnavailable, split_of
from rkcnn_lib.worlds.toy import (
    ParallelToyModel,
    PlantedDictionary,
    SyntheticClusteredDataGenerator,
    SyntheticSparseDataGenerator,
    ToyModel,
)

__all__ = [
    "HOOKS", "ActivationStore", "CacheError", "MemoryStore", "ModelFacts", "ModelUnavailable", "ParallelToyModel",
    "PlantedDictionary", "SyntheticClusteredDataGenerator", "SyntheticSparseDataGenerator", "TextUnavailable",
    "ToyModel", "capture", "capture_layers", "check_layer", "check_sizes", "hook_name", "hook_width",
    "load_model", "model_facts", "open_or_capture", "pick_device", "split_of",
]  # fmt: skip
