from __future__ import annotations

import json
import re
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rkcnn_lib.worlds import ActivationStore, CacheError, MemoryStore, split_of
from rkcnn_lib.worlds.activations.store import file_record
from rkcnn_lib.worlds.text import document_hash


@pytest.fixture
def memory():
    X = torch.arange(3000.0)[:, None] * torch.ones(4)
    return MemoryStore(X, block=10, name="counting")


@pytest.fixture
def folder(tmp_path):
    """A store of 3 shards, by hand: row i holds i, in the last column 1e-6 i; contexts of 8, a document each."""
    n, size = 1920, 8  # float16 counts exactly up to 2048
    values = torch.arange(float(n))[:, None].repeat(1, 4).half()
    shards = []
    for i in range(3):
        path = tmp_path / f"acts-{i:05d}.safetensors"
        scale = torch.tensor([1.0, 1.0, 1.0, 1e-6])
        save_file({"acts": values[i * 640 : (i + 1) * 640].contiguous(), "scale": scale}, path)
        shards.append(file_record(path, rows=640))
    positions = torch.arange(n, dtype=torch.int32) % size
    hashes = torch.tensor([document_hash(str(i)) for i in range(n // size)])
    columns = {
        "tokens": torch.arange(n, dtype=torch.int32), "positions": positions, "mask": (positions > 0).byte(),
        "document_ids": torch.arange(n, dtype=torch.int32) // size, "document_hashes": hashes,
    }  # fmt: skip
    save_file(columns, tmp_path / "tokens.safetensors")
    manifest = {
        "format": "rkcnn-activations", "version": 2, "key": "k", "width": 4, "context_size": size, "shards": shards,
        "held_out_share": 0.1, "tokens": file_record(tmp_path / "tokens.safetensors"),
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return tmp_path


def test_rows_come_back_in_the_order_asked_across_shards(folder):
    store = ActivationStore(folder)
    store.verify()
    assert len(store) == 1920 and store.d_in == 4
    rows = np.array([1919, 0, 640, 639, 1280, 5, 5])
    assert torch.equal(store[rows][:, 0], torch.from_numpy(rows).float())
    assert torch.equal(store[635:645][:, 3], torch.arange(635.0, 645.0) * 1e-6) and store[3].shape == (4,)
    assert store[0:2].dtype == torch.float32
    assert torch.equal(store[-3], store[1917]) and torch.equal(store[-3:], store[1917:]) and not len(store[5:2])


@pytest.mark.parametrize("kind", [ActivationStore, MemoryStore])
@pytest.mark.parametrize("rows", [[1920], [-1], [2**62], [-(2**63)], np.array([2**64 - 1], np.uint64)])
def test_rows_that_are_not_there_are_refused_with_their_numbers(folder, kind, rows):
    store = ActivationStore(folder) if kind is ActivationStore else MemoryStore(torch.ones(1920, 4))
    with pytest.raises(IndexError, match=rf"rows {rows[0]} to {rows[0]} asked of 1920"):
        store.take(np.array(rows))
    for row in (1920, -1921):
        with pytest.raises(IndexError, match=f"index {row} is out of bounds"):
            store[row]


def test_position_zero_belongs_to_no_split(folder):
    store = ActivationStore(folder)
    rows = np.concatenate([store.rows(split, seed=1) for split in ("train", "mine", "heldout")])
    assert sorted(rows) == [i for i in range(1920) if i % 8]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", ["acts-00001.safetensors", "tokens.safetensors"])
def test_damage_is_found_and_named(folder, damage, file):
    path = folder / file
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-3] ^= 1
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:-16])
    else:
        path.unlink()
    with pytest.raises(CacheError, match=file) as verified:
        ActivationStore(folder).verify()
    assert "Delete the folder" in str(verified.value)
    with pytest.raises(CacheError, match=file):
        ActivationStore(folder)[0:1920]  # reading alone finds it too


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"format": "other", "version": 2}',
        '{"format": "rkcnn-activations", "version": 99}',
        '{"format": "rkcnn-activations", "version": 2}',
    ],
)
def test_a_foreign_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(CacheError, match=r"manifest\.json"):
        ActivationStore(folder)


