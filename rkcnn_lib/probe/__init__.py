"""RkCNN itself, its rivals and its nulls: tensors in, directions out."""

from rkcnn_lib.probe.classifier import RandomKCNNClassifier, kcnn_posterior
from rkcnn_lib.probe.inputs import CONTRASTS, SCORES
from rkcnn_lib.probe.lift import Whitening, ascend, fisher_lift, whiten
from rkcnn_lib.probe.miner import RkCNNMiner
from rkcnn_lib.probe.neighbours import distinct
from rkcnn_lib.probe.nulls import Surrogate, permute_labels, surrogate
from rkcnn_lib.probe.rivals import METHODS, mine
from rkcnn_lib.probe.scores import principal_directions, projection_contrast, subset_scores
from rkcnn_lib.probe.subsets import Subsets, draw_subsets

__all__ = [
    "CONTRASTS",
    "METHODS",
    "SCORES",
    "RandomKCNNClassifier",
    "RkCNNMiner",
    "Subsets",
    "Surrogate",
    "Whitening",
    "ascend",
    "distinct",
    "draw_subsets",
    "fisher_lift",
    "kcnn_posterior",
    "mine",
    "permute_labels",
    "principal_directions",
    "projection_contrast",
    "subset_scores",
    "surrogate",
    "whiten",
]
