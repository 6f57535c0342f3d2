"""What is written of a capture: precise enough, whole or gone on with, under a plain name, by one process at a time."""

from __future__ import annotations

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rkcnn_lib.worlds import CacheError, model_facts, open_or_capture
from rkcnn_lib.worlds.activations import capture_job
from tests.worlds.tiny import CONTEXT, N, hugging_face, source_that_must_not_open

capture_module = sys.modules["rkcnn_lib.worlds.activations.capture"]


@pytest.mark.parametrize("factor", [1e8, 1e-6, 1e-30])  # on values around 0.02
@pytest.mark.parametrize("late", [False, True])
def test_a_dimension_that_float16_does_not_hold_is_stored_at_a_scale_of_its_own(
    home, options, monkeypatch, factor, late
):
    """Also one that is so after two shards only."""
    real, calls, scale = capture_job.activations, [], torch.ones(32)
    scale[5] = factor

    def scaled(lm, ids, names):
        calls.append(1)
        return {k: v * (1 if late and len(calls) <= 6 else scale) for k, v in real(lm, ids, names).items()}

    monkeypatch.setattr(capture_job, "activations", scaled)
    store = open_or_capture(home[1], 1, "mlp_out", N, **options)
    store.verify()
    ids = torch.from_numpy(store.tokens.reshape(-1, CONTEXT))
    expected = hugging_face(home[1], ids, 1)["mlp_out"].flatten(0, 1)
    expected[1280 if late else 0 :] *= scale
    acts, largest = store[0:N], expected.abs().amax(0)
    error = ((acts - expected) / largest).norm(dim=0) / (expected / largest).norm(dim=0)
    assert torch.isfinite(acts).all() and error.max() < 2**-11
    assert acts[1280:, 5].abs().max() == pytest.approx(expected[1280:, 5].abs().max().item(), rel=2**-11, abs=0)


def test_only_what_float16_does_not_hold_has_a_scale_and_it_is_a_power_of_two():
    rows = torch.randn(100, 9, generator=torch.Generator().manual_seed(0))
    rows *= torch.tensor([1.0, 1e-2, 1e-5, 1e-7, 1e-37, 0.0, 1e5, 1e37, 1.0])
    rows[1:, 8] = 1e-9  # little of this dimension's content
    scale = capture_job.column_scales(rows, torch.float16)
    assert (scale == 1).tolist() == [True, True, False, False, False, True, False, False, True]
    assert (torch.frexp(scale).mantissa == 0.5).all()
    largest = (rows / scale).abs().amax(0)
    assert ((largest >= 2**14) & (largest < 2**15))[[2, 3, 6, 7]].all() and 1 < largest[4] < 2**15
    assert (capture_job.column_scales(rows, torch.bfloat16) == 1).all()


def killed(*_):
    raise KeyboardInterrupt


def test_a_capture_killed_between_its_last_shard_and_its_name_is_not_computed_again(home, options, monkeypatch):
    """Neither is its text read again, and what was said of it is still said."""
    path = options["root"] / "halves.jsonl"
    texts = Path(home[3]).read_text(encoding="utf-8").split("\n\n")
    path.write_text("\n".join(json.dumps({"text": f"{text} \ud83d w1"}) for text in texts), encoding="utf-8")
    options |= {"text": str(path)}
    with monkeypatch.context() as patch:
        patch.setattr(capture_job, "give_name", killed)
        with pytest.warns(UserWarning, match="lone halves"), pytest.raises(KeyboardInterrupt):
            open_or_capture(home[1], 1, "mlp_out", N, **options)
    (partial,) = options["root"].glob("*.partial")
    monkeypatch.setattr(capture_job, "activations", lambda *a: pytest.fail("ran the model again"))
    monkeypatch.setattr(capture_module, "text_sources", lambda *a: [source_that_must_not_open(str(path))])
    with pytest.warns(UserWarning, match="lone halves"):
        store = open_or_capture(home[1], 1, "mlp_out", N, **options)
    store.verify()
    told = re.fullmatch(
        r"(\d+) lone halves of surrogate pairs in the text were read as U\+FFFD", store.manifest["notes"][0]
    )
    assert 100 < int(told[1]) <= 200 and not partial.exists()
    names = {"manifest.json", "tokens.safetensors", *(f"acts-0000{i}.safetensors" for i in range(5))}
    assert {file.name for file in store.folder.iterdir()} == names


@pytest.mark.parametrize("name", ["m" * 250, "ä" * 120, ".hidden", "模型", "a\x1b[2Jb"])
def test_a_cache_has_a_plain_name_of_its_own_whatever_the_model_folder_s_name(home, options, name):
    folder = shutil.copytree(home[1], options["root"] / "models" / name)
    store = open_or_capture(str(folder), 0, "mlp_out", np.int64(N), **options)
    assert re.fullmatch(r"\w[\w.-]{1,180}", store.folder.name, re.ASCII) and store.key == store.folder.name


def test_a_lock_held_too_long_is_an_error_that_names_the_process(home, options, monkeypatch):
    monkeypatch.setattr(capture_job, "LOCK_SECONDS", 0.1)
    facts = model_facts(home[1])
    target = capture_job.Target(options["root"], facts, 0, "mlp_out", {"dtype": "float16"})
    options["root"].mkdir(exist_ok=True)

    def again():
        with capture_job.locked([target.folder]):
            pass

    with ThreadPoolExecutor() as other, capture_job.locked([target.folder]):
        refused = other.submit(again).exception()
    assert isinstance(refused, CacheError) and re.search(r"process \d+ is capturing", str(refused))


def test_a_full_disk_is_an_error_before_the_run(home, options, monkeypatch):
    usage = shutil.disk_usage(options["root"])._replace(free=1000)
    monkeypatch.setattr(capture_job.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="GiB free"):
        open_or_capture(home[1], 1, "mlp_out", N, **options)
