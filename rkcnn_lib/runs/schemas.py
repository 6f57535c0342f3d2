"""Parameters of the six notebooks, written once, from which `rkcnn_lib.runs.params` writes the notebooks' cells."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rkcnn_lib.files import plain_name
from rkcnn_lib.runs.fields import Checked, at_least, param, require, several, with_defaults
from rkcnn_lib.vocabulary import ARMS, MINED, UNMINED, VARIANTS

Arm = Literal[(*ARMS,)]  # type: ignore[valid-type]
Variant = Literal[(*VARIANTS,)]  # type: ignore[valid-type]
Hook = Literal["resid_pre", "resid_post", "mlp_out", "mlp_post", "attn_out"]
Architecture = Literal["topk", "batchtopk", "relu"]
Profile = Annotated[str, AfterValidator(partial(plain_name, what="profile"))]
Name = Annotated[str, Field(min_length=1)]
Positive = Margin = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Expansion = Annotated[float, Field(gt=0, le=10_000)]
NOT_DECIDING = {"device", "force", "n_jobs"}  # where and how a run computes, not what
Count = at_least(1)
Layer = at_least(-10_000, 10_000)  # of any model; `rkcnn_lib.runs.limits` knows the one that is named
Seeds = Jobs = at_least(1, 1000)
SeveralSeeds = at_least(2, 1000)


class Parameters(Checked):
    """What every notebook takes: the profile's name, the device, whether to go on after a failed gate."""

    profile: Profile = param("gpt2", "name of the parameter set; smoke and quick runs carry a banner")
    device: Literal["cpu", "cuda"] | None = param(None, '"cpu", "cuda" or None: the GPU where there is one')
    force: bool = param(False, "go on although an earlier gate failed")


class Model(Parameters):
    """A language model, or activations made here."""

    model: Name = param("gpt2", 'hub name, folder, "atlas", "gemma", "modadd"; 04, sweeps: "toy", "planted" ("_1024")')
    revision: str | None = param(None, "revision of a hub model; None: its main branch")


class OneLayer(Model):
    layer: Layer = param(6, "block to read; -1 is the last")


class Captured(Model):
    """Which activations of a model: the hook, the text and how many tokens."""

    hook: Hook = param("mlp_out")
    text: str | None = param(None, 'None: the hub\'s list (atlas: its own); a .txt, .jsonl or .parquet file; "atlas"')
    n_tokens: at_least(2000) = param(2_000_000, "tokens to capture, 10 % of documents held out")
    context_size: at_least(3) = param(128, "tokens in a context")


class Mining(Parameters):
    """Random-subset probing: how many subsets, how large they are and where they lie, the contrast that is climbed."""

    n_subsets: at_least(3) = param(600, "random subsets drawn (at least 3 x n_directions)")
    subset_size: at_least(2) | None = param(None, "coordinates in a subset; None: round(sqrt(width))")
    score: Literal["neighbours", "kurtosis", "logcosh", "skew"] = param("neighbours")
    subsets: Literal["coordinate", "rotated"] = param("coordinate", "coordinate (rotated where too few) or rotated")


class Selected(Mining):
    """How many directions, or in 02 subsets, are kept."""

    n_directions: Count = param(200, "directions (02: subsets) kept at most")

    @model_validator(mode="after")
    def _selection_selects(self) -> Selected:
        least = 3 * self.n_directions
        why = f"n_subsets must be at least 3 x n_directions = {least}, or the score selects nothing"
        require(self.n_subsets >= least, self, "n_subsets n_directions", why)
        return self


class Ruled(Mining):
    """The rule by which directions are selected, as it was frozen (see `benchmarks/choose_rule.py`)."""

    rule: Literal["separation", "votes", "cover"] = param("separation", "separation, votes or cover")
    n_stages: at_least(1, 1000) = param(12, "rounds, each on what those before it leave unexplained")
    n_neighbours: at_least(2, 10_000) = param(16, "rows of a subset's pseudo-class")
    n_shifts: at_least(0, 100) = param(3, "mean shifts that lift it")
    n_refinements: at_least(0, 100) = param(3, "passes of sparse coding that end rkcnn and the refined rivals alike")


