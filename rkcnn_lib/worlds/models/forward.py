"""One batch through a language model, up to the last block that is read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["activations", "contexts_at_once", "own_layers", "seen"]

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# ||own - bridge|| / ||bridge||: what another order of the same sums may change
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def contexts_at_once(lm: TransformerBridge, context_size: int) -> int:
    """Return how many contexts make a batch on the model's device."""
    return max(1, BATCH_TOKENS.get(torch.device(lm.cfg.device).type, 2048) // context_size)


def activations(lm: TransformerBridge, ids: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Run one batch up to the last block needed; return (batch * position, d) for each hook name asked for."""
    cache = _cache(lm, ids, names)
    # The cache may hold twins of a hook under other names: only the name asked for is read.
    return {name: cache[name].flatten(0, 1) for name in names}


def seen(
    lm: TransformerBridge, ids: torch.Tensor, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Run one batch; return what those hooks hold that fire, and by block what goes into it and what comes out.

    The latter is what PyTorch's own forward hooks see. All tensors are (batch, position, d).
    """
    plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(number: int, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        into = given[0] if given else named["hidden_states"]
        plain[number] = tuple((v[0] if isinstance(v, tuple | list) else v).detach().clone() for v in (into, made))

    names = [name for name in names if name in lm.hook_dict]
    if not names:
        return {}, {}
    with contextlib.ExitStack() as stack:
        for number in sorted({int(name.split(".")[1]) for name in names}):
            block = lm.blocks[number]
            block = getattr(block, "original_component", None) or block
            handle = block.register_forward_hook(
                lambda _, given, named, made, number=number: watch(number, given, named, made), with_kwargs=True
            )
            stack.callback(handle.remove)
        cache = _cache(lm, ids, names)
    return {name: cache[name] for name in names if name in cache}, plain


def _cache(lm: TransformerBridge, ids: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
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
def own_layers(lm: TransformerBridge, ids: torch.Tensor, names: Sequence[str]) -> Iterator[bool]:
    """Let attention and normalisation run as the model's library wrote them while the hooks outside of them are read.

    TransformerBridge rebuilds both step by step, so that patterns and scales can be edited within, which takes a
    tenth of a pass. Between the same hook points the layers that it wraps do the same in one kernel each. They are
    used only if they give the same numbers on ``ids`` up to rounding, else everything stays as it was.

    Parameters
    ----------
    lm : TransformerBridge
        Changed within the context, restored after it.
    ids : (batch, position) long tensor
        Tokens to try: one context is enough.
    names : sequence of str
        Hooks that will be read, none of them within attention or a normalisation.

    Yields
    ------
    bool
        Whether the model's own layers are in use.
    """
    rebuilt = activations(lm, ids, names)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_unwrapped(lm))
            own = activations(lm, ids, names)
            same = all(_close(own[name], rebuilt[name]) for name in names)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            same = False  # a model whose layers cannot do without their bridge
        if not same:
            stack.close()
        yield same


def _close(own: torch.Tensor, rebuilt: torch.Tensor) -> bool:
    allowed = ROUNDING.get(rebuilt.dtype, 0.0)
    own, rebuilt = own.float(), rebuilt.float()
    return own.shape == rebuilt.shape and bool((own - rebuilt).norm() <= allowed * rebuilt.norm())


@contextlib.contextmanager
def _unwrapped(lm: TransformerBridge) -> Iterator[None]:
    from transformer_lens.model_bridge.generalized_components import AttentionBridge, NormalizationBridge

    ways = {AttentionBridge: AttentionBridge.forward, NormalizationBridge: _normalise}
    changed = [(part, way) for part in lm.modules() for kind, way in ways.items() if isinstance(part, kind)]
    model, before = lm.original_model, lm.original_model.config._attn_implementation
    try:
        for part, way in changed:
            part.__dict__["forward"] = functools.partial(way, part)  # setattr would reach the layer within
        model.set_attn_implementation("sdpa")
        yield
    finally:
        for part, _ in changed:
            part.__dict__.pop("forward", None)
        model.set_attn_implementation(before)


def _normalise(part: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    return part.hook_out(part.original_component(part.hook_in(hidden_states)))
