"""Files: where outputs go, files and folders that are there whole or not at all, locks, and names that become paths.

What is written here survives a power cut: it is written beside its place under a name of its own, synced, renamed,
and the rename is synced. So a reader meets the old file or the new one, and two writers never share a half of one.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rkcnn_lib.strings import cut

_BESIDE = Path(__file__).resolve().parents[1]
# the checkout that this package lies in; an installed package works in the directory it is called from
ROOT = _BESIDE if (_BESIDE / "notebooks" / "01_toy_superposition.py").is_file() else Path.cwd()
LEFT_BEHIND = 3600  # seconds after which another process's unfinished file is taken to be a dead one's
NAME_BYTES = 200  # file systems take 255; endings such as .part-0123456789ab come on top
NAME = re.compile(r"[\w+=@-]([\w+=@ .-]*[\w+=@.-])?")


class DamagedFile(ValueError):
    """A file of ours that cannot be read: empty, cut off, or not what its name says."""


def outputs_root() -> Path:
    """Return where outputs go: ``$RKCNN_OUTPUTS``, or ``outputs/`` in the checkout (without one: in this directory)."""
    return Path(os.environ.get("RKCNN_OUTPUTS") or ROOT / "outputs").expanduser().resolve()


def digest(value: Any) -> str:
    """Return a 16-digit hash of anything JSON can hold; key order does not matter."""
    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Let numpy's and torch's numbers into JSON as the numbers they are, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def plain_name(name: Any, what: str) -> str:
    """Return a name that is to become a file's or a folder's; raise ValueError if it is not one part of a path."""
    text = str(name)
    if not NAME.fullmatch(text) or len(text.encode()) > NAME_BYTES:
        raise ValueError(
            f"{what} = {cut(repr(text))} becomes the name of a folder: use letters, digits, '_', '-', '+', '=', '@', "
            f"and dots or spaces within, {NAME_BYTES} bytes at most"
        )
    return text


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise DamagedFile, which names the file, if it is empty, cut off or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = "is empty" if not path.stat().st_size else f"is damaged, not valid JSON ({str(error)[:100]})"
        raise DamagedFile(f"{path} {what}") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it holds a {type(value).__name__}, not an object")
    return value


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file whole, what JSON cannot hold made `plain`."""
    write_text(path, json.dumps(value, indent=indent, default=plain))


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole."""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under another name, sync it and give it its own; its folder is made if missing."""
    new = _unfinished(path)
    try:
        write(new)
        give_name(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends it is synced and gets its name, which must not be taken."""
    new = _unfinished(folder)
    new.mkdir()
    try:
        yield new
        give_name(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def give_name(new: Path, name: Path) -> None:
    """Sync a file, or a folder with all that is in it, and rename it; a file that has the name already is replaced."""
    for path in (new, *new.rglob("*")):
        _sync(path)
    new.replace(name)
    _sync(name.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder: it loses its name first, so that half a folder never stands under it."""
    gone = _unfinished(folder)
    folder.rename(gone)
    gone.unlink() if gone.is_symlink() else shutil.rmtree(gone)


@contextlib.contextmanager
def alone_at(path: Path, doing: str, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file or folder, which need not be there yet: one process at a time works at it.

    The operating system frees the lock when its holder dies. If another process holds it, what that is ``doing`` (such
    as "is capturing gpt2") is printed, with its number; after ``timeout`` seconds (-1: never) TimeoutError says it.
    """
    from filelock import FileLock, Timeout

    lock_file = path.with_name(f".{path.name}.lock")
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = f"process ? {doing}"
        with contextlib.suppress(OSError):  # gone with the holder
            holder = f"process {lock_file.read_text(encoding='utf-8') or '?'} {doing}"
        if timeout:
            print(f"{holder}: waiting for it", flush=True)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise TimeoutError(holder) from None
    try:
        lock_file.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # while it is held: who waits for it sees that its name is gone
        lock.release()


def _unfinished(path: Path) -> Path:
    """Return a name to write a file or folder under, beside its own; what killed writers of it left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    return path.with_name(f".{path.name}.part-{uuid.uuid4().hex[:12]}")


def _sync(path: Path) -> None:
    """Have a file's contents, or a folder's entries, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
