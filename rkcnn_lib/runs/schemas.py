"""Parameters of the six notebooks: what each may be told, by type and allowed values.

No defaults: those are in each notebook's cell tagged ``parameters`` (see `rkcnn_lib.runs.params`), written once.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rkcnn_lib.files import plain_name
from rkcnn_lib.runs.yaml_values import cut, yaml_value

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
Name = Annotated[str, Field(min_length=1)]
Margin = Annotated[float, Field(gt=0.0)]
Expansion = Annotated[float, Field(gt=0, le=10_000)]
NOT_DECIDING = {"device", "force", "n_jobs"}  # where and how a run computes, not what


def at_least(least: int, most: int = 10**12) -> Any:
    """Return the type of a whole number within bounds; what the model and the memory allow is looked at later."""
    return Annotated[int, Field(ge=least, le=most)]


Count = at_least(1)
Layer = at_least(-10_000, 10_000)  # of any model; `rkcnn_lib.runs.limits` knows the one that is named
Seeds = Jobs = at_least(1, 1000)
SeveralSeeds = at_least(2, 1000)


def several(item: Any, least: int = 0) -> Any:
    """Return the type of a list of distinct values: one that is there twice would be computed and written twice."""
    length = Field(min_length=least, max_length=1000)
    return Annotated[list[item], BeforeValidator(_listed), length, AfterValidator(_distinct)]


def _listed(value: Any) -> Any:
    """Turn the string that ``papermill -p layers "[8, 12]"`` hands over into the list it means."""
    if isinstance(value, str):
        parsed = yaml_value(value, "as a list")
        value = parsed if isinstance(parsed, list) else [parsed]
    return _no_truths(value)


def _distinct(values: list[Any]) -> list[Any]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"name each value once, not {cut(repr(twice[0]))} again")
    return values


def _no_truths(value: Any) -> Any:
    if any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
        raise ValueError("true and false are no numbers and no names")
    return value


def require(holds: bool, p: BaseModel, names: str, why: str) -> None:
    """Raise ValueError, with the values of the parameters named and why, unless something holds."""
    if not holds:
        values = ", ".join(f"{name} = {cut(repr(getattr(p, name)))}" for name in names.split())
        raise ValueError(f"{values}: {why}")


class Checked(BaseModel):
    """No unknown name, no infinite number, and no yes or no where a number is asked (``true`` would be 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truths_where_asked(cls, value: Any, info: Any) -> Any:
        return value if cls.model_fields[info.field_name].annotation is bool else _no_truths(value)


class Parameters(Checked):
    """What every notebook takes: the profile's name, the device, whether to go on after a failed gate."""

    profile: Annotated[str, AfterValidator(partial(plain_name, what="profile"))] = Field(
        description="smoke and quick runs say so in a banner"
    )
    device: Literal["cpu", "cuda"] | None = Field(description="None: the GPU where there is one")
    force: bool = Field(description="go on although the gate of an earlier notebook failed")


class Mining(Parameters):
    """Random-subset probing: how many subsets are drawn, how large, how many directions are kept."""

    n_subsets: at_least(3)
    subset_size: at_least(2) | None
    n_directions: Count

    @model_validator(mode="after")
    def _selection_selects(self) -> Mining:
        least = 3 * self.n_directions
        why = f"n_subsets must be at least 3 x n_directions = {least}, or the score selects nothing"
        require(self.n_subsets >= least, self, "n_subsets n_directions", why)
        return self


class Unlabelled(Mining):
    """Mining without labels: the contrast that is climbed, where subsets lie and the null that calibrates."""

    score: Literal["neighbours", "kurtosis", "logcosh", "skew"]
    subsets: Literal["coordinate", "rotated"]


def _features_exist(p: Any) -> None:
    require(p.n_active <= p.n_features, p, "n_active", f"at most n_features = {p.n_features}")
    require((p.subset_size or 0) <= p.n_hidden, p, "subset_size", f"at most n_hidden = {p.n_hidden}")


class ToySuperposition(Unlabelled):
    """01: can random subsets find features in superposition?"""

    control: Literal["none", "gaussian", "permuted"]
    n_jobs: Jobs | None
    n_seeds: SeveralSeeds
    plane_probabilities: several(Annotated[float, Field(gt=0, le=1)], 2)
    plane_instances: Count
    plane_steps: Count
    n_features: at_least(2)
    n_hidden: at_least(2)
    n_active: Count
    toy_steps: Count
    n_samples: at_least(500)
    null: Literal["gaussian", "elliptical"] | None
    miners: several(Arm, 1)
    curve_seeds: SeveralSeeds
    curve_features: several(at_least(2))
    curve_active: several(Count)
    curve_noise: several(Annotated[float, Field(ge=0)])
    curve_subset_size: several(at_least(2))
    curve_n_subsets: several(at_least(3))
    curve_n_samples: several(at_least(100))

    @model_validator(mode="after")
    def _active_features_exist(self) -> ToySuperposition:
        _features_exist(self)
        n, d, active, least = self.n_features, self.n_hidden, self.n_active, 3 * self.n_directions
        require(max(self.curve_active, default=1) <= n, self, "curve_active", f"at most n_features = {n} each")
        require(min(self.curve_features, default=n) >= active, self, "curve_features", f"at least n_active = {active}")
        require(max(self.curve_subset_size, default=2) <= d, self, "curve_subset_size", f"at most n_hidden = {d} each")
        fewest = min(self.curve_n_subsets, default=least)
        require(fewest >= least, self, "curve_n_subsets", f"at least 3 x n_directions = {least} each")
        curves = "curve_features curve_active curve_noise curve_subset_size curve_n_subsets curve_n_samples"
        require(any(getattr(self, name) for name in curves.split()), self, curves, "give at least one of them values")
        require("rkcnn_lift" in self.miners, self, "miners", "must hold rkcnn_lift, which the gate judges")
        return self


class ProbeValidation(Mining):
    """02: does a high separation score mean a feature?"""

    control: Literal["none", "gaussian", "permuted"]
    n_jobs: Jobs | None
    n_seeds: SeveralSeeds
    n_features: at_least(2)
    n_hidden: at_least(4)
    n_active: Count
    toy_steps: Count
    n_samples: at_least(500)
    atlas_layer: Layer
    atlas_hook: Hook
    n_contexts: at_least(8)
    atlas_labels: several(Literal["topic", "number", "in_quotes", "in_brackets"], 1)
    n_neighbours: at_least(1, 100)  # of half of the rows of 8 contexts
    n_permutations: at_least(19, 10_000)
    n_probed: at_least(3) = Field(description="subsets of each group that are probed")
    n_probed_null: at_least(3) = Field(description="subsets of each group probed under permuted labels")
    n_ensemble: Count
    curve_sizes: several(Count)

    @model_validator(mode="after")
    def _subsets_and_labels_differ(self) -> ProbeValidation:
        _features_exist(self)
        active = self.n_samples * self.n_active / self.n_features
        why = f"a feature is active in about {active:.0f} samples: a label needs 20 with it and 20 without"
        require(20 <= active <= self.n_samples - 20, self, "n_active n_features n_samples", why)
        why = "at most a third of n_subsets, or the best, random and worst ones are the same"
        require(3 * self.n_probed <= self.n_subsets, self, "n_probed n_subsets", why)
        why = "or the mean under permuted labels varies less than the one it is the chance level of"
        few = self.n_probed_null <= self.n_probed
        require(few, self, "n_probed_null", f"at most n_probed = {self.n_probed}, {why}")
        return self


class Activations(Parameters):
    """Which activations: model, layer, hook, text and how many tokens."""

    model: Name
    revision: str | None
    layer: Layer
    hook: Hook
    text: str | None
    n_tokens: at_least(2000)
    context_size: at_least(3)


class Cache(Activations):
    """03: what is being measured?"""

    n_statistics: at_least(1000) = Field(description="rows used for spectra and kurtosis")


class Comparison(Unlabelled):
    """What 04 and 05 share: the arms, the SAE, its training and the margins of the verdicts."""

    model: Name
    revision: str | None
    text: str | None
    n_tokens: at_least(2000)
    context_size: at_least(3)
    arms: several(Arm, 2)
    variants: several(Variant)
    n_seeds: Seeds
    architecture: Literal["topk", "batchtopk", "relu"]
    expansion: Expansion
    k: Count
    l1: Annotated[float, Field(gt=0)] | None
    aux_k: Count | None
    steps: Count
    batch_size: Count
    lr: Annotated[float, Field(gt=0)]
    fraction_mined: Annotated[float, Field(gt=0, le=1)]
    mining_rows: at_least(200)
    heldout_rows: at_least(200)
    splice_contexts: Count
    n_jobs: Jobs | None
    delta_dead: Margin
    delta_ev: Margin
    delta_ce: Margin
    delta_mcc: Margin

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Comparison:
        missing = {"random", "rkcnn_lift"} - set(self.arms)
        require(not missing, self, "arms", f"must hold {' and '.join(sorted(missing))}, which are compared")
        relu = self.architecture == "relu"
        require(self.aux_k is None or not relu, self, "aux_k", "architecture relu has no AuxK; give aux_k = None")
        why = f"architecture {self.architecture} has no L1 penalty; give l1 = None"
        require(self.l1 is None or relu, self, "l1", why)
        return self


class SaeCompare(Comparison):
    """04: do mined directions make better SAEs?"""

    layer: Layer
    hook: Hook
    published: several(Name)
    front_k: several(Count)
    other_architecture: Literal["topk", "batchtopk", "relu"] | None
    frozen_k: several(Count, 1)
    frozen_rows: at_least(100)
    n_cards: at_least(8) = Field(description="latents of an arm that get a feature card")
    delta_l0: Margin

    @model_validator(mode="after")
    def _front_is_a_front(self) -> SaeCompare:
        why = "with one l1 there is no front; give l1 = None or front_k = []"
        require(not self.front_k or self.l1 is None, self, "front_k", why)
        return self


class Multilayer(Comparison):
    """05: does it hold across layers?"""

    layers: several(Layer, 1) | None
    hook: Hook
    more_hooks: several(Hook)
    sweep: Name | None

    @model_validator(mode="after")
    def _each_hook_once(self) -> Multilayer:
        why = f"name each hook once, and not hook = {self.hook!r} again"
        require(self.hook not in self.more_hooks, self, "more_hooks", why)
        return self


class CausalChecks(Unlabelled):
    """06: does the model use what the directions point at?"""

    model: Name
    revision: str | None
    text: str | None
    layer: Layer
    hook: Hook
    positions: Literal["both", "entity", "last"]
    relation: Name
    isolated: Name | None
    n_tokens: at_least(2000)
    context_size: at_least(2)
    mining_rows: at_least(200)
    n_seeds: Seeds
    ranks: several(Count, 1) = Field(description="dimensions of the subspaces")
    n_pairs: at_least(4)
    sae_steps: at_least(0) = Field(description="0: no SAE")
    sae_expansion: Expansion
    sae_k: Count
    das_steps: Count
    das_layers: several(Layer) | None
    delta_share: Margin
    delta_predict: Annotated[float, Field(gt=0, lt=0.5)]

    @model_validator(mode="after")
    def _another_attribute(self) -> CausalChecks:
        require(self.isolated != self.relation, self, "isolated", "name another relation than relation, or None")
        return self