class Toy(Selected):
    """What 01 and 02 share: a toy model whose features are known, and the controls that must fail."""

    control: Literal["none", "gaussian", "permuted"] = param(
        "none", "none; gaussian: noise in place of activations; permuted: the truth shuffled"
    )
    n_seeds: SeveralSeeds = param(10, "toy models, each with its own subsets")
    n_features: at_least(2) = param(20, "features of the toy model")
    n_hidden: at_least(2) = param(5, "its hidden dimensions")
    n_active: Count = param(2, "features active in each sample")
    toy_steps: Count = param(2000, "its training steps")
    n_samples: at_least(500) = param(20_000, "its hidden states")
    n_jobs: Jobs | None = param(None, "processes at once; None: one a core, or one where there is a GPU")

    @model_validator(mode="after")
    def _features_exist(self) -> Toy:
        require(self.n_active <= self.n_features, self, "n_active", f"at most n_features = {self.n_features}")
        most = self.n_hidden
        require((self.subset_size or 0) <= most, self, "subset_size", f"at most n_hidden = {most}")
        return self


@with_defaults(n_directions=40)
class ToySuperposition(Toy):
    """01: can random subsets find features in superposition?"""

    null: Literal["gaussian", "elliptical"] | None = param(
        "gaussian", "surrogate that calibrates: gaussian, elliptical or None"
    )
    miners: several(Arm, 1) = param(
        ["pca", "ica", "kmeans_refined", "rkcnn_coordinate", "rkcnn", "rkcnn_unscored"], "compared"
    )
    plane_probabilities: several(Share, 2) = param([0.5, 0.3, 0.2, 0.1, 0.05, 0.02], "of a feature, 5 -> 2 models")
    plane_instances: Count = param(20, "models trained at each probability")
    plane_steps: Count = param(2000, "training steps of the 5 -> 2 models")
    curve_seeds: SeveralSeeds = param(10, "toy models at each point of a curve")
    curve_features: several(at_least(2)) = param(
        [8, 12, 16, 20, 28, 40], "recovery against the number of features; [] leaves a curve out"
    )
    curve_active: several(Count) = param([1, 2, 3, 4], "against the number of active features")
    curve_noise: several(Annotated[float, Field(ge=0)]) = param(
        [0.0, 0.05, 0.1, 0.2, 0.4], "against noise, as a share of the hidden states' root mean square"
    )
    curve_subset_size: several(at_least(2)) = param([2, 3, 4], "against the coordinates in a subset")
    curve_n_subsets: several(at_least(3)) = param([120, 300, 600, 1200], "against the subsets drawn")
    curve_n_samples: several(at_least(100)) = param([500, 1000, 2000, 5000, 20_000], "against the hidden states mined")

    @model_validator(mode="after")
    def _active_features_exist(self) -> ToySuperposition:
        n, d, active, least = self.n_features, self.n_hidden, self.n_active, 3 * self.n_directions
        require(max(self.curve_active, default=1) <= n, self, "curve_active", f"at most n_features = {n} each")
        require(min(self.curve_features, default=n) >= active, self, "curve_features", f"at least n_active = {active}")
        require(max(self.curve_subset_size, default=2) <= d, self, "curve_subset_size", f"at most n_hidden = {d} each")
        fewest = min(self.curve_n_subsets, default=least)
        require(fewest >= least, self, "curve_n_subsets", f"at least 3 x n_directions = {least} each")
        curves = "curve_features curve_active curve_noise curve_subset_size curve_n_subsets curve_n_samples"
        require(any(getattr(self, name) for name in curves.split()), self, curves, "give at least one of them values")
        require("rkcnn" in self.miners, self, "miners", "must hold rkcnn, which the gate judges")
        return self


