"""Tiny random models of every causal architecture that TransformerBridge lists, and what our hooks hold in them.

A hook that the library lets through is held against the plain Hugging Face model: its values have to be what a PyTorch
forward hook on some module of the same block sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from rkcnn_lib.files import read_json, write_json
from rkcnn_lib.worlds import HOOKS, capture, hook_name, hook_width, load_model, model_facts
from rkcnn_lib.worlds.models.hooks import activations, check_hooks, own_layers
from tests.worlds.tiny import save_tokenizer

# Whatever of this a configuration has a setting for.
SIZES = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "word_embed_proj_dim": 32, "head_dim": 8,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16, "rotary_dim": 4,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "seq_length": 64, "sliding_window": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "n_shared_experts": 1,
    "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
OPTIONAL = ("sliding_window", "num_key_value_heads", "head_dim", "num_experts", "moe_intermediate_size")
DEFAULT = object()  # the configuration's own, not ours
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": DEFAULT,
}  # fmt: skip
FEW = {"topk_group": 1, "n_group": 1}
SCALED = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
# What an architecture wants besides.
SETTINGS: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {**STATE, "attn_layer_indices": [1, 3]},
    "DeepseekV2ForCausalLM": {**LATENT, **FEW, "first_k_dense_replace": 1},
    "DeepseekV3ForCausalLM": {**LATENT, **FEW, "first_k_dense_replace": 1},
    "FalconForCausalLM": {"head_dim": DEFAULT},
    "FlexOlmoForCausalLM": {"intermediate_size": 48},
    "Gemma4ForCausalLM": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 8, "num_key_value_heads": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "num_experts": None,
        "moe_intermediate_size": None,
    },
    "Glm4MoeLiteForCausalLM": {**LATENT, **FEW},
    "GlmMoeDsaForCausalLM": {**LATENT, **FEW, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 4},
    "GPTBigCodeForCausalLM": {"n_inner": None},
    "GPTJForCausalLM": {"n_inner": None},
    "CodeGenForCausalLM": {"n_inner": None},
    "GPTNeoForCausalLM": {
        "attention_types": [[["global", "local"], 2]], "window_size": 8, "intermediate_size": None,
    },
    "GraniteForCausalLM": SCALED,
    "GraniteMoeForCausalLM": SCALED,
    "GraniteMoeHybridForCausalLM": {
        **STATE, **SCALED, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 48,
        "position_embedding_type": "rope",
    },
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "JambaForCausalLM": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "FalconH1ForCausalLM": {**STATE, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "NemotronForCausalLM": {"head_dim": 8, "num_key_value_heads": 2},
    "NemotronHForCausalLM": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8},
    "Qwen3NextForCausalLM": LINEAR,
    "Qwen3_5ForCausalLM": LINEAR,
    "Qwen3_5MoeForCausalLM": LINEAR,
    "YoutuForCausalLM": LATENT,
    "Zamba2ForCausalLM": {
        "layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3], "mamba_d_state": 8, "n_mamba_heads": 4,
        "mamba_ngroups": 1, "num_mem_blocks": 1, "mamba_headdim": 16, "use_mem_rope": True, "num_key_value_heads": 4,
    },
}  # fmt: skip
# The same architecture wired otherwise: row -> (class, settings).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FalconForCausalLM, ALiBi, not parallel": (
        "FalconForCausalLM", {"head_dim": DEFAULT, "alibi": True, "parallel_attn": False},
    ),
    "FalconForCausalLM, new decoder architecture": (
        "FalconForCausalLM", {"head_dim": DEFAULT, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "GPTNeoXForCausalLM, not parallel": ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "OPTForCausalLM, norms after the sum (350M)": ("OPTForCausalLM", {"do_layer_norm_before": False}),
    "StableLmForCausalLM, parallel": ("StableLmForCausalLM", {"use_parallel_residual": True}),
}  # fmt: skip
# Names that checkpoints with code of their own carry, of models that transformers knows by another.
ALIASES = {
    "JetMoEForCausalLM": "JetMoeForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
}


class Row(NamedTuple):
    """What became of one architecture."""

    kind: str
    refused: str | None
    """Why the model is refused as a whole."""
    facts: Any
    hooks: dict[str, dict[int, str]]
    """By hook and block: the module of the plain model that sees the same, "WRONG", or "refused: " and the reason."""


def listed() -> list[str]:
    """Return the causal architectures of the installed bridge, with our variants."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    causal = [name for name in SUPPORTED_ARCHITECTURES if name.endswith(("ForCausalLM", "LMHeadModel"))]
    return sorted([*causal, *VARIANTS], key=str.lower)


