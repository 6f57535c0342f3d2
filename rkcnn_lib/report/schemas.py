"""Parameters of the six notebooks: what each may be told, by type and allowed values.

No defaults: those are in each notebook's cell tagged ``parameters`` (see `rkcnn_lib.report.params`), written once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ARMS = (
    "random", "covariance", "datapoint", "pca", "ica", "kmeans", "datapoint_refined", "kmeans_refined",
    "rkcnn_coordinate", "rkcnn_lift", "lift_unselected", "lift_bottom", "rkcnn_null",
)  # fmt: skip


def searches(arm: str) -> bool:
    """Say whether an arm's directions come from a search by random subsets, scored or not."""
    return arm.startswith(("rkcnn", "lift"))


# What takes an arm's directions and changes one thing else: the first starts the decoder only (the encoder stays
# random, as in the first implementation), the second, a reference, never trains its random decoder.
VARIANTS = {"rkcnn_lift_decoder_only": "rkcnn_lift", "random_frozen_decoder": "random"}
Arm = Literal[ARMS]  # type: ignore[valid-type]
Variant = Literal[(*VARIANTS,)]  # type: ignore[valid-type]
Hook = Literal["resid_pre", "resid_post", "mlp_out", "mlp_post", "attn_out"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Margin = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
NOT_DECIDING = {"device", "force", "n_jobs"}  # where and how a run computes, not what


def _listed(value: Any) -> Any:
    """Turn the string that ``papermill -p layers "[8, 12]"`` hands over into the list it means."""
    if isinstance(value, str):
        parsed = yaml.safe_load(value)
        return parsed if isinstance(parsed, list) else [parsed]
    return value


Listed = BeforeValidator(_listed)


class Parameters(BaseModel):
    """What every notebook takes: the profile's name, the device, whether to go on after a failed gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    profile: str = Field(min_length=1, description="smoke and quick runs say so in a banner")
    device: Literal["cpu", "cuda"] | None = Field(description="None: the GPU where there is one")
    force: bool = Field(description="go on although the gate of an earlier notebook failed")


class Mining(Parameters):
    """Random-subset probing: how many subsets are drawn, how large, how many directions are kept."""

    n_subsets: Annotated[int, Field(ge=3)]
    subset_size: Annotated[int, Field(ge=2)] | None
    n_directions: Count

    @model_validator(mode="after")
    def _selection_selects(self) -> Mining:
        if self.n_subsets < 3 * self.n_directions:
            raise ValueError(
                f"n_subsets = {self.n_subsets}, n_directions = {self.n_directions}: n_subsets must be at least "
                f"3 x n_directions = {3 * self.n_directions}, or the score selects nothing"
            )
        return self


class Unlabelled(Mining):
    """Mining without labels: the contrast that is climbed, where subsets lie and the null that calibrates."""

    score: Literal["neighbours", "kurtosis", "logcosh", "skew"]
    subsets: Literal["coordinate", "rotated"]


class ToySuperposition(Unlabelled):
    """01: can random subsets find features in superposition?"""

    control: Literal["none", "gaussian", "permuted"]
    n_jobs: Count | None
    n_seeds: Annotated[int, Field(ge=2)]
    plane_probabilities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Listed, Field(min_length=2)]
    plane_instances: Count
    plane_steps: Count
    n_features: Annotated[int, Field(ge=2)]
    n_hidden: Annotated[int, Field(ge=2)]
    n_active: Count
    toy_steps: Count
    n_samples: Annotated[int, Field(ge=500)]
    null: Literal["gaussian", "elliptical"] | None
    miners: Annotated[list[Arm], Listed, Field(min_length=1)]
    curve_seeds: Annotated[int, Field(ge=2)]
    curve_features: Annotated[list[Annotated[int, Field(ge=2)]], Listed]
    curve_active: Annotated[list[Count], Listed]
    curve_noise: Annotated[list[Annotated[float, Field(ge=0)]], Listed]
    curve_subset_size: Annotated[list[Annotated[int, Field(ge=2)]], Listed]
    curve_n_subsets: Annotated[list[Annotated[int, Field(ge=3)]], Listed]
    curve_n_samples: Annotated[list[Annotated[int, Field(ge=100)]], Listed]

    @model_validator(mode="after")
    def _active_features_exist(self) -> ToySuperposition:
        if self.n_active > self.n_features:
            raise ValueError(f"n_active = {self.n_active}: at most n_features = {self.n_features}")
        if max(self.curve_active, default=1) > self.n_features:
            raise ValueError(f"curve_active = {self.curve_active}: at most n_features = {self.n_features}")
        if min(self.curve_features, default=self.n_features) < self.n_active:
            raise ValueError(f"curve_features = {self.curve_features}: at least n_active = {self.n_active} each")
        if max(self.curve_subset_size, default=2) > self.n_hidden:
            raise ValueError(f"curve_subset_size = {self.curve_subset_size}: at most n_hidden = {self.n_hidden}")
        if min(self.curve_n_subsets, default=self.n_subsets) < 3 * self.n_directions:
            raise ValueError(
                f"curve_n_subsets = {self.curve_n_subsets}: at least 3 x n_directions = {3 * self.n_directions} each"
            )
        if "rkcnn_lift" not in self.miners:
            raise ValueError(f"miners = {self.miners}: must hold rkcnn_lift, which the gate judges")
        return self


class ProbeValidation(Mining):
    """02: does a high separation score mean a feature?"""

    control: Literal["none", "gaussian", "permuted"]
    n_jobs: Count | None
    n_seeds: Annotated[int, Field(ge=2)]
    n_features: Annotated[int, Field(ge=2)]
    n_hidden: Annotated[int, Field(ge=4)]
    n_active: Count
    toy_steps: Count
    n_samples: Annotated[int, Field(ge=500)]
    atlas_layer: int
    atlas_hook: Hook
    n_contexts: Annotated[int, Field(ge=8)]
    atlas_labels: Annotated[list[Literal["topic", "number", "in_quotes", "in_brackets"]], Listed]
    n_neighbours: Count
    n_permutations: Annotated[int, Field(ge=19)]
    n_probed: Annotated[int, Field(ge=3, description="subsets of each group that are probed")]
    n_probed_null: Annotated[int, Field(ge=3, description="subsets of each group probed under permuted labels")]
    n_ensemble: Count
    curve_sizes: Annotated[list[Count], Listed]

    @model_validator(mode="after")
    def _chance_is_not_too_narrow(self) -> ProbeValidation:
        if self.n_probed_null > self.n_probed:
            raise ValueError(
                f"n_probed_null = {self.n_probed_null}: at most n_probed = {self.n_probed}, or the mean under permuted "
                "labels varies less than the one it is the chance level of"
            )
        return self


class Activations(Parameters):
    """Which activations: model, layer, hook, text and how many tokens."""

    model: str = Field(min_length=1)
    revision: str | None
    layer: int
    hook: Hook
    text: str | None
    n_tokens: Annotated[int, Field(ge=2000)]
    context_size: Annotated[int, Field(ge=3)]


class Cache(Activations):
    """03: what is being measured?"""

    n_statistics: Annotated[int, Field(ge=1000, description="rows used for spectra and kurtosis")]


class Comparison(Unlabelled):
    """What 04 and 05 share: the arms, the SAE, its training and the margins of the verdicts."""

    model: str = Field(min_length=1)
    revision: str | None
    text: str | None
    n_tokens: Annotated[int, Field(ge=2000)]
    context_size: Annotated[int, Field(ge=3)]
    arms: Annotated[list[Arm], Listed, Field(min_length=2)]
    variants: Annotated[list[Variant], Listed]
    n_seeds: Annotated[int, Field(ge=1)]
    architecture: Literal["topk", "batchtopk", "relu"]
    expansion: Annotated[float, Field(gt=0)]
    k: Count
    l1: Annotated[float, Field(gt=0)] | None
    aux_k: Count | None
    steps: Count
    batch_size: Count
    lr: Annotated[float, Field(gt=0)]
    fraction_mined: Annotated[float, Field(gt=0, le=1)]
    mining_rows: Annotated[int, Field(ge=200)]
    heldout_rows: Annotated[int, Field(ge=200)]
    splice_contexts: Count
    n_jobs: Count | None
    delta_dead: Margin
    delta_ev: Margin
    delta_ce: Margin
    delta_mcc: Margin

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Comparison:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms = {self.arms}: name each arm once")
        missing = {"random", "rkcnn_lift"} - set(self.arms)
        if missing:
            raise ValueError(f"arms = {self.arms}: must hold {' and '.join(sorted(missing))}, which are compared")
        if self.l1 is not None and self.architecture != "relu":
            raise ValueError(f"l1 = {self.l1}: architecture {self.architecture} has no L1 penalty; give l1 = None")
        return self


class SaeCompare(Comparison):
    """04: do mined directions make better SAEs?"""

    layer: int
    hook: Hook
    published: Annotated[list[Annotated[str, Field(min_length=1)]], Listed]
    front_k: Annotated[list[Count], Listed]
    other_architecture: Literal["topk", "batchtopk", "relu"] | None
    frozen_k: Annotated[list[Count], Listed, Field(min_length=1)]
    frozen_rows: Annotated[int, Field(ge=100)]
    n_cards: Annotated[int, Field(ge=8, description="latents of an arm that get a feature card")]
    delta_l0: Margin

    @model_validator(mode="after")
    def _front_is_a_front(self) -> SaeCompare:
        if self.front_k and self.l1 is not None:
            raise ValueError(f"front_k = {self.front_k}: with one l1 there is no front; give l1 = None or front_k = []")
        return self


class Multilayer(Comparison):
    """05: does it hold across layers?"""

    layers: Annotated[list[int], Listed] | None
    hook: Hook
    more_hooks: Annotated[list[Hook], Listed]
    sweep: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def _each_hook_once(self) -> Multilayer:
        if len({self.hook, *self.more_hooks}) <= len(self.more_hooks):
            raise ValueError(f"more_hooks = {self.more_hooks}: name each hook once, and not hook = {self.hook!r} again")
        return self


class CausalChecks(Unlabelled):
    """06: does the model use what the directions point at?"""

    model: str = Field(min_length=1)
    revision: str | None
    text: str | None
    layer: int
    hook: Hook
    positions: Literal["both", "entity", "last"]
    relation: str = Field(min_length=1)
    isolated: Annotated[str, Field(min_length=1)] | None
    n_tokens: Annotated[int, Field(ge=2000)]
    context_size: Annotated[int, Field(ge=2)]
    mining_rows: Annotated[int, Field(ge=200)]
    n_seeds: Count
    ranks: Annotated[list[Count], Listed, Field(min_length=1, description="dimensions of the subspaces")]
    n_pairs: Annotated[int, Field(ge=4)]
    sae_steps: Annotated[int, Field(ge=0, description="0: no SAE")]
    sae_expansion: Annotated[float, Field(gt=0)]
    sae_k: Count
    das_steps: Count
    das_layers: Annotated[list[int], Listed] | None
    delta_share: Margin
    delta_predict: Annotated[float, Field(gt=0, lt=0.5)]

    @model_validator(mode="after")
    def _another_attribute(self) -> CausalChecks:
        if self.isolated == self.relation:
            raise ValueError(f"isolated = {self.isolated!r}: name another relation than relation, or None")
        return self
