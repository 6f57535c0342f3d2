"""The hook points activations are read at, and one batch through a language model up to the last block that is read.

``mlp_out`` and ``attn_out`` are what a sub-layer adds to the residual stream: in models that normalise or scale a
sub-layer's output (Gemma 3, Granite), what comes after that. ``mlp_post`` is the input of the MLP's output
projection, gated where the model gates it. Architectures are many and a bridge names hooks for all of them: what a
hook holds in the model at hand is tried before it is read (:func:`check_hooks`).
"""

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from rkcnn_lib.protocols import LanguageModel
from rkcnn_lib.tensors import one_of
from rkcnn_lib.worlds.models.load import ModelFacts

# Plain name -> TransformerLens hook point, and the width it has.
HOOKS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "mlp_post": "blocks.{layer}.mlp.hook_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
}
# What a sub-layer adds is the difference of two points of the stream, where the bridge names both: in blocks that
# normalise first, and in blocks that normalise the sum (GPT-1).
ADDED = {
    "hook_attn_out": (("hook_resid_pre", "hook_resid_mid"), ("hook_resid_pre", "ln1.hook_in")),
    "hook_mlp_out": (("hook_resid_mid", "hook_resid_post"), ("ln1.hook_out", "ln2.hook_in")),
}
BESIDE = {*ADDED, *chain.from_iterable(chain.from_iterable(ADDED.values())), "mlp.hook_out", "mlp.out.hook_out"}
TRIED = 16  # positions
_held: weakref.WeakKeyDictionary[LanguageModel, set[tuple[str, int | None]]] = weakref.WeakKeyDictionary()
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# ||own - bridge|| / ||bridge||: what another order of the same sums may change
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def hook_name(hook: str, layer: int) -> str:
    """Return the TransformerLens name of a hook at a block, such as ``blocks.6.hook_mlp_out``."""
    return HOOKS[one_of("hook", hook, HOOKS)].format(layer=layer)


def hook_width(facts: ModelFacts, hook: str) -> int:
    """Return the width of the activations at a hook; ValueError if there is none such, or none in this model."""
    if one_of("hook", hook, HOOKS) != "mlp_post":
        return facts.d_model
    if facts.n_experts:
        raise ValueError(
            f"hook = 'mlp_post': {facts.name} is a mixture of {facts.n_experts} experts, whose hidden layers have no "
            "one input of an output projection; mlp_out is what the mixture adds"
        )
    return facts.d_mlp