OUTSIDE = "{folder}/../elsewhere/acts-00000.safetensors"


@pytest.mark.parametrize("name", [OUTSIDE, "../elsewhere/acts-00000.safetensors", "acts-00001.safetensors", "acts", 5])
@pytest.mark.parametrize("of", ["shards", "tokens"])
def test_a_manifest_that_names_files_outside_of_its_folder_or_of_other_names_is_refused(folder, name, of):
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "acts-00000.safetensors").write_bytes((folder / "acts-00000.safetensors").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    record = manifest["shards"][0] if of == "shards" else manifest["tokens"]
    record["file"] = name.format(folder=folder) if isinstance(name, str) else name
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CacheError, match=r"manifest\.json holds sizes or names of files that are not a cache's"):
        ActivationStore(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"width": "4"}, {"width": -4}, {"context_size": 0}, {"held_out_share": None}, {"held_out_share": 2},
        {"shards": 3}, {"shards": [1]}, {"shards": [{"file": "acts-00000.safetensors"}]}, {"tokens": None},
        {"shards": {"file": 1}}, {"format": ["x" * 10**6]},
    ],
)  # fmt: skip
def test_a_manifest_of_the_wrong_kinds_of_values_is_refused_by_name(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | change), encoding="utf-8")
    with pytest.raises(CacheError, match=r"manifest\.json") as error:
        ActivationStore(folder)
    assert len(str(error.value)) < 500


def test_rows_of_documents_that_are_not_listed_are_refused(folder):
    """A negative number would be read as a document from the end."""
    columns = load_file(folder / "tokens.safetensors")
    for wrong, said in ((-1, "documents that it does not list"), (240, "documents that it does not list")):
        columns["document_ids"][7] = wrong
        rewritten(folder, columns)
        with pytest.raises(CacheError, match=said):
            ActivationStore(folder)
    del columns["mask"]
    rewritten(folder, columns)
    with pytest.raises(CacheError, match=r"tokens\.safetensors cannot be read \('mask'\)"):
        ActivationStore(folder)


