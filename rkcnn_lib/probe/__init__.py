"""RkCNN itself, its rivals and its nulls: tensors in, directions out."""

from rkcnn_lib.probe.classifier import RandomKCNNClassifier, kcnn_posterior
from rkcnn_lib.probe.lift import Whitening, ascend, fisher_lift, whiten
from rkcnn_lib.probe.miner import RkCNNMiner
from rkcnn_lib.probe.moments import CONTRASTS, projection_contrast
from rkcnn_lib.probe.nulls import Surrogate, max_statistic_threshold, permute_labels, surrogate
from rkcnn_lib.probe.parameters import SCORES
from rkcnn_lib.probe.rivals import METHODS, mine
from rkcnn_lib.probe.scores import (
    Consistency,
    knn_label_consistency,
    principal_directions,
    separation_score,
    subset_scores,
)
from rkcnn_lib.probe.selection import distinct
from rkcnn_lib.probe.subsets import Subsets, draw_subsets

__all__ = [
    "CONTRASTS",
    "METHODS",
    "SCORES",
    "Consistency",
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
    "knn_label_consistency",
    "max_statistic_threshold",
    "mine",
    "permute_labels",
    "principal_directions",
    "projection_contrast",
    "separation_score",
    "subset_scores",
    "surrogate",
    "whiten",
]
