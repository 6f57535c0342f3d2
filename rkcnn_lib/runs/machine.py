"""This machine: what is installed and what can run (``rkcnn doctor``), which activations lie here (``rkcnn cache``)."""

from __future__ import annotations

import contextlib
import locale
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rkcnn_lib.files import alone_at, outputs_root, remove_folder, write_text
from rkcnn_lib.runs.params import ROOT
from rkcnn_lib.runs.run import PACKAGES
from rkcnn_lib.strings import cut, visible
from rkcnn_lib.worlds.activations.store import ActivationStore, CacheError, read_manifest

PARTIAL = ".partial"
LINE = 400  # characters shown of a cache


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


# ---------------------------------------------------------------- caches


def cache_folders() -> list[Path]:
    """Return the folders of whole and unfinished captures, and of removals that were stopped, by name."""
    root = outputs_root() / "cache"
    return sorted(p for p in root.iterdir() if p.is_dir() and (p.name[0] != "." or is_left(p))) if root.is_dir() else []


def is_left(folder: Path) -> bool:
    """Say whether a folder is what a removal leaves that is stopped: it has lost its name already."""
    return folder.name[0] == "." and ".part-" in folder.name


def chosen(names: list[str]) -> list[Path]:
    """Return the folders that the names or unambiguous beginnings of names stand for; all for no name.

    Raises ValueError for a name that stands for no folder or for several; the message lists what there is.
    """
    folders, named = cache_folders(), []
    for name in names:
        if not name:
            raise ValueError("an empty name stands for no cache: give one that `rkcnn cache ls` shows")
        fits = [path for path in folders if path.name == name] or [p for p in folders if p.name.startswith(name)]
        if len(fits) != 1:
            listed = "\n".join(f"  {_one_line(path.name)}" for path in folders) or "  none"
            raise ValueError(f"{name!r} stands for {len(fits)} caches; there are\n{listed}")
        named += fits
    return named or folders


def describe(folder: Path) -> str:
    """Return one line: name, size, rows, what of which model, or that it is unfinished, damaged or no cache.

    What comes from the disk is shown with its control characters spelled out: a terminal would obey them.
    """
    size = 0
    with contextlib.suppress(OSError):  # files come and go while they are counted
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _one_line(f"{folder.name}  {size / 2**20:9.1f} MiB  {_state(folder)}")


def _state(folder: Path) -> str:
    if folder.name.endswith(PARTIAL):
        return "unfinished; the same run goes on with it"
    if is_left(folder):
        return "left by a removal that was stopped, or just going; `rkcnn cache rm` removes it"
    try:
        m = read_manifest(folder)
        return f"{m['n_tokens']:>11,} rows  {m['title']}, {m['hook_name']}, {m['text']['name']}, {m['created']}"
    except (CacheError, LookupError, TypeError, ValueError):
        has_manifest = (folder / "manifest.json").exists()
        return "damaged: `rkcnn cache verify` says what is wrong" if has_manifest else "no activation cache"


def _one_line(text: str) -> str:
    return cut(visible(re.sub(r"[\t\n\r]", " ", text)), LINE)


def show() -> int:
    """List the caches."""
    folders = cache_folders()
    print("\n".join(map(describe, folders)) if folders else f"no caches in {outputs_root() / 'cache'}")
    return 0


def verify(names: list[str]) -> int:
    """Compare every file of the caches with its checksum; return 1 if one is damaged."""
    damaged = 0
    for folder in chosen(names):
        if folder.name.endswith(PARTIAL) or is_left(folder):
            print(describe(folder))
            continue
        try:
            ActivationStore(folder).verify()
            print(_one_line(f"{folder.name}: whole"))
        except CacheError as error:
            damaged += 1
            print(_one_line(f"{folder.name}: {error}"), file=sys.stderr)
    return min(damaged, 1)


def remove(names: list[str]) -> int:
    """Remove the caches named (never all of them unnamed), unless one is being written; list first what will go."""
    if not names:
        raise ValueError("rkcnn cache rm needs names, such as `rkcnn cache ls` shows")
    folders = chosen(names)
    print("\n".join(f"removing {describe(folder)}" for folder in folders), flush=True)
    for folder in folders:
        whole = folder.with_name(folder.name.removesuffix(PARTIAL))
        try:
            with alone_at(whole, f"is writing {folder.name}", timeout=0):
                remove_folder(folder)
        except TimeoutError as error:
            raise ValueError(f"{error}; end it first") from None
        print(_one_line(f"removed {folder.name}"))
    return 0
