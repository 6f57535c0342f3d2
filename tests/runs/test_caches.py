"""``rkcnn cache`` shows what is there, finds damage, and removes only what it is told to."""

import fcntl
import json
import re

import pytest

from rkcnn_lib import cli
from rkcnn_lib.worlds import open_or_capture


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    return open_or_capture("atlas", layer=0, hook="mlp_out", n_tokens=2560).folder


def test_whole_and_unfinished_captures_are_listed(cache, capsys):
    (cache.parent / f"{cache.name}x.partial").mkdir()
    assert cli.main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert cache.name in shown and "blocks.0.hook_mlp_out" in shown and "unfinished" in shown


def test_what_a_manifest_says_is_shown_without_what_a_terminal_would_obey(cache, capsys):
    manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"title": "\x1b[2J\x1b]0;owned\x07\r\nforged\u202e", "hook_name": "h" * 10**6}
    (cache / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    cache.with_name("\x1b[31mred").mkdir()
    for arguments in (["ls"], ["verify"], ["rm", "nothing"], ["rm", "\x1b[31mred"]):
        cli.main(["cache", *arguments])
        shown = "".join(capsys.readouterr())
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown) and len(shown) < 2000, shown
        assert "⟨U+001B⟩" in shown and not shown.startswith("forged")


DAMAGED = ["", "{", "[]", '{"format": "rkcnn-activations"}', '{"shards": 1}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_stops_neither_the_list_nor_the_check_of_others(cache, capsys, text):
    other = cache.with_name("a-damaged-one")
    other.mkdir()
    (other / "manifest.json").write_text(text, encoding="utf-8")
    assert cli.main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert "a-damaged-one" in shown and "damaged: `rkcnn cache verify` says" in shown and "2,560 rows" in shown
    assert cli.main(["cache", "verify"]) == 1
    told = capsys.readouterr()
    assert f"{cache.name}: whole" in told.out and "a-damaged-one/manifest.json" in told.err
    assert cli.main(["cache", "rm", "a-damaged-one"]) == 0 and not other.exists()


@pytest.mark.parametrize("change", [{"n_tokens": "many"}, {"text": None}, {"text": {}}, {"n_tokens": None}])
def test_a_manifest_that_lacks_what_is_listed_counts_as_damaged(cache, capsys, change):
    manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8")) | change
    (cache / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.main(["cache", "ls"]) == 0 and "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["", ".partial"])
def test_a_removal_killed_half_way_leaves_no_cache_under_its_name_and_is_ended_by_name(
    cache, monkeypatch, capsys, ending
):
    def killed(folder):
        (folder / "manifest.json").unlink()
        raise KeyboardInterrupt

    folder = cache.rename(cache.with_name(f"{cache.name}{ending}"))
    with monkeypatch.context() as patch:
        patch.setattr("rkcnn_lib.files.shutil.rmtree", killed)
        assert cli.main(["cache", "rm", folder.name]) == 130
    assert not folder.exists()
    (left,) = [path for path in folder.parent.iterdir() if path.is_dir()]
    capsys.readouterr()
    assert cli.main(["cache", "ls"]) == 0 and "left by a removal that was stopped" in capsys.readouterr().out
    assert cli.main(["cache", "verify"]) == 0
    assert cli.main(["cache", "rm", left.name]) == 0 and not list(folder.parent.iterdir())


def test_a_cache_that_is_a_link_is_removed_and_its_target_left(cache, tmp_path):
    target = cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(target)
    assert cli.main(["cache", "rm", cache.name]) == 0
    assert not list(cache.parent.iterdir()) and (target / "manifest.json").exists()


def test_a_flipped_bit_is_found(cache, capsys):
    assert cli.main(["cache", "verify", cache.name]) == 0
    path = cache / "acts-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["cache", "verify"]) == 1
    assert "acts-00000" in capsys.readouterr().err


def test_only_what_is_named_and_not_being_written_is_removed(cache, capsys):
    assert cli.main(["cache", "rm"]) == 2
    assert cli.main(["cache", "rm", "gpt2"]) == 2 and cache.name in capsys.readouterr().err
    assert cli.main(["cache", "rm", ""]) == 2 and "'' stands for 0 caches" in capsys.readouterr().err and cache.exists()
    with cache.with_name(f".{cache.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["cache", "rm", "atlas"]) == 2 and cache.exists()
    capsys.readouterr()
    assert cli.main(["cache", "rm", "atlas"]) == 0 and not cache.exists()
    assert capsys.readouterr().out.startswith(f"removing {cache.name}  ")
    assert not list(cache.parent.glob(".*"))
