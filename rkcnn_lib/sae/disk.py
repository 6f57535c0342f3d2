"""SAEs on disk: finished ones in SAELens's format, and checkpoints of a training run; safetensors and JSON alone.

*SAELens's format* is a folder with ``cfg.json`` and ``sae_weights.safetensors``. ReLU is SAELens's ``standard``.
BatchTopK is written as the JumpReLU that it is at inference, with its threshold for every latent, and comes back as
one. Before version 6 SAELens named the activation function beside the architecture: a TopK was mostly a ``standard``
one with the function ``topk``.

*Checkpoints* are written whole or not at all. Nothing random happens after the start but the order of the data, which
follows from the seed and the step; so weights, Adam's moments, the dead-latent counter and the step are the whole
state, and on one machine a resumed run ends in the same bits as an undisturbed one. Another card rounds differently,
and a run resumes there all the same.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rkcnn_lib.files import DamagedFile, read_json, write_json, write_whole
from rkcnn_lib.sae.architectures import SAE, SAEConfig
from rkcnn_lib.sae.trainer import Trainer

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_WRITTEN_AS = {"relu": "standard", "topk": "topk", "batchtopk": "jumprelu", "jumprelu": "jumprelu"}
_ACTIVATIONS = {  # ours by SAELens's architecture and activation function, the first where a file names none
    "standard": {"relu": "relu", "topk": "topk"},
    "topk": {"topk": "topk"},
    "jumprelu": {"relu": "jumprelu"},
}
STATE_FILE = "checkpoint.json"
TENSOR_FILE = "step-{:08d}.safetensors"
SKETCHED = 64  # values of each tensor by which a start is known again
ROUNDING = 0.01  # of their root mean square: what another device may make of the same start


def save_saelens(sae: SAE, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> Path:
    """Write `sae`, in raw units, to `folder` so that SAELens's ``SAE.load_from_disk`` reads it; return the folder.

    `metadata`, JSON values such as model_name, hook_name, context_size, prepend_bos, goes over the configuration's own.
    """
    folder, config, architecture = Path(folder), sae.config, _WRITTEN_AS[sae.config.architecture]
    tensors = {name: getattr(sae, name).detach().float().cpu().contiguous() for name in _shapes(config)}
    unknown = ("model_name", "hook_name", "hook_head_index", "context_size", "prepend_bos")
    about = {"sae_lens_version": "6.0.0", **dict.fromkeys(unknown), "trained_as": config.architecture}
    if config.l1 is not None:
        about["l1_coefficient"] = config.l1
    if config.architecture == "batchtopk":
        about["k"] = config.k
    fields: dict[str, Any] = {
        "architecture": architecture, "d_in": config.d_in, "d_sae": config.d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": about | (metadata or {}),
    }  # fmt: skip
    if architecture == "topk":
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    write_whole(folder / WEIGHTS_FILE, lambda new: save_file(tensors, new))
    write_json(folder / CONFIG_FILE, fields)
    return folder


def _shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a file holds."""
    d_in, d_sae = config.d_in, config.d_sae
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    return shapes | ({"threshold": (d_sae,)} if _WRITTEN_AS[config.architecture] == "jumprelu" else {})


def load_saelens(folder: str | os.PathLike[str], device: str | torch.device | None = None) -> SAE:
    """Read an SAE that `save_saelens` or SAELens wrote, to the processor or a `device`.

    float32, decoder rows as they stand in the file, times its ``scaling_factor`` where it was finetuned with one (codes
    then reconstruct as they do in SAELens). AuxK is not kept; a `standard` file without an L1 coefficient gets 0.
    ValueError, with the file, for missing or damaged ones, and for what cannot be expressed here: other architectures
    and activation functions, normalised inputs.
    """
    folder = Path(folder)
    try:
        fields = read_json(folder / CONFIG_FILE)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {CONFIG_FILE}; give a folder in SAELens's format") from error
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


def _sae_config(folder: Path, fields: dict[str, Any]) -> SAEConfig:
    architecture = str(fields.get("architecture") or "standard")
    what = f"{folder}: architecture {architecture!r}"
    if architecture not in _ACTIVATIONS:
        raise ValueError(f"{what} is not supported; read here: {', '.join(_ACTIVATIONS)}")
    ours = _ACTIVATIONS[architecture]
    activation = str(fields.get("activation_fn_str") or fields.get("activation_fn") or next(iter(ours)))
    if activation not in ours:
        what += f" with the activation function {activation!r}"
        raise ValueError(f"{what} is not supported; read here: {', '.join(ours)}")
    k, l1 = fields.get("k"), None
    if ours[activation] == "topk":
        k = _within(fields, "activation_fn_kwargs").get("k", k)
    elif ours[activation] == "relu":
        l1 = _within(fields, "metadata").get("l1_coefficient") or 0.0
    try:
        return SAEConfig(fields["d_in"], fields["d_sae"], architecture=ours[activation], k=k, l1=l1)
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG_FILE} does not say {error}") from None
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
    shapes = _shapes(config)
    factor = next((name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors), None)
    if factor:
        shapes[factor] = (config.d_sae,)
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
        weights["W_dec"] *= scales[:, None]  # SAELens multiplies the codes between encoding and decoding
    return weights


