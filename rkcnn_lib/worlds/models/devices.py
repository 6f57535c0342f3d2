"""Which device to compute on: never a silent fall-back from a GPU to the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to compute on; None: the GPU if there is one, else the CPU. ``"cpu"`` is always obeyed.

    Raises
    ------
    RuntimeError
        If CUDA is asked for, or a GPU is there, and torch cannot use it: the message gives torch's reason.
    ValueError
        If the name is no device.
    """
    if device is None:
        if not _gpu_there() and not torch.cuda.is_available():
            return torch.device("cpu")
        if problem := cuda_problem():
            raise RuntimeError(
                f"this machine has a GPU that torch cannot use: {problem}. Install a torch that fits its driver, "
                "or say device = 'cpu' to compute on the CPU."
            )
        return torch.device("cuda")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device = {device!r}: expected cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (problem := cuda_problem(chosen)):
        raise RuntimeError(f"device = {str(device)!r} cannot be used: {problem}")
    return chosen


def cuda_problem(device: str | torch.device = "cuda") -> str | None:
    """Return why torch cannot compute on this CUDA device, or None if it can (one addition is tried)."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        (torch.ones(1, device=device) + 1).item()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _gpu_there() -> bool:
    """Whether an NVIDIA GPU is visible to this process, whatever torch thinks."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False  # hidden on purpose
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU " in listed.stdout
