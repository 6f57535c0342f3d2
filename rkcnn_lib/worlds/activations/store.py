"""Sharded activation cache on disk, the same interface over a tensor in memory, and the splits of both.

A store is a folder: ``acts-00000.safetensors`` ... (rows in token order, each dimension to be multiplied by its
scale), ``tokens.safetensors`` (for each row its token, document, position and whether it counts) and
``manifest.json``, written last. Shards are memory-mapped, and a shard's checksum is compared when it is first read.
"""

import contextlib
import functools
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rkcnn_lib.files import read_json, sha256_of
from rkcnn_lib.tensors import one_of, whole
from rkcnn_lib.worlds.text import HELD_OUT_SHARE, SPLITS, document_hash, split_of

# The version is in every key. 2: shards have scales; null is no document; white space at the ends of a text does not
# decide its split.
FORMAT, FORMAT_VERSION = "rkcnn-activations", 2
TOKENS_FILE = "tokens.safetensors"
COLUMNS = ("tokens", "positions", "document_ids", "mask", "document_hashes")  # the first four: one value a row


class CacheError(RuntimeError):
    """A cache on disk is damaged, incomplete or not the one asked for."""


class Store(ABC):
    """Rows of activations with their documents; what :class:`ActivationStore` and :class:`MemoryStore` share."""

    manifest: dict[str, Any]  # what the rows are and where they come from
    d_in: int  # width of a row
    tokens: np.ndarray  # (n,) token id of each row, -1 where rows are no tokens
    positions: np.ndarray  # (n,) position of each row in its context
    document_ids: np.ndarray  # (n,) number of each row's document
    document_hashes: np.ndarray  # (n_documents,) int64: decide the splits
    mask: np.ndarray  # (n,) bool; False at position 0 and at special tokens: rows that are kept but in no split

    @abstractmethod
    def _take(self, rows: np.ndarray) -> torch.Tensor: ...

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """Return the given rows, in the order given, as a (len(rows), d_in) float32 tensor."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked of {len(self)}")
        return self._take(rows)

    @property
    def key(self) -> str:
        """Hash of everything the rows depend on."""
        return self.manifest["key"]

    @property
    def context_size(self) -> int:
        """Rows a context (of a MemoryStore: rows a block)."""
        return self.manifest["context_size"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | int | np.ndarray) -> torch.Tensor:
        rows = np.arange(len(self))[index]
        return self.take(rows) if np.ndim(rows) else self.take(rows[None])[0]

    def rows(self, split: str, seed: int = 0) -> np.ndarray:
        """Return the row numbers of a split in token order, without position 0 and special tokens.

        ``split`` is "train", "mine" or "heldout"; ``seed`` decides which documents are mined on (the held-out ones are
        the same for every seed). ValueError if the split holds no row.
        """
        rows = np.flatnonzero(self.mask & self._in_split(split, seed))
        if not len(rows):
            n = len(self.document_hashes)
            raise ValueError(f"split {split!r} (seed {seed}) holds no rows: {n} documents are too few to be split")
        return rows

    def matrix(self, split: str, seed: int = 0, n_rows: int | None = None) -> torch.Tensor:
        """Return rows of a split as one (n, d_in) float32 tensor.

        ``n_rows`` are drawn at random without replacement under ``seed`` (a smaller draw is the beginning of a larger
        one); None gives all, in token order. Asking for more than there are gives all of them and a warning.
        """
        rows = self.rows(split, seed)
        if n_rows is not None:
            if whole("n_rows", n_rows) > len(rows):
                warnings.warn(f"{n_rows} rows asked of split {split!r}, which has {len(rows)}", stacklevel=2)
            rows = _generator(seed, split, "matrix").permutation(rows)[:n_rows]
        return self.take(rows)

    def batches(
        self, batch_size: int, seed: int = 0, split: str = "train", epochs: int | None = None, start: int = 0
    ) -> Iterator[torch.Tensor]:
        """Yield (batch_size, d_in) float32 batches of a split, every row once an epoch, in an order of its own.

        ``seed`` decides the split's documents and the order; ``start`` batches are skipped without being read. Without
        ``epochs`` it is endless: rows that do not fill a batch at an epoch's end are left out, and all batches are
        equally large. Else they come as a smaller last batch, and every row is seen.
        """
        rows = self.rows(split, seed)
        if not 1 <= batch_size <= len(rows):
            raise ValueError(f"batch_size = {batch_size}: split {split!r} has {len(rows)} rows, allowed are 1 to that")
        start = whole("start", start, 0)
        per_epoch = len(rows) // batch_size if epochs is None else -(-len(rows) // batch_size)

        def drawn() -> Iterator[torch.Tensor]:
            epoch, first = divmod(start, per_epoch)
            while epochs is None or epoch < epochs:
                order = _generator(seed, split, epoch).permutation(rows)
                for i in range(first, per_epoch):
                    yield self.take(order[i * batch_size : (i + 1) * batch_size])
                epoch, first = epoch + 1, 0

        return drawn()  # the arguments are checked now, not with the first batch

    def contexts(self, split: str = "heldout", seed: int = 0) -> torch.Tensor:
        """Return the (n_contexts, context_size) token ids of the contexts that hold documents of one split only.

        ValueError if the rows are no tokens, or no context belongs wholly to the split.
        """
        return torch.from_numpy(self._whole_contexts(self.tokens, split, seed).astype(np.int64))

    def context_mask(self, split: str = "heldout", seed: int = 0) -> torch.Tensor:
        """Return which positions of `contexts` are rows of the split, (n_contexts, context_size) bool.

        Position 0 and special tokens are not: nothing is trained or judged on them.
        """
        return torch.from_numpy(self._whole_contexts(self.mask, split, seed))

    def context_documents(self, split: str = "heldout", seed: int = 0) -> torch.Tensor:
        """Return the number of the first document in each of `contexts`, (n_contexts,)."""
        return torch.from_numpy(self._whole_contexts(self.document_ids, split, seed)[:, 0])

    def _whole_contexts(self, column: np.ndarray, split: str, seed: int) -> np.ndarray:
        if self.tokens[0] < 0:
            raise ValueError(f"{self.manifest.get('title')}: rows are no tokens, so there are no contexts")
        ours = self._in_split(split, seed).reshape(-1, self.context_size).all(1)
        if not ours.any():
            raise ValueError(f"no context holds documents of split {split!r} (seed {seed}) only")
        return column.reshape(-1, self.context_size)[ours]

    def _in_split(self, split: str, seed: int) -> np.ndarray:
        one_of("split", split, SPLITS)
        return (split_of(self.document_hashes, seed, self.manifest["held_out_share"]) == split)[self.document_ids]


class ActivationStore(Store):
    """A captured cache in a folder (see :func:`rkcnn_lib.worlds.open_or_capture`).

    CacheError, naming the file and what to do, if the folder is no such cache or a file is missing or short; on
    reading, if a checksum differs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.d_in = self.manifest["width"]
        for record in self.manifest["shards"]:
            _check_size(self.folder, record)
        self._starts = np.cumsum([0, *(record["rows"] for record in self.manifest["shards"])])
        self._shards: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        columns = [c.numpy() for c in load_tensors(self.folder, self.manifest["tokens"], COLUMNS)]
        self.tokens, self.positions, self.document_ids, mask, self.document_hashes = columns
        self.mask = mask.astype(bool)
        if any(len(column) != self._starts[-1] for column in columns[:-1]):
            raise damaged(self.folder, "manifest.json", "counts other rows than tokens.safetensors")
        if not 0 <= self.document_ids.min() <= self.document_ids.max() < len(self.document_hashes):
            raise damaged(self.folder, TOKENS_FILE, "holds rows of documents that it does not list")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder's name: a worker process opens the files itself, once."""
        return _opened, (self.folder,)

    def verify(self) -> None:
        """Compare every file with its checksum; CacheError at the first that differs."""
        for record in (self.manifest["tokens"], *self.manifest["shards"]):
            _check_sum(self.folder, record)

    def _take(self, rows: np.ndarray) -> torch.Tensor:
        out = torch.empty(len(rows), self.d_in)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            places = np.flatnonzero(shard_of == shard)
            acts, scale = self._shard(int(shard))
            out[torch.from_numpy(places)] = acts[torch.from_numpy(rows[places] - self._starts[shard])].float() * scale
        return out

    def _shard(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number not in self._shards:
            record = self.manifest["shards"][number]
            acts, scale = load_tensors(self.folder, record, ("acts", "scale"))
            if acts.shape != (record["rows"], self.d_in) or scale.shape != (self.d_in,):
                raise damaged(self.folder, record["file"], f"holds {tuple(acts.shape)} values")
            self._shards[number] = acts, scale
        return self._shards[number]


@functools.lru_cache(maxsize=64)
def _opened(folder: Path) -> ActivationStore:
    return ActivationStore(folder)


class MemoryStore(Store):
    """The interface of :class:`ActivationStore` over a tensor, for data that come from no language model.

    ``X`` (n, d) is kept as float32; ``block`` consecutive rows count as one document for the splits. ``name`` says what
    the rows are and ``facts`` more, for the manifest; ``truth`` (n_true, d) are the true directions, where known.
    """

    def __init__(
        self,
        X: torch.Tensor | np.ndarray,
        block: int = 64,
        name: str = "tensor",
        truth: torch.Tensor | None = None,
        **facts: Any,
    ) -> None:
        # numpy's, which joblib gives to all worker processes as one file instead of a copy with every cell
        self.X, self.truth = torch.as_tensor(X).detach().to("cpu", torch.float32).contiguous().numpy(), truth
        if self.X.ndim != 2 or not len(self.X):
            raise ValueError(f"X has shape {self.X.shape}: expected (n, d) with n > 0")
        n, self.d_in = self.X.shape
        self.document_ids, self.positions = np.divmod(np.arange(n), whole("block", block))
        self.tokens, self.mask = np.full(n, -1), np.ones(n, dtype=bool)
        n_documents = int(self.document_ids[-1]) + 1
        self.document_hashes = np.array([document_hash(f"{name}/{i}") for i in range(n_documents)])
        content = hashlib.sha256(self.X.tobytes() + f"{name} {block} {HELD_OUT_SHARE}".encode())
        self.manifest = facts | {
            "format": "rkcnn-memory", "key": content.hexdigest()[:16], "title": name, "width": self.d_in,
            "n_tokens": n, "n_documents": n_documents, "context_size": block, "held_out_share": HELD_OUT_SHARE,
            "dtype": "float32",
        }  # fmt: skip

    def _take(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.X[rows])


def _generator(seed: int, split: str, purpose: int | str) -> np.random.Generator:
    return np.random.default_rng(document_hash(f"{seed} {split} {purpose}"))


# ---- files, held to the names, sizes and checksums in the manifest --------------------------------------------------


def shard_file(number: int) -> str:
    """Return a shard's name. A manifest may name no other: a path in it would be read wherever it leads."""
    return f"acts-{number:05d}.safetensors"


def file_record(path: Path, **more: Any) -> dict[str, Any]:
    """Return a manifest's entry for a file: name, size in bytes, SHA-256."""
    return {"file": path.name, **more, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``; raise CacheError unless it is one of ours and of this version."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise CacheError(f"{folder} is no activation cache: it has no manifest.json (written last of all)")
    with _reading(folder, path.name):
        manifest = read_json(path)
        version = (manifest["format"], manifest["version"])
        if version != (FORMAT, FORMAT_VERSION):
            raise damaged(folder, path.name, f"says format {version!r:.100}, expected {(FORMAT, FORMAT_VERSION)}")
        files = [record["file"] for record in (*manifest["shards"], manifest["tokens"])]
        counts = [manifest["width"], manifest["context_size"], *(shard["rows"] for shard in manifest["shards"])]
        is_sound = (
            isinstance(manifest["key"], str)
            and files == [*map(shard_file, range(len(files) - 1)), TOKENS_FILE]
            and all(type(count) is int and count > 0 for count in counts)
            and 0 < manifest["held_out_share"] < 1
        )
    if not is_sound:
        raise damaged(folder, path.name, "holds sizes or names of files that are not a cache's")
    return manifest


@contextlib.contextmanager
def _reading(folder: Path, file: str) -> Iterator[None]:
    """Say which file of a cache cannot be read, and why, as a CacheError."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, file, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _check_size(folder: Path, record: dict[str, Any]) -> None:
    with _reading(folder, record["file"]):
        size = (folder / record["file"]).stat().st_size
    if size != record["bytes"]:
        raise damaged(folder, record["file"], f"has {size} bytes instead of {record['bytes']}")


def _check_sum(folder: Path, record: dict[str, Any]) -> None:
    _check_size(folder, record)
    with _reading(folder, record["file"]):
        digest = sha256_of(folder / record["file"])
    if digest != record["sha256"]:
        raise damaged(folder, record["file"], "differs from its checksum in manifest.json")


def load_tensors(folder: Path, record: dict[str, Any], names: Iterable[str]) -> list[torch.Tensor]:
    """Map tensors of these names into memory, of a file with the checksum of its ``record``, if that holds one."""
    if "sha256" in record:
        _check_sum(folder, record)
    with _reading(folder, record["file"]):
        tensors = load_file(folder / record["file"])
        return [tensors[name] for name in names]


def damaged(folder: Path, file: str, what: str) -> CacheError:
    """Return the error to raise: what is wrong with which file, and what to do."""
    if not folder.is_dir():
        return CacheError(f"{folder} is gone: it was removed while it was read. Capture it again.")
    return CacheError(f"{folder / file} {what}. Delete the folder {folder} and capture again.")