def sketch(tensor: Tensor) -> list[float]:
    """Some values of a tensor, evenly spread, by which the same numbers computed elsewhere are known again."""
    values = tensor.detach().flatten()
    return values[:: max(1, len(values) // SKETCHED)].double().tolist()


def save_checkpoint(trainer: Trainer, folder: Path, identity: dict[str, Any]) -> None:
    """Write the state of `trainer`; `identity` says what it started from and on what data.

    The JSON file names the tensor file and is replaced in one move: there is a whole checkpoint at any moment.
    """
    name = TENSOR_FILE.format(trainer.step)
    tensors = {key: tensor.cpu().contiguous() for key, tensor in _tensors(trainer).items()}
    write_whole(folder / name, lambda new: save_file(tensors, new))
    state = {"step": trainer.step, "scale": trainer.scale, "tensors": name, "history": trainer.sae.history}
    write_json(folder / STATE_FILE, _settings(trainer, identity) | state)
    for old in folder.iterdir():  # earlier states, and what a killed process was writing
        if old.name.startswith(("step-", ".step-", f".{STATE_FILE}.part-")) and old.name != name:
            old.unlink(missing_ok=True)


def resume_checkpoint(trainer: Trainer, folder: Path, identity: dict[str, Any]) -> None:
    """Bring a fresh `trainer` to the state in `folder`; leave it alone when there is none.

    ValueError when the checkpoint is damaged, or was made with other settings, another start or other data.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return
    try:
        state = read_json(path)
        _compare(path, state, _settings(trainer, identity))
        step, scale = state["step"], state["scale"]
        known = type(step) is int and 1 <= step <= trainer.config.steps
        if not known or state["tensors"] != TENSOR_FILE.format(step):
            raise DamagedFile(f"step {step!r} of {trainer.config.steps} with the tensors {state['tensors']!r}")
        if not (math.isfinite(scale) and scale > 0):
            raise DamagedFile(f"scale {scale!r}")
        tensors = load_file(folder / state["tensors"])
        trainer.step, trainer.scale, trainer.sae.history = step, scale, state["history"]
        _restore(trainer, tensors)
    except (OSError, LookupError, TypeError, AttributeError, DamagedFile, SafetensorError) as error:
        raise ValueError(f"the checkpoint in {folder} is damaged ({error}); delete it to start again") from error


def _settings(trainer: Trainer, identity: dict[str, Any]) -> dict[str, Any]:
    training = asdict(trainer.config)
    del training["checkpoint_every"]  # may change between attempts without changing the result
    settings = {"sae": asdict(trainer.sae.config), "training": training, "identity": identity}
    return json.loads(json.dumps(settings))


def _compare(path: Path, state: dict[str, Any], expected: dict[str, Any]) -> None:
    for part, values in expected.items():
        for name, value in values.items():
            saved = state[part].get(name)
            if saved != value and not _alike(saved, value):
                other = "another" if isinstance(value, list) else f"{saved!r}, this run has {value!r}"
                told = "use another checkpoint folder, or delete this one"
                raise ValueError(f"{path} was made with {part} {name}={other}; {told}")


def _alike(a: Any, b: Any) -> bool:
    """Whether two sketches differ by no more than rounding."""
    if not (isinstance(a, list) and isinstance(b, list) and len(a) == len(b)):
        return False
    allowed = ROUNDING * math.hypot(*b) / max(1, len(b)) ** 0.5
    return all(math.isclose(x, y, rel_tol=ROUNDING, abs_tol=allowed) for x, y in zip(a, b, strict=True))


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The trainer's own tensors by their names in the file: copying into one changes the trainer."""
    tensors = {"silent_tokens": trainer.silent_tokens}
    for name, parameter in trainer.sae.named_parameters():
        tensors[name] = parameter.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = trainer.optimizer.state[parameter][moment]
    return tensors | {f"snapshot.{step}": snapshot for step, snapshot in trainer.sae.snapshots.items()}


def _restore(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    for name, own in _tensors(trainer).items():
        if tensors[name].shape != own.shape or not torch.isfinite(tensors[name]).all():
            raise DamagedFile(f"{name} has shape {tuple(tensors[name].shape)}, or NaN or infinite values")
        own.copy_(tensors[name])  # in place, which keeps the memory layout
    for state in trainer.optimizer.state.values():
        state["step"].fill_(trainer.step)
    shown = [name for name in tensors if name.startswith("snapshot.")]
    trainer.sae.snapshots = {int(name.removeprefix("snapshot.")): tensors[name] for name in shown}