@with_defaults(n_features=60, n_active=3)
class ProbeValidation(Toy):
    """02: does a high separation score mean a feature?"""

    n_hidden: at_least(4) = param(20, "its hidden dimensions")
    atlas_layer: Layer = param(2, "block of the embedded language model; -1 is the last")
    atlas_hook: Hook = param("resid_post")
    n_contexts: at_least(8) = param(300, "labelled contexts of 128 tokens")
    atlas_labels: several(Literal["topic", "number", "in_quotes", "in_brackets"], 1) = param(
        ["topic", "number", "in_quotes", "in_brackets"], "labels that are probed"
    )
    n_probed: at_least(3) = param(20, "subsets of each group (top, random, bottom) that are probed")
    n_probed_null: at_least(3) = param(10, "the same under permuted labels; fewer: a wider 95 % point of chance")
    n_ensemble: Count = param(30, "best subsets that the RkCNN classifier combines")
    curve_sizes: several(Count) = param([2, 4, 8, 16, 32, 64, 96], "sizes of subsets compared with all dimensions")
    n_neighbours: at_least(1, 100) = param(10, "of the kNN probe")  # at most half of the rows of 8 contexts
    n_permutations: at_least(19, 10_000) = param(49, "permuted labels behind each chance level")

    @model_validator(mode="after")
    def _subsets_and_labels_differ(self) -> ProbeValidation:
        active = self.n_samples * self.n_active / self.n_features
        why = f"a feature is active in about {active:.0f} samples: a label needs 20 with it and 20 without"
        require(20 <= active <= self.n_samples - 20, self, "n_active n_features n_samples", why)
        why = "at most a third of n_subsets, or the best, random and worst ones are the same"
        require(3 * self.n_probed <= self.n_subsets, self, "n_probed n_subsets", why)
        why = "or the mean under permuted labels varies less than the one it is the chance level of"
        few = self.n_probed_null <= self.n_probed
        require(few, self, "n_probed_null", f"at most n_probed = {self.n_probed}, {why}")
        return self


class Cache(Captured, OneLayer):
    """03: what is being measured?"""

    n_statistics: at_least(1000) = param(100_000, "rows used for spectra and kurtosis")


