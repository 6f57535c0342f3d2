"""The hook points activations are read at.

``mlp_out`` and ``attn_out`` are what a sub-layer adds to the residual stream: in models that normalise or scale a
sub-layer's output (Gemma 3, Granite), what comes after that. ``mlp_post`` is the input of the MLP's output
projection, gated where the model gates it. Architectures are many and a bridge names hooks for all of them: what a
hook holds in the model at hand is tried before it is read (:func:`check_hooks`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from rkcnn_lib.worlds.models.facts import ModelFacts
from rkcnn_lib.worlds.models.forward import seen

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["HOOKS", "check_hook", "check_hooks", "hook_name", "hook_width"]

# Plain name -> TransformerLens hook point, and the width it has.
HOOKS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "mlp_post": "blocks.{layer}.mlp.hook_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
}


def check_hook(hook: str) -> str:
    """Return the hook's plain name; raise ValueError if there is no such hook."""
    if hook not in HOOKS:
        raise ValueError(f"hook = {hook!r}: allowed are {', '.join(HOOKS)}")
    return hook


def hook_name(hook: str, layer: int) -> str:
    """Return the TransformerLens name of a hook at a block, such as ``blocks.6.hook_mlp_out``."""
    return HOOKS[check_hook(hook)].format(layer=layer)


def hook_width(facts: ModelFacts, hook: str) -> int:
    """Return the width of the activations at a hook: ``d_mlp`` for ``mlp_post``, else ``d_model``.

    Raises
    ------
    ValueError
        If there is no such hook, or none in this model: a mixture of experts has no one MLP with a hidden layer.
    """
    if check_hook(hook) != "mlp_post":
        return facts.d_model
    if facts.n_experts:
        raise ValueError(
            f"hook = 'mlp_post': {facts.name} is a mixture of {facts.n_experts} experts, whose hidden layers have no "
            "one input of an output projection; mlp_out is what the mixture adds"
        )
    return facts.d_mlp


# What a sub-layer adds is the difference of two points of the stream, where the bridge names both: in blocks that
# normalise first, and in blocks that normalise the sum (GPT-1).
ADDED = {
    "hook_attn_out": (("hook_resid_pre", "hook_resid_mid"), ("hook_resid_pre", "ln1.hook_in")),
    "hook_mlp_out": (("hook_resid_mid", "hook_resid_post"), ("ln1.hook_out", "ln2.hook_in")),
}
BESIDE = {*ADDED, *chain.from_iterable(chain.from_iterable(ADDED.values())), "mlp.hook_out", "mlp.out.hook_out"}
TRIED = 16  # positions
_held: weakref.WeakKeyDictionary[Any, set[tuple[str, int | None]]] = weakref.WeakKeyDictionary()


def check_hooks(lm: TransformerBridge, widths: Mapping[str, int | None]) -> None:
    """Try on one short context whether hooks hold, in this model, what their names say; once a model and hook.

    ``resid_pre`` and ``resid_post`` have to be what goes into the block and what comes out of it, by a plain forward
    hook; ``attn_out`` and ``mlp_out`` what the sub-layers add, by the stream before and after them; ``mlp_post`` has
    to give the MLP's output through its output projection.

    Parameters
    ----------
    lm : TransformerBridge
    widths : mapping
        Hook names (:func:`hook_name`) and how wide their activations should be; None for any width.

    Raises
    ------
    ValueError
        For the first hook that does not hold, with the reason.
    """
    held = _held.setdefault(lm, set())
    wanted = {name: width for name, width in widths.items() if (name, width) not in held}
    if not wanted:
        return
    at = {name: name.split(".")[1] for name in wanted}
    beside = {f"blocks.{number}.{point}" for number in at.values() for point in BESIDE}
    ids = torch.arange(2, 2 + min(TRIED, lm.cfg.n_ctx))[None] % lm.cfg.d_vocab
    acts, plain = seen(lm, ids, [*wanted, *beside])
    for name, width in wanted.items():
        start = f"blocks.{at[name]}."
        here = {key.removeprefix(start): acts[key] for key in acts if key.startswith(start)}
        hook, number = name.removeprefix(start), int(at[name])
        problem = _shape_problem(here.get(hook), ids.shape, width) or _content_problem(
            hook, here, plain[number], lm.blocks[number]
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


def _content_problem(hook: str, here: dict[str, torch.Tensor], plain: Sequence[torch.Tensor], block: Any) -> str | None:
    x = here[hook]
    if hook in ("hook_resid_pre", "hook_resid_post"):
        holds = _same(x, plain[hook == "hook_resid_post"])
        return None if holds else "it is not what a forward hook on the block sees"
    if hook == "mlp.hook_post":
        projection = getattr(getattr(getattr(block, "mlp", None), "out", None), "original_component", None)
        if projection is None or "mlp.out.hook_out" not in here:
            return "its MLP has no output projection of its own (the experts of a mixture have one each)"
        with torch.no_grad():
            made = projection(x)
        ends = (here[end] for end in ("mlp.hook_out", "hook_mlp_out") if end in here)
        through = _same(made, here["mlp.out.hook_out"]) and any(_same(made, end) for end in ends)
        return None if through else "the MLP's output projection does not make the MLP's output of it"
    stream = [here.get(f"hook_{part}") for part in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    if all(part is not None for part in stream) and _same(sum(stream[:3]), stream[3]):
        return None
    pairs = ((here[before], here[after]) for before, after in ADDED[hook] if before in here and after in here)
    adds = any(_same(before + x, after) for before, after in pairs)
    return None if adds else "it is not what is added to the residual stream there"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one up to rounding, position by position (an outlier would drown the rest)."""
    if one.shape != other.shape:
        return False
    allowed = max(1e-5, 4 * torch.finfo(other.dtype).eps)
    one, other = one.float(), other.float()
    return bool(((one - other).norm(dim=-1) <= allowed * other.norm(dim=-1)).all())
