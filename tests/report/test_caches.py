"""``rkcnn cache`` shows what is there, finds damage, and removes only what it is told to."""

import fcntl

import pytest

from rkcnn_lib.report import cli
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
    assert cli.main(["cache", "rm", ""]) == 2 and "an empty name" in capsys.readouterr().err and cache.exists()
    with cache.with_name(f".{cache.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["cache", "rm", "atlas"]) == 2 and cache.exists()
    capsys.readouterr()
    assert cli.main(["cache", "rm", "atlas"]) == 0 and not cache.exists()
    assert capsys.readouterr().out.startswith(f"removing {cache.name}  ")
    assert not list(cache.parent.glob(".*"))
