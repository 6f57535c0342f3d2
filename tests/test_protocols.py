"""What the rooms ask of each other's objects is what those objects have."""

import torch

from rkcnn_lib.protocols import LanguageModel, Store
from rkcnn_lib.worlds import MemoryStore, load_model


def test_stores_and_models_are_told_apart_by_what_is_asked_of_them():
    objects = {
        Store: [MemoryStore(torch.randn(200, 4))],
        LanguageModel: [load_model("atlas", device="cpu"), load_model("modadd", device="cpu")],
    }
    for protocol in objects:
        for kind, members in objects.items():
            assert all(isinstance(member, protocol) == (kind is protocol) for member in members)
