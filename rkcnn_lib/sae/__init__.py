"""Sparse autoencoders: architectures, starts from directions, training, and SAELens's files. Sees only tensors."""

from rkcnn_lib.sae.architectures import ARCHITECTURES, SAE, SAEConfig
from rkcnn_lib.sae.disk import load_saelens, save_saelens
from rkcnn_lib.sae.inits import geometric_median, init_from_directions
from rkcnn_lib.sae.trainer import TrainConfig
from rkcnn_lib.sae.training import train_many, train_sae

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "SAEConfig",
    "TrainConfig",
    "geometric_median",
    "init_from_directions",
    "load_saelens",
    "save_saelens",
    "train_many",
    "train_sae",
]
