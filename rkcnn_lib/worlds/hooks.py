"""The hook points activations are read at.

``mlp_out`` and ``attn_out`` are what a sub-layer adds to the residual stream: in models that normalise a
sub-layer's output (Gemma 3), what comes after that normalisation. ``mlp_post`` is the input of the MLP's output
projection, gated where the model gates it.
"""

from __future__ import annotations

from rkcnn_lib.worlds.language import ModelFacts

__all__ = ["HOOKS", "check_hook", "hook_name", "hook_width"]

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
    """Return the width of the activations at a hook: ``d_mlp`` for ``mlp_post``, else ``d_model``."""
    return facts.d_mlp if check_hook(hook) == "mlp_post" else facts.d_model
