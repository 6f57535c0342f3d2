"""What the rooms ask of each other's objects is what those objects have."""

import torch

from rkcnn_lib.protocols import LanguageModel, SparseCoder, Store
from rkcnn_lib.sae import SAE, SAEConfig
from rkcnn_lib.worlds import MemoryStore, load_model


def test_stores_models_and_saes_are_told_apart_by_what_is_asked_of_them():
    objects = {
        Store: [MemoryStore(torch.randn(200, 4))],
        LanguageModel: [load_model("atlas", device="cpu"), load_model("modadd", device="cpu")],
        SparseCoder: [SAE(SAEConfig(4, 8, k=2))],
    }
    for protocol in objects:
        for kind, members in objects.items():
            assert all(isinstance(member, protocol) == (kind is protocol) for member in members)
