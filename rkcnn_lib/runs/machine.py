"""This machine: what is installed and what can run (``rkcnn doctor``), which activations lie here (``rkcnn cache``)."""

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from rkcnn_lib.files import alone_at, outputs_root, remove_folder, write_text
from rkcnn_lib.runs.params import ROOT
from rkcnn_lib.runs.run import PACKAGES
from rkcnn_lib.strings import cut, visible
from rkcnn_lib.worlds import load_model, pick_device
from rkcnn_lib.worlds.activations.store import ActivationStore, CacheError, read_manifest
from rkcnn_lib.worlds.models.hub import hub_problem, patiently, refusal

PARTIAL = ".partial"
LINE = 400  # characters shown of a cache


class Note(Exception):
    """What a user should know, although nothing fails by it."""


def examine() -> int:
    """Print one line a finding; return 0, or 1 if something that must work does not."""
    parts: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "packages": lambda: ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
        "lock": _lock, "kernel": _kernel, "device": _device, "memory, disk": _room, "embedded model": _atlas,
        "hub": _hub,
    }  # fmt: skip
    failed = 0
    for name, look in parts.items():
        try:
            print(f"ok    {name}: {look()}")
        except Note as note:
            print(f"note  {name}: {note}")
        except Exception as error:  # a doctor reports every failure and goes on to the next organ
            failed = 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    return failed


def _lock() -> str:
    lock = ROOT / "requirements.lock"
    if not lock.is_file():
        raise Note("none: installed without a checkout, so `rkcnn run`, `report` and `sweep` have no notebooks here")
    pins = re.findall(r"^(\S+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    differ = []
    for name, version in pins:
        installed = "missing"
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed = metadata.version(name).split("+")[0]
        if installed != version:
            differ.append(f"{name} {installed} (locked {version})")
    if differ:
        raise Note("versions other than requirements.lock's: " + ", ".join(differ))
    return f"all {len(pins)} packages as in requirements.lock"


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
    lm = load_model("atlas", device="cpu")
    ids = lm.tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids
    answer = lm.tokenizer.decode(lm(ids, return_type="logits")[0, -1].argmax())
    if answer.strip() != "Paris":
        raise RuntimeError(f"the Eiffel Tower is in {answer!r}: the weights under worlds/assets/atlas are damaged")
    return "atlas loads and knows where the Eiffel Tower is"


def _hub() -> str:
    from huggingface_hub import HfApi

    problem = hub_problem()
    said = f"not reachable, {problem}"
    if problem is None:
        try:
            patiently(lambda: HfApi().model_info("gpt2"))  # an answer alone (401 from a proxy, say) is no download
            return "reachable, `model: gpt2` and any other hub model will be downloaded"
        except Exception as error:
            said = f"answers, but {refusal(error, 'gpt2')}"
    raise Note(f"{said}; run `model: atlas`, a local folder, `gemma`, or a model already downloaded")


# ---------------------------------------------------------------- caches


def caches(action: str, names: list[str]) -> int:
    """List, verify or remove the activation caches that names, or their unambiguous beginnings, stand for.

    Returns 1 if a file does not have its checksum, else 0. None is removed that is not named or is being written.
    """
    folders = _chosen(names)
    if action == "ls":
        print("\n".join(map(_described, folders)) or f"no caches in {outputs_root() / 'cache'}")
        return 0
    if action == "verify":
        return max(map(_verified, folders), default=0)
    if not names:
        raise ValueError("rkcnn cache rm needs names, such as `rkcnn cache ls` shows")
    print("\n".join(f"removing {_described(folder)}" for folder in folders), flush=True)
    for folder in folders:
        whole = folder.with_name(folder.name.removesuffix(PARTIAL))
        try:
            with alone_at(whole, f"is writing {folder.name}", timeout=0):
                remove_folder(folder)
        except TimeoutError as error:
            raise ValueError(f"{error}; end it first") from None
        print(_one_line(f"removed {folder.name}"))
    return 0


def _chosen(names: list[str]) -> list[Path]:
    """Return the folders of these names; for no name those of all captures and of removals that were stopped."""
    there = [path for path in (outputs_root() / "cache").glob("*") if path.is_dir()]
    folders, named = sorted(path for path in there if path.name[0] != "." or _is_left(path)), []
    for name in names:
        fits = [path for path in folders if path.name == name]
        fits = fits or [path for path in folders if name and path.name.startswith(name)]
        if len(fits) != 1:
            listed = "\n".join(f"  {_one_line(path.name)}" for path in folders) or "  none"
            raise ValueError(f"{name!r} stands for {len(fits)} caches; there are\n{listed}")
        named += fits
    return named or folders


def _is_left(folder: Path) -> bool:
    """Say whether a folder is what a removal leaves that is stopped: it has lost its name already."""
    return folder.name[0] == "." and ".part-" in folder.name


def _described(folder: Path) -> str:
    size = 0
    with contextlib.suppress(OSError):  # files come and go while they are counted
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if folder.name.endswith(PARTIAL):
        state = "unfinished; the same run goes on with it"
    elif _is_left(folder):
        state = "left by a removal that was stopped, or just going; `rkcnn cache rm` removes it"
    elif not (folder / "manifest.json").exists():
        state = "no activation cache"
    else:
        try:
            m = read_manifest(folder)
            state = f"{m['n_tokens']:>11,} rows  {m['title']}, {m['hook_name']}, {m['text']['name']}, {m['created']}"
        except (CacheError, LookupError, TypeError, ValueError):
            state = "damaged: `rkcnn cache verify` says what is wrong"
    return _one_line(f"{folder.name}  {size / 2**20:9.1f} MiB  {state}")


def _verified(folder: Path) -> int:
    if folder.name.endswith(PARTIAL) or _is_left(folder):
        print(_described(folder))
        return 0
    try:
        ActivationStore(folder).verify()
    except CacheError as error:
        print(_one_line(f"{folder.name}: {error}"), file=sys.stderr)
        return 1
    print(_one_line(f"{folder.name}: whole"))
    return 0


def _one_line(text: str) -> str:
    """Return what comes from the disk with its control characters spelled out: a terminal would obey them."""
    return cut(visible(re.sub(r"[\t\n\r]", " ", text)), LINE)