def contexts_at_once(lm: LanguageModel, context_size: int) -> int:
    """Return how many contexts make a batch on the model's device."""
    return max(1, BATCH_TOKENS.get(torch.device(lm.cfg.device).type, 2048) // context_size)


def activations(lm: LanguageModel, ids: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Run one batch up to the last block needed; return (batch * position, d) for each hook name asked for."""
    cache = _cache(lm, ids, names)
    # The cache may hold twins of a hook under other names: only the name asked for is read.
    return {name: cache[name].flatten(0, 1) for name in names}


def seen(
    lm: LanguageModel, ids: torch.Tensor, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Run one batch; return what those hooks hold that fire, and by block what PyTorch's own see go in and come out.

    All tensors are (batch, position, d).
    """
    plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(number: int, _: Any, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        into = given[0] if given else named["hidden_states"]
        plain[number] = tuple((v[0] if isinstance(v, tuple | list) else v).detach().clone() for v in (into, made))

    names = [name for name in names if name in lm.hook_dict]
    if not names:
        return {}, {}
    with contextlib.ExitStack() as stack:
        for number in {int(name.split(".")[1]) for name in names}:
            block: Any = lm.get_submodule(f"blocks.{number}")
            block = getattr(block, "original_component", None) or block
            handle = block.register_forward_hook(functools.partial(watch, number), with_kwargs=True)
            stack.callback(handle.remove)
        cache = _cache(lm, ids, names)
    return {name: cache[name] for name in names if name in cache}, plain


def _cache(lm: LanguageModel, ids: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    last, reached = max(int(name.split(".")[1]) for name in names), []

    def reach(tensor: torch.Tensor, hook: Any) -> None:
        reached.append(hook.name)

    def stop(tensor: torch.Tensor, hook: Any) -> None:
        if reached:  # some models normalise the embeddings by the same layer
            raise StopAtLayerException(tensor)

    # After the last block run_with_cache has no block to stop at and would compute the logits.
    unembed = last + 1 == lm.cfg.n_layers and "ln_final.hook_in" in lm.hook_dict
    early = next(name for name in names if int(name.split(".")[1]) == last)
    stops = [(early, reach), ("ln_final.hook_in", stop)] if unembed else []
    with torch.no_grad(), lm.hooks(fwd_hooks=stops):
        _, cache = lm.run_with_cache(ids.to(lm.cfg.device), names_filter=list(names), stop_at_layer=last + 1)
    return cache


@contextlib.contextmanager
def own_layers(lm: LanguageModel, ids: torch.Tensor, names: Sequence[str]) -> Iterator[bool]:
    """Let attention and normalisation run as the model's library wrote them while the hooks outside of them are read.

    TransformerBridge rebuilds both step by step, which takes a tenth of a pass. Between the same hook points the layers
    that it wraps do the same in one kernel each. They are used only if they give the same numbers for ``names`` on
    ``ids`` (batch, position), one context is enough, up to rounding. Yields whether they are in use.
    """
    rebuilt = activations(lm, ids, names)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_unwrapped(lm))
            own = activations(lm, ids, names)
            same = all(_same(own[name], rebuilt[name], ROUNDING[rebuilt[name].dtype], dim=None) for name in names)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            same = False  # a model whose layers cannot do without their bridge
        if not same:
            stack.close()
        yield same


@contextlib.contextmanager
def _unwrapped(lm: LanguageModel) -> Iterator[None]:
    from transformer_lens.model_bridge.generalized_components import AttentionBridge, NormalizationBridge

    forwards = {AttentionBridge: AttentionBridge.forward, NormalizationBridge: _normalise}
    changed = [(part, forward) for part in lm.modules() for kind, forward in forwards.items() if isinstance(part, kind)]
    model: Any = lm.original_model
    before = model.config._attn_implementation
    try:
        for part, forward in changed:
            part.__dict__["forward"] = functools.partial(forward, part)  # setattr would reach the layer within
        model.set_attn_implementation("sdpa")
        yield
    finally:
        for part, _ in changed:
            part.__dict__.pop("forward", None)
        model.set_attn_implementation(before)


def _normalise(part: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    return part.hook_out(part.original_component(part.hook_in(hidden_states)))


def check_hooks(lm: LanguageModel, widths: Mapping[str, int | None]) -> None:
    """Try on one short context whether hooks hold, in this model, what their names say; once a model and hook.

    ``resid_pre`` and ``resid_post`` have to be what goes into the block and what comes out of it, by a plain forward
    hook; ``attn_out`` and ``mlp_out`` what the sub-layers add, by the stream before and after them; ``mlp_post`` has
    to give the MLP's output through its output projection.

    ``widths`` are hook names (:func:`hook_name`) and how wide their activations should be, None for any width.
    ValueError for the first hook that does not hold, with the reason.
    """
    held = _held.setdefault(lm, set())
    wanted = {name: width for name, width in widths.items() if (name, width) not in held}
    if not wanted:
        return
    beside = {f"blocks.{name.split('.')[1]}.{point}" for name in wanted for point in BESIDE}
    ids = torch.arange(2, 2 + min(TRIED, lm.cfg.n_ctx))[None] % lm.cfg.d_vocab
    acts, plain = seen(lm, ids, [*wanted, *beside])
    for name, width in wanted.items():
        number, hook = int(name.split(".")[1]), name.split(".", 2)[2]
        start = f"blocks.{number}."
        of_block = {key.removeprefix(start): acts[key] for key in acts if key.startswith(start)}
        problem = _shape_problem(of_block.get(hook), ids.shape, width) or _content_problem(
            hook, of_block, plain[number], lm.get_submodule(f"blocks.{number}")
        )
        if problem:
            raise ValueError(f"{name} cannot be had from this model ({lm.cfg.architecture}): {problem}")
        held.add((name, width))


def _shape_problem(x: torch.Tensor | None, shape: torch.Size, width: int | None) -> str | None:
    if x is None:
        return "TransformerBridge has no such hook in this block, or it never fires"
    if x.ndim != 3 or x.shape[:2] != shape:
        return f"its activations are {tuple(x.shape)} for {tuple(shape)} tokens"
    if width is not None and x.shape[2] != width:
        return f"it is {x.shape[2]} wide, the configuration says {width}"
    return None


def _content_problem(hook: str, acts: dict[str, torch.Tensor], plain: Sequence[torch.Tensor], block: Any) -> str | None:
    x = acts[hook]
    if hook in ("hook_resid_pre", "hook_resid_post"):
        problem = "it is not what a forward hook on the block sees"
        return None if _same(x, plain[hook == "hook_resid_post"]) else problem
    if hook == "mlp.hook_post":
        projection = getattr(getattr(getattr(block, "mlp", None), "out", None), "original_component", None)
        if projection is None or "mlp.out.hook_out" not in acts:
            return "its MLP has no output projection of its own (the experts of a mixture have one each)"
        with torch.no_grad():
            projected = projection(x)
        ends = (acts[end] for end in ("mlp.hook_out", "hook_mlp_out") if end in acts)
        through = _same(projected, acts["mlp.out.hook_out"]) and any(_same(projected, end) for end in ends)
        return None if through else "the MLP's output projection does not make the MLP's output of it"
    points = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    if all(point in acts for point in points):
        before, attention, mlp, after = (acts[point] for point in points)
        if _same(before + attention + mlp, after):
            return None
    pairs = ((acts[before], acts[after]) for before, after in ADDED[hook] if before in acts and after in acts)
    adds = any(_same(before + x, after) for before, after in pairs)
    return None if adds else "it is not what is added to the residual stream there"


def _same(one: torch.Tensor, other: torch.Tensor, allowed: float | None = None, dim: int | None = -1) -> bool:
    """Whether two tensors are one up to rounding, position by position (an outlier would drown the rest)."""
    if one.shape != other.shape:
        return False
    allowed = max(1e-5, 4 * torch.finfo(other.dtype).eps) if allowed is None else allowed
    one, other = one.float(), other.float()
    return bool(((one - other).norm(dim=dim) <= allowed * other.norm(dim=dim)).all())
