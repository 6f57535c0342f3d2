"""SAEs on disk, in SAELens's format: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

Written and read here with safetensors alone. ReLU is SAELens's ``standard``. BatchTopK is written as the
JumpReLU that it is at inference, with its threshold for every latent, and comes back as one.
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
_READ_AS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}


def save_saelens(sae: SAE, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> Path:
    """Write `sae` to `folder` (made when missing) so that SAELens's ``SAE.load_from_disk`` reads it.

    Parameters
    ----------
    sae : SAE
        In raw units, as training returns it.
    folder : path
    metadata : dict, optional
        JSON values such as model_name, hook_name, context_size, prepend_bos; added to the ``metadata`` of the
        configuration, over its defaults.

    Returns
    -------
    Path
        The folder. Each file is replaced whole, the configuration last.
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
    defaults: dict[str, Any] = {
        "sae_lens_version": "6.0.0",
        "model_name": None,
        "hook_name": None,
        "hook_head_index": None,
        "context_size": None,
        "prepend_bos": None,
        "trained_as": config.architecture,
    }
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
    """Read an SAE that `save_saelens` or SAELens wrote.

    Parameters
    ----------
    folder : path
    device : optional
        Where to put it; None is the processor, where files are read.

    Returns
    -------
    SAE
        float32, decoder rows as they stand in the file. AuxK, which concerns training alone, is not kept. A
        `standard` file of another author, which does not say its L1 coefficient, gets 0.

    Raises
    ------
    ValueError
        On a missing or damaged file, an architecture other than standard, topk and jumprelu, input normalising
        that weights cannot express, and tensors that do not fit the configuration.
    """
    folder = Path(folder)
    fields = _read_config(folder)
    architecture = fields.get("architecture")
    if architecture not in _READ_AS:
        raise ValueError(f"{folder}: architecture {architecture!r} is not supported; read here: {', '.join(_READ_AS)}")
    for name, expected in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if fields.get(name, expected) not in (expected, None):
            raise ValueError(f"{folder}: {name}={fields[name]!r}; only {expected!r} is read here")
    l1 = (fields.get("metadata") or {}).get("l1_coefficient", 0.0) if architecture == "standard" else None
    config = SAEConfig(fields["d_in"], fields["d_sae"], architecture=_READ_AS[architecture], k=fields.get("k"), l1=l1)
    tensors = _read_tensors(folder, config)
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
    if "architecture" not in fields:  # SAELens before version 6
        activation = fields.get("activation_fn_str", fields.get("activation_fn", "relu"))
        fields["architecture"] = {"relu": "standard", "topk": "topk"}.get(activation, activation)
        fields["k"] = (fields.get("activation_fn_kwargs") or {}).get("k")
        if fields.get("normalize_activations") is False:
            fields["normalize_activations"] = "none"
    missing = [name for name in ("d_in", "d_sae") if name not in fields]
    if missing:
        raise ValueError(f"{folder / CONFIG_FILE} does not say {', '.join(missing)}")
    return fields


def _read_tensors(folder: Path, config: SAEConfig) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error
    d_in, d_sae = config.d_in, config.d_sae
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    if config.architecture == "jumprelu":
        shapes["threshold"] = (d_sae,)
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise ValueError(f"{path}: {name} has shape {found}; the configuration says {shape}")
    return {name: tensors[name].float() for name in shapes}