class Comparison(Ruled, Captured):
    """What 04 and 05 share: the arms, the SAE, its training and the margins of the verdicts."""

    n_subsets: at_least(3) | None = param(None, "random subsets drawn in each round; None: 36 for each latent in all")
    arms: several(Arm, 2) = param(
        ["random", "covariance", "active_subspace", "datapoint_refined", "kmeans", "kmeans_refined", "rkcnn_coordinate",
         "rkcnn", "rkcnn_unscored"], "starts",
    )  # fmt: skip
    variants: several(Variant) = param([*VARIANTS], "none, or those of 04's default")
    n_seeds: Seeds = param(5, "below 5 every verdict is undecided")
    architecture: Architecture = param("topk")
    expansion: Expansion = param(8.0, "latents: expansion x width")
    k: Count = param(32, "active latents a token; relu: searched for by its penalty")
    l1: Positive | None = param(None, "relu only: this penalty, instead of the search for k active latents")
    aux_k: Count | None = param(256, "dead latents in the auxiliary loss, for all arms or (None, and relu) for none")
    encoder: Literal["tied", "fitted"] | None = param(
        None, "tied to the decoder or fitted to its codes; None: each arm's better, searched with its rate"
    )
    steps: Count = param(2300, "training steps")
    batch_size: Count = param(4096, "tokens a step")
    lr: Positive = param(4e-4, "learning rate")
    lr_search: several(Positive) = param([], "rates of which each arm gets its best, on a seed of its own; []: lr")
    cosine_decay: bool = param(False, "the rate falls along half a cosine, instead of linearly over the last fifth")
    twin_weight: Annotated[float, Field(ge=0)] = param(
        0.0, "penalty on decoder rows far from those of a twin with a seed of its own; 0: none"
    )
    budgets: several(Share) = param([0.125, 0.25, 0.5], "shares of the steps that arms are trained for too")
    mining_rows: at_least(200) = param(100_000, "rows each seed mines, from its own documents")
    heldout_rows: at_least(200) = param(100_000, "held-out rows for explained variance and dead latents")
    splice_contexts: at_least(0) = param(64, "held-out contexts, spread over all, for the loss with SAEs; 0: none")
    delta_dead: Margin = param(0.01, "margin: share of dead latents")
    delta_ev: Margin = param(0.005, "margin: explained variance")
    delta_ce: Margin = param(0.01, "margin: cross-entropy, nats a token")
    delta_mcc: Margin = param(0.02, "margin: agreement of seeds (PW-MCC)")
    delta_tokens: Margin = param(0.1, "margin: tokens to random's quality, as a share of the training")
    delta_recovery: Margin = param(0.02, "margin: share of true directions recovered")
    n_jobs: Jobs | None = param(None, "processes at once; None: one a core, or one where there is a GPU")

    def subsets_for(self, n_latents: int) -> int:
        """Return how many subsets a round draws, at least three for each latent."""
        return self.n_subsets or max(3, 36 // self.n_stages) * n_latents

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Comparison:
        missing = {UNMINED, MINED} - set(self.arms)
        require(not missing, self, "arms", f"must hold {' and '.join(sorted(missing))}, which are compared")
        why = f"architecture {self.architecture} has no L1 penalty; give l1 = None"
        require(self.l1 is None or self.architecture == "relu", self, "l1", why)
        return self


class SaeCompare(Comparison, OneLayer):
    """04: do mined directions make better SAEs?"""

    published: several(Name) = param([], 'SAEs in SAELens\'s format, judged too: folders, or "owner/repository:path"')
    front_k: several(Count) = param([16, 64], "further k of the compared arms: the front of L0; [] for none")
    other_architecture: Architecture | None = param(
        "relu", "whose seeds' agreement is shown beside, at equal L0; None: none"
    )
    frozen_k: several(Count, 1) = param([8, 16, 32], "atoms a token in the frozen-dictionary test")
    frozen_rows: at_least(100) = param(1500, "held-out rows of that test")
    n_cards: at_least(8) = param(600, "latents of an arm that get a feature card, chosen by firing rate")
    delta_l0: Margin = param(1.0, "margin: active latents a token at equal explained variance")

    @model_validator(mode="after")
    def _front_is_a_front(self) -> SaeCompare:
        why = "with one l1 there is no front; give l1 = None or front_k = []"
        require(not self.front_k or self.l1 is None, self, "front_k", why)
        return self


class Layers(Model):
    layers: several(Layer, 1) | None = param(None, "blocks to read, -1 is the last; None: all")


@with_defaults(
    n_tokens=1_000_000, arms=["random", "covariance", "kmeans_refined", "rkcnn", "rkcnn_unscored"], variants=[],
    expansion=4.0, steps=4000, mining_rows=50_000, heldout_rows=50_000, splice_contexts=32, budgets=[],
)  # fmt: skip
class Multilayer(Comparison, Layers):
    """05: does it hold across layers?"""

    more_hooks: several(Hook) = param([], "further hooks that are compared, for the heat map; only hook is judged")
    sweep: Name | None = param(None, "folder of `rkcnn sweep FILE --out FOLDER`: sensitivity curves; None: no curves")

    @model_validator(mode="after")
    def _each_hook_once(self) -> Multilayer:
        why = f"name each hook once, and not hook = {self.hook!r} again"
        require(self.hook not in self.more_hooks, self, "more_hooks", why)
        return self


@with_defaults(layer=9, hook="resid_post", n_tokens=500_000, n_subsets=2400, n_directions=800)
class CausalChecks(Selected, Ruled, Captured, OneLayer):
    """06: does the model use what the directions point at?"""

    context_size: at_least(2) = param(128, "tokens in a context")
    mining_rows: at_least(200) = param(50_000, "rows each seed mines, from its own documents")
    n_seeds: Seeds = param(5, "seeds that mine; below 5 the verdict over seeds is undecided")
    positions: Literal["both", "entity", "last"] = param(
        "both", 'where: "entity" (its last token), "last" (where the answer is read) or "both"'
    )
    relation: Name = param("capital", 'which facts, "agreement", "ioi" or (modadd) "sum"; an unknown one is told them')
    isolated: Name | None = param(None, "a second relation of the same entities, which should not change, or None")
    ranks: several(Count, 1) = param([2, 4, 8, 16, 32], "dimensions of the subspaces; the middle one is judged")
    n_pairs: at_least(4) = param(64, "prompt pairs on which subspaces are judged; four times as many train the ceiling")
    sae_steps: at_least(0) = param(4000, "steps of 1024 rows that each seed's SAE is trained; 0: no SAE")
    sae_expansion: Expansion = param(4.0, "latents per dimension")
    sae_k: Count = param(32, "latents active a token")
    das_steps: Count = param(200, "gradient steps of the supervised ceiling")
    das_layers: several(Layer) | None = param(None, "further layers at which the ceiling is learnt; None: all")
    delta_share: Margin = param(0.1, "margin: share of the whole activation's effect")
    delta_predict: Annotated[float, Field(gt=0, lt=0.5)] = param(
        0.1, "margin: accuracy above chance (0.5) from which a subspace counts as predictive"
    )

    @model_validator(mode="after")
    def _another_attribute(self) -> CausalChecks:
        require(self.isolated != self.relation, self, "isolated", "name another relation than relation, or None")
        return self


NOTEBOOKS: dict[str, type[Parameters]] = {
    "01_toy_superposition": ToySuperposition,
    "02_probe_validation": ProbeValidation,
    "03_gpt2_cache": Cache,
    "04_sae_compare": SaeCompare,
    "05_multilayer": Multilayer,
    "06_causal_checks": CausalChecks,
}
