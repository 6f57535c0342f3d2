"""Files are there whole or not at all, in UTF-8, under names that stay where they belong."""

import ast
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rkcnn_lib import files

ROOT = Path(__file__).resolve().parents[1]
HALVES = {"empty": b"", "cut off": b'{"a": [1, 2', "a list": b"[]", "no text": b"\xff\xfe\x00", "deep": b"[" * 100_000}


@pytest.fixture
def synced(monkeypatch):
    """What was synced and renamed, in order."""
    told, fsync, replace = [], os.fsync, os.replace

    def name(handle):
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition(".part-")[0]

    monkeypatch.setattr(os, "fsync", lambda handle: (told.append(("synced", name(handle))), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b, **k: (told.append(("renamed", Path(b).name)), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b, **k: (told.append(("renamed", Path(b).name)), replace(a, b)))
    return told


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, synced):
    files.write_text(tmp_path / "deep" / "a.txt", "whole")
    assert synced == [("synced", ".a.txt"), ("renamed", "a.txt"), ("synced", "deep")]


def test_a_folder_and_all_in_it_are_synced_before_it_gets_its_name(tmp_path, synced):
    with files.whole_folder(tmp_path / "unit") as new:
        (new / "a").write_text("1", encoding="utf-8")
        (new / "b").write_text("2", encoding="utf-8")
    assert sorted(synced[:3]) == [("synced", ".unit"), ("synced", "a"), ("synced", "b")]
    assert synced[3:] == [("renamed", "unit"), ("synced", tmp_path.name)]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def half(new):
        new.write_text("{", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, half)
    with pytest.raises(OSError, match="disk full"), files.whole_folder(tmp_path / "unit") as new:
        half(new / "x")
    assert os.listdir(tmp_path) == ["a.json"] and files.read_json(path) == {"old": 1}


def _write_often(path, number):
    for i in range(100):
        files.write_json(path, {"who": number, "i": i, "filling": "x" * 2000})


def test_eight_writers_of_one_file_leave_a_whole_one_and_nothing_beside_it(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path / "run.json", n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert files.read_json(tmp_path / "run.json")["i"] == 99 and os.listdir(tmp_path) == ["run.json"]


def test_what_killed_writers_left_goes_with_the_next_write_but_not_what_is_being_written(tmp_path):
    for name, age in (("dead", 2 * files.LEFT_BEHIND), ("alive", 1)):
        (tmp_path / f".a.txt.part-{name}").write_text("half", encoding="utf-8")
        os.utime(tmp_path / f".a.txt.part-{name}", (time.time() - age,) * 2)
    files.write_text(tmp_path / "a.txt", "whole")
    assert sorted(os.listdir(tmp_path)) == [".a.txt.part-alive", "a.txt"]


@pytest.mark.parametrize("content", HALVES.values(), ids=HALVES)
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(files.DamagedFile, match=r"run\.json (is empty|is damaged)"):
        files.read_json(tmp_path / "run.json")


def test_numbers_of_numpy_and_torch_are_written_and_hashed_as_numbers(tmp_path):
    value = {"a": np.int64(5), "b": torch.tensor(2.5), "c": np.float32(0.5), "d": np.arange(2), "e": Path("x")}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == {"a": 5, "b": 2.5, "c": 0.5, "d": [0, 1], "e": "x"}
    assert files.digest({"k": np.int64(5)}) == files.digest({"k": 5}) != files.digest({"k": "5"})


def test_digests_do_not_depend_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 2, "b": 2})


@pytest.mark.parametrize("name", ["../up", "..", ".", "", "a/b", "a\\b", "/etc", "x" * 300, "a\n", " a", "a ", "-\0"])
def test_a_name_that_would_leave_its_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"arm = .* becomes the name of a folder"):
        files.plain_name(name, "arm")


@pytest.mark.parametrize("name", ["rkcnn", "k=4", "a b", "v1.2", "größer", 3])
def test_ordinary_names_pass(name):
    assert files.plain_name(name, "arm") == str(name)


def _hold(path, ready):
    with files.alone_at(path, "is at it"):
        ready.set()
        time.sleep(60)


def test_a_lock_names_its_holder_ends_with_it_and_leaves_no_file(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "unit", ready))
    holder.start()
    ready.wait(10)
    with pytest.raises(TimeoutError, match=f"process {holder.pid} is at it"):  # noqa: SIM117
        with files.alone_at(tmp_path / "unit", "is at it", timeout=0):
            pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with files.alone_at(tmp_path / "unit", "is at it", timeout=5):
        pass
    assert os.listdir(tmp_path) == []


def _count_alone(folder):
    for _ in range(30):
        with files.alone_at(folder / "counter", "is counting"):
            path = folder / "counter"
            n = int(path.read_text(encoding="utf-8")) if path.exists() else 0
            time.sleep(0.0005)
            path.write_text(str(n + 1), encoding="utf-8")


def test_a_lock_whose_file_goes_each_time_still_lets_one_in_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count_alone, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "counter").read_text(encoding="utf-8") == "120"


def test_a_folder_that_is_removed_loses_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").touch()
    monkeypatch.setattr(files.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.remove_folder(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_outputs_go_where_the_variable_says_home_included(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RKCNN_OUTPUTS", "~/mine")
    assert files.outputs_root() == tmp_path / "mine"


def test_outputs_of_an_installed_package_go_to_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("RKCNN_OUTPUTS", raising=False)
    assert files.outputs_root() == ROOT / "outputs"
    shutil.copytree(ROOT / "rkcnn_lib", tmp_path / "site-packages" / "rkcnn_lib", ignore=lambda *_: ["assets"])
    code = "from rkcnn_lib.files import outputs_root; print(outputs_root())"
    environment = {"PYTHONPATH": str(tmp_path / "site-packages")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "outputs"), done.stderr


def test_every_read_and_write_of_text_names_its_encoding():
    """What the linter cannot see: it does not know which names are paths."""
    nameless = []
    for path in (p for room in ("rkcnn_lib", "tests", "benchmarks") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                if node.func.attr in ("read_text", "write_text") and not named and len(node.args) < 2:
                    nameless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not nameless


def test_json_is_written_so_that_any_locale_reads_it(tmp_path):
    files.write_json(tmp_path / "a.json", {"ä": "größer"})
    assert json.loads((tmp_path / "a.json").read_bytes().decode("ascii")) == {"ä": "größer"}
