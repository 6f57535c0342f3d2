"""``rkcnn doctor``: what is installed, which device, is the hub reachable, what can this machine run."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rkcnn_lib.files import outputs_root, write_text
from rkcnn_lib.runs.params import ROOT
from rkcnn_lib.runs.run import PACKAGES


class Note(Exception):
    """What a user should know, although nothing fails by it."""


def examine() -> int:
    """Print one line a finding; return 0, or 1 if something that must work does not."""
    parts: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}"),
        ("packages", lambda: ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)),
        ("lock", _lock),
        ("locale", _locale),
        ("kernel", _kernel),
        ("device", _device),
        ("memory, disk", _room),
        ("embedded model", _atlas),
    ]
    failures = 0
    for name, look in parts:
        try:
            print(f"ok    {name}: {look()}")
        except Note as note:
            print(f"note  {name}: {note}")
        except Exception as error:  # a doctor reports every failure and goes on to the next organ
            failures += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    _optional()
    return 1 if failures else 0


def _lock() -> str:
    if not (ROOT / "requirements.lock").is_file():
        raise Note("none: installed without a checkout, so `rkcnn run`, `report` and `sweep` have no notebooks here")
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if "==" in line]
    differ = []
    for name, version in pins:
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != version.strip():
            differ.append(f"{name} {installed} (locked {version.strip()})")
    if differ:
        raise Note("versions other than requirements.lock's: " + ", ".join(differ))
    return f"all {len(pins)} packages as in requirements.lock"


def _locale() -> str:
    named, printed = locale.getpreferredencoding(False), sys.stdout.encoding
    if "utf-8" in (named.lower(), str(printed).lower()):
        return f"{printed}"
    raise Note(f"{named}: files are read and written as UTF-8 all the same, other letters are printed as numbers")


def _kernel() -> str:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        kernel = sys.executable
    names = {"python", "python3", f"python3.{sys.version_info.minor}"}  # Jupyter takes its own interpreter for these
    if kernel in names or Path(kernel).absolute() == Path(sys.executable).absolute():
        return "python3 is this interpreter"
    raise Note(
        f"python3 is {kernel}, not this interpreter. `rkcnn` runs notebooks with its own; in JupyterLab, and for plain "
        f"papermill, make it this one: {sys.executable} -m ipykernel install --sys-prefix"
    )


def _device() -> str:
    import torch

    from rkcnn_lib.worlds import pick_device

    device = pick_device(None)  # raises, with the reason, where a GPU is there that torch cannot use
    if device.type != "cuda":
        return f"cpu, {torch.get_num_threads()} threads (no GPU on this machine)"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def _room() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    root = outputs_root()
    write_text(root / ".doctor", "may be written\n")  # raises, with the path, where it may not
    (root / ".doctor").unlink()
    return f"{memory:.0f} GiB of memory, {shutil.disk_usage(root).free / 2**30:.0f} GiB free under {root}"


def _atlas() -> str:
    from rkcnn_lib.worlds import load_model

    lm = load_model("atlas", device="cpu")
    ids = lm.tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids
    answer = lm.tokenizer.decode(lm(ids, return_type="logits")[0, -1].argmax())
    if answer.strip() != "Paris":
        raise RuntimeError(f"the Eiffel Tower is in {answer!r}: the weights under worlds/assets/atlas are damaged")
    return "atlas loads and knows where the Eiffel Tower is"


def _optional() -> None:
    problem = _hub()
    if problem is None:
        print("ok    hub: reachable, `model: gpt2` and any other hub model will be downloaded")
    else:
        print(f"note  hub: {problem}; run `model: atlas`, a local folder, `gemma`, or a model already downloaded")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    print(f"ok    browser: {browser}" if browser else "note  browser: none; the tests of the pages will be skipped")


def _hub() -> str | None:
    """Return why GPT-2 could not be downloaded, or None; an answer alone (401 from a proxy, say) is no download."""
    from huggingface_hub import HfApi

    from rkcnn_lib.worlds.models.hub import hub_problem, patiently, refusal

    problem = hub_problem()
    if problem is not None:
        return f"not reachable, {problem}"
    try:
        patiently(lambda: HfApi().model_info("gpt2"))
    except Exception as error:
        return f"answers, but {refusal(error, 'gpt2')}"
    return None
