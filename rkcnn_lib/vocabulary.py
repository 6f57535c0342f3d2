"""The words of the report, each explained once: the arms of the comparison, its hypotheses, and what a metric is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """Where an arm's directions come from."""

    method: str | None = None  # the name `rkcnn_lib.probe.mine` knows it by; None: random, an SAE without a start
    refined: bool = False  # whether the passes of sparse coding follow, which are the same for all arms that have them
    searches: bool = False  # whether it draws random subsets, and so has a funnel


ARMS: dict[str, Arm] = {
    "random": Arm(),
    "covariance": Arm("covariance"),
    "active_subspace": Arm("active_subspace"),
    "datapoint": Arm("datapoint"),
    "pca": Arm("pca"),
    "ica": Arm("ica"),
    "kmeans": Arm("kmeans"),
    "datapoint_refined": Arm("datapoint", refined=True),
    "kmeans_refined": Arm("kmeans", refined=True),
    "rkcnn_coordinate": Arm("rkcnn_coordinate", searches=True),
    "rkcnn": Arm("rkcnn", refined=True, searches=True),
    "rkcnn_unscored": Arm("rkcnn_unscored", refined=True, searches=True),
    "rkcnn_worst": Arm("rkcnn_worst", refined=True, searches=True),
    "rkcnn_null": Arm("rkcnn_null", refined=True, searches=True),
}
UNMINED = "random"  # the arm without mined directions
MINED = "rkcnn"  # the arm that the question is about

# What takes an arm's directions and changes one thing else: the first starts the decoder only (the encoder stays
# random, as in the first implementation), the second, a reference, never trains its random decoder.
DECODER_ONLY, FROZEN_DECODER = "rkcnn_decoder_only", "random_frozen_decoder"
VARIANTS = {DECODER_ONLY: MINED, FROZEN_DECODER: UNMINED}


def base_arm(arm: str) -> str:
    """Return the arm whose directions an arm starts from: itself, except for the variants."""
    return VARIANTS.get(arm, arm)


# Declared beforehand: what is claimed of `rkcnn`, and the rival that it is claimed against.
HYPOTHESES: dict[str, tuple[str, str]] = {
    "H1": ("a mined start beats a random one", UNMINED),
    "H1c": ("a mined start beats random directions with the activations' covariance", "covariance"),
    "H2": ("the score helps: it beats the same search without one", "rkcnn_unscored"),
    "H3": ("random subsets beat k-means, equally refined", "kmeans_refined"),
}
RIVALS = tuple(rival for _, rival in HYPOTHESES.values())
COMPARED = (*RIVALS, MINED)  # the arms that hypotheses are about: trained at every k and with another architecture too


@dataclass(frozen=True)
class Measure:
    """A metric on which hypotheses are judged."""

    words: str  # what is better, in words
    margin: str  # the parameter that holds its margin
    lower_is_better: bool = False
    bound: float | None = None  # what no SAE surpasses


MEASURES: dict[str, Measure] = {
    "explained_variance": Measure("explained variance", "delta_ev", bound=1.0),
    "explained_variance_standardised": Measure("standardised explained variance", "delta_ev", bound=1.0),
    "frozen_ev": Measure("variance before training", "delta_ev", bound=1.0),
    "frozen_ev_trained": Measure("trained directions (one coder)", "delta_ev", bound=1.0),
    "tokens_to_quality": Measure("tokens to random's quality", "delta_tokens", lower_is_better=True, bound=0.0),
    "dead": Measure("dead latents", "delta_dead", lower_is_better=True, bound=0.0),
    "delta_ce": Measure("loss when spliced in", "delta_ce", lower_is_better=True, bound=0.0),
    "pw_mcc": Measure("agreement of seeds", "delta_mcc", bound=1.0),
    "l0_at_equal_ev": Measure("active latents for the same variance", "delta_l0", lower_is_better=True),
    "untrained_recovery_rate": Measure("true directions before training", "delta_recovery", bound=1.0),
    "recovery_rate": Measure("true directions after training", "delta_recovery", bound=1.0),
    "rare_recovery_rate": Measure("rare true directions", "delta_recovery", bound=1.0),
}


def in_words(metric: str) -> str:
    """Return a metric in words where hypotheses are judged on it, else its name."""
    return MEASURES[metric].words if metric in MEASURES else metric


def rival_of(contrast: object) -> str:
    """Return the arm that a contrast, ``arm - rival``, is against; a name that is no contrast as it is."""
    return str(contrast or "").split(" - ")[-1]