def build(kind: str, folder: Path) -> str:
    """Save a tiny random model of a kind, with a tokenizer, and return its folder's name."""
    base, own = VARIANTS.get(kind, (ALIASES.get(kind, kind), SETTINGS.get(kind, {})))
    save_tokenizer(folder)
    made = class_of(kind)
    if made is None:  # a model whose code lies beside its weights on the hub: as it is saved there
        model_type = base.removesuffix("ForCausalLM").removesuffix("WithLMHeadModel").lower()
        sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
        code = {"AutoConfig": f"configuration_{model_type}.Config", "AutoModelForCausalLM": f"modeling.{base}"}
        write_json(
            folder / "config.json", {"model_type": model_type, "architectures": [kind], "auto_map": code, **sizes}
        )
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        return str(folder)
    torch.manual_seed(0)
    settings = {**_sizes(made.config_class), **own}
    model = made(made.config_class(**{name: value for name, value in settings.items() if value is not DEFAULT}))
    with torch.no_grad():  # norms start as the identity and weights near zero: let each do something of its own
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.add_(0.4 * (torch.rand_like(weights) - 0.5))
            elif "embed" not in name:
                weights.mul_(4)
    model.save_pretrained(folder)
    if kind in ALIASES:
        write_json(folder / "config.json", read_json(folder / "config.json") | {"architectures": [kind]})
    return str(folder)


def class_of(kind: str) -> Any:
    """Return transformers' class for a row of the table, None if it has none."""
    return getattr(transformers, VARIANTS[kind][0] if kind in VARIANTS else ALIASES.get(kind, kind), None)


def _sizes(config_class: Any) -> dict[str, Any]:
    """Return those of our sizes that a configuration has a setting for, each once."""
    default = config_class()

    def own(name: str) -> Any:
        try:
            return getattr(default, name, None if name in OPTIONAL else DEFAULT)
        except Exception:  # a setting of each block
            return DEFAULT

    sizes = {
        name: size
        for name, size in SIZES.items()
        if (value := own(name)) is not DEFAULT and (name not in OPTIONAL or value is not None)
    }
    return {name: size for name, size in sizes.items() if config_class.attribute_map.get(name) not in sizes}


def judge(kind: str, folder: Path) -> Row:
    """Try one architecture in an empty folder."""
    name = build(kind, folder)
    try:
        facts, lm = model_facts(name), load_model(name, device="cpu")
    except ValueError as error:
        return Row(kind, str(error).replace(name, "folder"), None, {})
    ids = torch.randint(3, facts.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    # "eager" as in the bridge: with ALiBi, transformers' other kernel for Falcon gives other numbers.
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen, logits = _plainly(plain, ids)
    with torch.no_grad():
        assert torch.allclose(lm(ids, return_type="logits"), logits, atol=1e-4 * float(logits.abs().max())), kind
    assert lm.cfg.n_ctx == facts.n_ctx, (kind, lm.cfg.n_ctx, facts.n_ctx)
    scale = getattr(plain.config, "residual_multiplier", 1.0)
    hooks: dict[str, dict[int, str]] = {hook: {} for hook in HOOKS}
    for layer in range(facts.n_layers):
        for hook in HOOKS:
            try:
                point = hook_name(hook, layer)
                check_hooks(lm, {point: hook_width(facts, hook)})
                acts = capture(lm, ids, layer, hook)
                with own_layers(lm, ids[:1], [point]):
                    own = activations(lm, ids, [point])[point]
            except ValueError as error:
                hooks[hook][layer] = f"refused: {str(error).replace(name, 'folder')}"
                continue
            hooks[hook][layer] = (_module(hook, layer, acts, seen, scale) if _close(own, acts) else None) or "WRONG"
    return Row(kind, None, facts, hooks)


def _plainly(model: Any, ids: torch.Tensor) -> tuple[dict[tuple[str, str], tuple[Any, torch.Tensor]], torch.Tensor]:
    """Return what forward hooks see, (module's name, side) -> (module, values), and the logits."""
    seen: dict[tuple[str, str], tuple[Any, torch.Tensor]] = {}

    def watch(path: str, module: Any, given: Any, named: dict[str, Any], made: Any) -> None:
        into = given[0] if given else named.get("hidden_states")
        for side, value in (("input", into), ("output", made)):
            value = value[0] if isinstance(value, tuple | list) and value else value
            if torch.is_tensor(value) and value.is_floating_point():
                seen.setdefault((path, side), (module, value.detach().clone()))

    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda module, given, named, made, path=path: watch(path, module, given, named, made), with_kwargs=True
        )
    with torch.no_grad():
        return seen, model(ids).logits


def _module(hook: str, layer: int, acts: torch.Tensor, seen: dict, scale: float) -> str | None:
    """Return which module of the block sees the same as our hook, and on which side; None if none does.

    ``mlp_post`` has to go into a linear map; what a sub-layer adds may be a module's output times ``scale``.
    """
    wanted = {"resid_pre": "input", "mlp_post": "input"}.get(hook, "output")
    for (path, side), (module, value) in sorted(seen.items(), key=lambda item: len(item[0][0])):
        before, _, within = path.partition(f".{layer}")
        if side != wanted or not before or value.numel() != acts.numel() or (within and within[0] != "."):
            continue
        if hook.startswith("resid") != (within == "") or (hook == "mlp_post" and not hasattr(module, "weight")):
            continue
        for factor in (1.0, scale):
            if _close(factor * value.reshape(acts.shape), acts):
                of = within.removeprefix(".") or "the block"
                return f"{side} of {of}" if factor == 1.0 else f"{factor} times the {side} of {of}"
    return None


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 1e-5 * other.norm())
