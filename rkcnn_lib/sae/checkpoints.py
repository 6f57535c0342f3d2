"""Checkpoints of a training run: safetensors and JSON, written whole or not at all.

Nothing random happens after the start but the order of the data, which follows from the seed and the step; so weights,
Adam's moments, the dead-latent counter and the step are the whole state. On the processor a resumed run ends in the
same bits as an undisturbed one. On CUDA sums are made in a fixed order, without atomics, so that the same is to be
expected of the same card and libraries; another card rounds differently, and a run resumes there all the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rkcnn_lib.files import DamagedFile, read_json, write_json, write_whole
from rkcnn_lib.sae.trainer import Trainer

STATE_FILE = "checkpoint.json"
SKETCHED = 64  # values of each tensor by which a start is known again
ROUNDING = 0.01  # of their root mean square: what another device may make of the same start


def sketch(tensor: Tensor) -> list[float]:
    """Return some values of a tensor, evenly spread, by which the same numbers computed elsewhere are known again."""
    values = tensor.detach().flatten()
    return values[:: max(1, len(values) // SKETCHED)].double().tolist()


def save_checkpoint(trainer: Trainer, folder: Path, identity: dict[str, Any]) -> None:
    """Write the state of `trainer`; `identity` says what it started from and on what data.

    The JSON file names the tensor file and replaces its predecessor in one move, so a run that dies at any
    moment leaves a whole checkpoint, the new one or the one before.
    """
    name = _tensor_file(trainer.step)
    tensors = {key: tensor.cpu().contiguous() for key, tensor in _tensors(trainer).items()}
    write_whole(folder / name, lambda new: save_file(tensors, new))
    state = _settings(trainer, identity) | {
        "step": trainer.step,
        "scale": trainer.scale,
        "tensors": name,
        "history": trainer.history,
    }
    write_json(folder / STATE_FILE, state)
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
        if type(step) is not int or not 1 <= step <= trainer.config.steps or state["tensors"] != _tensor_file(step):
            raise DamagedFile(f"step {step!r} of {trainer.config.steps} with the tensors {state['tensors']!r}")
        if not (math.isfinite(scale) and scale > 0):
            raise DamagedFile(f"scale {scale!r}")
        tensors = load_file(folder / state["tensors"])
        trainer.step, trainer.scale, trainer.history = step, scale, state["history"]
        _restore(trainer, tensors)
    except (OSError, LookupError, TypeError, AttributeError, DamagedFile, SafetensorError) as error:
        raise ValueError(f"the checkpoint in {folder} is damaged ({error}); delete it to start again") from error


def _tensor_file(step: int) -> str:
    return f"step-{step:08d}.safetensors"


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
                raise ValueError(
                    f"{path} was made with {part} {name}={other}; use another checkpoint folder, or delete this one"
                )


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
    return tensors | {f"snapshot.{step}": snapshot for step, snapshot in trainer.snapshots.items()}


def _restore(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    for name, own in _tensors(trainer).items():
        if tensors[name].shape != own.shape or not torch.isfinite(tensors[name]).all():
            raise DamagedFile(f"{name} has shape {tuple(tensors[name].shape)}, or NaN or infinite values")
        own.copy_(tensors[name])  # in place, which keeps the memory layout
    for state in trainer.optimizer.state.values():
        state["step"].fill_(trainer.step)
    trainer.snapshots = {
        int(name.removeprefix("snapshot.")): tensor for name, tensor in tensors.items() if name.startswith("snapshot.")
    }
