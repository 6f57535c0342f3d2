"""Which documents are mined on, trained on and held out: a matter of their hashes alone."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["SPLITS", "document_hash", "is_held_out", "split_of"]

SPLITS = ("train", "mine", "heldout")
MINE_SHARE = 0.2


def document_hash(text: str) -> int:
    """Return a stable 63-bit hash of a document's text (BLAKE2b): equal documents fall into equal splits.

    White space at the ends does not count: it depends on where a text was cut from its file.
    """
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big") >> 1


def split_of(document_hashes: np.ndarray, seed: int = 0, held_out_share: float = 0.1) -> np.ndarray:
    """Say for each document which split it belongs to under a seed.

    Parameters
    ----------
    document_hashes : (n_documents,) int64
        From :func:`document_hash`.
    seed : int
        Decides, with the hash, which 20 % of the documents that are not held out are mined on.
    held_out_share : float
        Share of documents held out; the same ones for every seed.

    Returns
    -------
    (n_documents,) array of str
        ``"heldout"``, ``"mine"`` or ``"train"``.
    """
    hashes = np.asarray(document_hashes, dtype=np.int64)
    held_out = is_held_out(hashes, held_out_share)
    mine = _mix(hashes.astype(np.uint64), seed) / 2.0**64 < MINE_SHARE
    return np.where(held_out, "heldout", np.where(mine, "mine", "train"))


def is_held_out(document_hashes: np.ndarray, held_out_share: float) -> np.ndarray:
    """Return which documents are held out: those whose hash lies in the lowest share of its range."""
    return np.asarray(document_hashes, dtype=np.int64) < int(held_out_share * 2.0**63)


def _mix(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Hash (document hash, seed) to 64 bits: SplitMix64's finaliser (Steele, Lea & Flood 2014), twice."""
    with np.errstate(over="ignore"):
        x = hashes + np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x
