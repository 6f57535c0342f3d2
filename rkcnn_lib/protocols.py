"""What the rooms ask of each other's objects, a store and a model."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class Store(Protocol):
    """Rows of activations in splits, as :class:`rkcnn_lib.worlds.ActivationStore` holds them."""

    d_in: int
    manifest: dict[str, Any]

    @property
    def key(self) -> str: ...
    def __len__(self) -> int: ...
    def matrix(self, split: str, seed: int = 0, n_rows: int | None = None) -> torch.Tensor: ...
    def batches(
        self, batch_size: int, seed: int = 0, split: str = "train", epochs: int | None = None, start: int = 0
    ) -> Iterator[torch.Tensor]: ...


@runtime_checkable
class LanguageModel(Protocol):
    """A model with named hooks, as a ``TransformerBridge`` is one."""

    cfg: Any
    tokenizer: Any
    original_model: Any

    @property
    def hook_dict(self) -> Mapping[str, Any]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def modules(self) -> Iterator[torch.nn.Module]: ...
    def get_submodule(self, target: str) -> torch.nn.Module: ...
    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...
    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any: ...
    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...
