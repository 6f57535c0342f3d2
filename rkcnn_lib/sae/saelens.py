"""SAEs on disk, in SAELens's format: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

Written and read here with safetensors alone. ReLU is SAELens's ``standard``. BatchTopK is written as the
JumpReLU that it is at inference, with its threshold for every latent, and comes back as one. Before version 6 SAELens
named the activation function beside the architecture: a TopK was mostly a ``standard`` one with the function ``topk``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rkcnn_lib.files import read_json, write_json, write_whole
from rkcnn_lib.sae.architectures import SAE, SAEConfig

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_WRITTEN_AS = {"relu": "standard", "topk": "topk", "batchtopk": "jumprelu", "jumprelu": "jumprelu"}
_ACTIVATIONS = {  # ours by SAELens's architecture and activation function, the first where a file names none
    "standard": {"relu": "relu", "topk": "topk"},
    "topk": {"topk": "topk"},
    "jumprelu": {"relu": "jumprelu"},
}


def save_saelens(sae: SAE, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> Path:
    """Write `sae` to `folder` (made when missing) so that SAELens's ``SAE.load_from_disk`` reads it; return it.

    `sae` is in raw units, as training returns it. `metadata`, JSON values such as model_name, hook_name, context_size,
    prepend_bos, goes over the configuration's own. Each file is replaced whole, the configuration last.
    """
    folder = Path(folder)
    names = ["W_enc", "W_dec", "b_enc", "b_dec"]
    architecture = _WRITTEN_AS[sae.config.architecture]
    if architecture == "jumprelu":
        names.append("threshold")
    tensors = {name: getattr(sae, name).detach().float().cpu().contiguous() for name in names}
    write_whole(folder / WEIGHTS_FILE, lambda new: save_file(tensors, new))
    write_json(folder / CONFIG_FILE, _config_json(sae.config, architecture, metadata or {}))
    return folder


def _config_json(config: SAEConfig, architecture: str, metadata: dict[str, Any]) -> dict[str, Any]:
    unknown = ("model_name", "hook_name", "hook_head_index", "context_size", "prepend_bos")
    defaults = {"sae_lens_version": "6.0.0", **dict.fromkeys(unknown), "trained_as": config.architecture}
    if config.l1 is not None:
        defaults["l1_coefficient"] = config.l1
    if config.architecture == "batchtopk":
        defaults["k"] = config.k
    fields: dict[str, Any] = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": defaults | metadata,
    }
    if architecture == "topk":
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    return fields


def load_saelens(folder: str | os.PathLike[str], device: str | torch.device | None = None) -> SAE:
    """Read an SAE that `save_saelens` or SAELens wrote, to the processor or a `device`.

    float32, decoder rows as they stand in the file, times its ``scaling_factor`` where it was finetuned with one (codes
    then reconstruct as they do in SAELens). AuxK, which concerns training alone, is not kept. A `standard` file of
    another author, which does not say its L1 coefficient, gets 0.

    Raises
    ------
    ValueError
        On a missing or damaged file, an architecture other than standard, topk and jumprelu or another activation
        function than ReLU and TopK, input normalising that weights cannot express, tensors that do not fit the
        configuration, and NaN or infinite weights.
    """
    folder = Path(folder)
    fields = _read_config(folder)
    for name in ("normalize_activations", "reshape_activations"):
        if fields.get(name) not in ("none", None, False):
            raise ValueError(f"{folder}: {name}={fields[name]!r}; only 'none' is read here")
    config = _sae_config(folder, fields)
    tensors = _read_tensors(folder, config, bool(fields.get("finetuning_scaling_factor")))
    if fields.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
            raise ValueError(f"{folder}: rescale_acts_by_decoder_norm with decoder rows that are not unit length")
    if not fields.get("apply_b_dec_to_input", True):
        # x W + b = (x - b_dec) W + (b + b_dec W)
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    sae = SAE(config)
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(sae, name).copy_(tensor)
    return sae if device is None else sae.to(device)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        fields = read_json(folder / CONFIG_FILE)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {CONFIG_FILE}; give a folder in SAELens's format") from error
    missing = [name for name in ("d_in", "d_sae") if name not in fields]
    if missing:
        raise ValueError(f"{folder / CONFIG_FILE} does not say {', '.join(missing)}")
    return fields


def _sae_config(folder: Path, fields: dict[str, Any]) -> SAEConfig:
    architecture = str(fields.get("architecture") or "standard")
    if architecture not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"{folder}: architecture {architecture!r} is not supported; read here: {known}")
    ours = _ACTIVATIONS[architecture]
    activation = str(fields.get("activation_fn_str") or fields.get("activation_fn") or next(iter(ours)))
    if activation not in ours:
        raise ValueError(
            f"{folder}: architecture {architecture!r} with the activation function {activation!r} is not supported; "
            f"read here: {', '.join(ours)}"
        )
    k, l1 = fields.get("k"), None
    if ours[activation] == "topk":
        k = _within(fields, "activation_fn_kwargs").get("k", k)
    elif ours[activation] == "relu":
        l1 = _within(fields, "metadata").get("l1_coefficient") or 0.0
    try:
        return SAEConfig(fields["d_in"], fields["d_sae"], architecture=ours[activation], k=k, l1=l1)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from None


def _within(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _read_tensors(folder: Path, config: SAEConfig, finetuned: bool) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error
    d_in, d_sae = config.d_in, config.d_sae
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    if config.architecture == "jumprelu":
        shapes["threshold"] = (d_sae,)
    factor = next((name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors), None)
    if factor:
        shapes[factor] = (d_sae,)
    for name, shape in shapes.items():
        stored = tuple(tensors[name].shape) if name in tensors else None
        if stored != shape:
            raise ValueError(f"{path}: {name} has shape {stored}; the configuration says {shape}")
        if not tensors[name].is_floating_point() or not torch.isfinite(tensors[name].float()).all():
            raise ValueError(f"{path}: {name} holds NaN, infinite values or no floating-point numbers")
    weights = {name: tensors[name].float() for name in shapes}
    scales = weights.pop(factor) if factor else torch.ones(())
    if not torch.allclose(scales, torch.ones_like(scales)):  # SAELens itself leaves out ones
        if not finetuned:
            raise ValueError(f"{path}: {factor} is not 1, but {CONFIG_FILE} does not say finetuning_scaling_factor")
        weights["W_dec"] = (
            weights["W_dec"] * scales[:, None]
        )  # SAELens multiplies the codes between encoding and decoding
    return weights