def rewritten(folder, columns):
    """Give a store other columns, under a checksum that fits."""
    save_file(columns, folder / "tokens.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["tokens"] = file_record(folder / "tokens.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_reader_whose_cache_goes_says_so(folder):
    store = ActivationStore(folder)
    first = store[0:10]
    shutil.rmtree(folder)
    assert torch.equal(store[0:10], first)  # mapped already
    for act in (lambda: store[0:1920], store.verify):
        with pytest.raises(CacheError, match=rf"{re.escape(str(folder))} is gone: .*Capture it again"):
            act()


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(CacheError, match=r"no manifest\.json"):
        ActivationStore(tmp_path)


def test_splits_have_their_shares_and_held_out_is_the_same_for_all_seeds():
    hashes = np.array([document_hash(f"document {i}") for i in range(20000)])
    splits = [split_of(hashes, seed) for seed in range(4)]
    for split in splits:
        share = {name: (split == name).mean() for name in ("heldout", "mine", "train")}
        assert share["heldout"] == pytest.approx(0.1, abs=0.01)
        assert share["mine"] == pytest.approx(0.18, abs=0.015) and share["train"] == pytest.approx(0.72, abs=0.02)
        assert np.array_equal(split == "heldout", splits[0] == "heldout")
    # Mining documents of two seeds overlap as independent draws do, 20 % of each other.
    both = (splits[0] == "mine") & (splits[1] == "mine")
    assert both.sum() / (splits[0] == "mine").sum() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(split_of(hashes[::-1], 3)[::-1], splits[3])  # a document's split is its own affair
    assert split_of(np.array([document_hash("a stable hash")]))[0] == "train"  # and the same in every process


def test_splits_are_disjoint_by_document(memory):
    documents = [set(memory.document_ids[memory.rows(split, seed=2)]) for split in ("train", "mine", "heldout")]
    assert set.union(*documents) == set(range(300)) and sum(map(len, documents)) == 300
    assert np.array_equal(memory.rows("heldout", 0), memory.rows("heldout", 9))
    assert not np.array_equal(memory.rows("mine", 0), memory.rows("mine", 9))


def test_an_epoch_sees_every_row_once(memory):
    seen = torch.cat(list(memory.batches(64, seed=3, split="mine", epochs=1)))[:, 0]
    assert sorted(seen.int().tolist()) == memory.rows("mine", 3).tolist()
    assert seen.tolist() != sorted(seen.tolist())


def test_starting_later_equals_discarding(memory):
    """Also across the end of an epoch."""
    per_epoch = len(memory.rows("heldout")) // 32
    start = per_epoch + 3
    skipped = list(islice(memory.batches(32, seed=5, split="heldout", start=start), 12))
    discarded = list(islice(memory.batches(32, seed=5, split="heldout"), start, start + 12))
    assert all(torch.equal(a, b) for a, b in zip(skipped, discarded, strict=True))
    finite = list(memory.batches(32, split="heldout", epochs=2))
    later = list(memory.batches(32, split="heldout", epochs=2, start=4))
    assert len(later) == len(finite) - 4 and torch.equal(later[0], finite[4])


def test_endless_batches_are_equally_large_and_differ_by_seed(memory):
    first = list(islice(memory.batches(500, seed=0), 20))
    assert {tuple(batch.shape) for batch in first} == {(500, 4)}
    again, other = next(memory.batches(500, seed=0)), next(memory.batches(500, seed=1))
    assert torch.equal(first[0], again) and not torch.equal(again, other)


def test_a_smaller_matrix_begins_a_larger_one_and_too_large_a_wish_warns(memory):
    small, large = memory.matrix("train", seed=1, n_rows=50), memory.matrix("train", seed=1, n_rows=200)
    assert torch.equal(small, large[:50]) and len(set(large[:, 0].tolist())) == 200
    everything = memory.matrix("train", seed=1)
    assert torch.equal(everything[:, 0].int(), torch.from_numpy(memory.rows("train", 1)).int())
    with pytest.warns(UserWarning, match="which has"):
        assert len(memory.matrix("heldout", n_rows=10**6)) == len(memory.rows("heldout"))


def test_contexts_belong_to_one_split(folder, memory):
    store = ActivationStore(folder)
    contexts = store.contexts("heldout")
    assert contexts.shape[1] == 8 and contexts.dtype == torch.int64
    assert set(contexts[:, 1:].flatten().tolist()) == set(store.tokens[store.rows("heldout")].tolist())
    with pytest.raises(ValueError, match="no tokens"):
        memory.contexts()


def test_a_memory_store_says_what_it_is(memory):
    truth = torch.eye(4)
    store = MemoryStore(torch.randn(500, 4), name="planted", truth=truth, n_features=7)
    assert store.truth is truth and store.manifest["title"] == "planted" and store.manifest["n_features"] == 7
    assert store.key != MemoryStore(torch.randn(500, 4), name="planted").key and len(store) == 500
    assert np.array_equal(memory[10:12], memory.X[10:12])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda store: store.rows("test"), "split='test' is unknown; choose one of .*train.*mine.*heldout"),
        (lambda store: store.batches(10**6), "allowed are 1 to that"),
        (lambda store: store.batches(10, start=-1), "start=-1"),
        (lambda store: store.matrix("train", n_rows=0), "n_rows=0"),
        (lambda store: MemoryStore(torch.ones(3)), r"X has shape \(3,\)"),
        (lambda store: MemoryStore(torch.ones(6, 2), block=6).rows("mine"), "holds no rows"),
    ],
)
def test_bad_wishes_are_refused_in_words(memory, act, message):
    with pytest.raises(ValueError, match=message):
        act(memory)
