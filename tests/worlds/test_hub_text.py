"""Text of a hub: at one commit, found again without the hub, and ended when it hangs."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rkcnn_lib.worlds import TextUnavailable, open_or_capture
from rkcnn_lib.worlds.text import document_hash
from tests.worlds.stand_in_hub import TEXT, Fault, Repository, commit, openwebtext

ROOT = Path(__file__).resolve().parents[2]
N, CONTEXT = 2000, 32


def opened(root):
    return open_or_capture("gpt2", 1, "mlp_out", N, root=root, context_size=CONTEXT, device="cpu")


@pytest.mark.parametrize("how", ["server off", "HF_HUB_OFFLINE"])
def test_a_capture_holds_the_texts_commit_and_is_found_without_the_hub(hub, hub_files, tmp_path, monkeypatch, how):
    store = opened(tmp_path / "cache")
    told = store.manifest["text"]
    assert TEXT in told["name"] and told["failed_before"] == [] and len(store) == N - N % CONTEXT
    assert told["identity"] == f"{told['name']} commit:{commit(hub_files[1])}" == store.manifest["inputs"]["text"]
    if how == "server off":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert opened(tmp_path / "cache").key == store.key and len(hub.requests) == asked
    with pytest.raises(TextUnavailable, match=f"{TEXT}.*(HF_HUB_OFFLINE is set|refused)"):
        opened(tmp_path / "another")


def holding(hub, frame):
    """Let the hub hold this table alone as its text set."""
    frame.to_parquet(raw := io.BytesIO())
    files = {"plain_text/train/0000.parquet": raw.getvalue()}
    hub.repositories[f"datasets/{TEXT}"] = Repository({"main": {}, "refs/convert/parquet": files})


def test_null_rows_of_a_hub_text_are_left_out_and_do_not_end_it(hub, tmp_path):
    frame = pd.read_parquet(io.BytesIO(openwebtext(1)["plain_text/train/0000.parquet"]))
    frame.loc[::3, "text"] = None
    holding(hub, frame)
    hashes = opened(tmp_path / "cache").document_hashes.tolist()
    assert hashes == [document_hash(text) for text in frame["text"].dropna()][: len(hashes)] and len(hashes) > 20


def test_a_hub_text_whose_rows_are_no_strings_is_given_up_by_name(hub, tmp_path):
    holding(hub, pd.DataFrame({"text": [["a"], ["b"]]}))
    with pytest.raises(TextUnavailable, match=rf'{TEXT}.*"text" is of type list, expected a string or null'):
        opened(tmp_path / "cache")


# As a process of its own: what a stream leaves running shows when an interpreter exits.
CAPTURE = """
import sys
from rkcnn_lib.worlds import TextUnavailable, open_or_capture
from rkcnn_lib.worlds import text
text.SILENT_SECONDS = float(sys.argv[2])
try:
    store = open_or_capture("gpt2", 1, "mlp_out", int(sys.argv[3]), root=sys.argv[1], context_size=32, device="cpu")
except TextUnavailable as error:
    sys.exit(str(error))
print(store.manifest["text"]["name"])
"""


def captured_apart(root, seconds, n_tokens):
    command = [sys.executable, "-c", CAPTURE, str(root), str(seconds), str(n_tokens)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_text_that_hangs_after_its_first_documents_is_thrown_away_and_the_process_ends_as_it_should(hub, tmp_path):
    hub.faults.append(Fault("GET .*resolve.*0001.parquet", hang=60))
    done = captured_apart(tmp_path / "cache", 8, 30_000)  # more than the first file holds
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr[-2000:]
    assert re_found(rf"{TEXT}.*broke off after \d+ rows, which are thrown away: nothing came for 8 s", lines)
    assert re_found(r"wikitext.*shows no dataset Salesforce/wikitext \(it answers 401\)", lines)
    assert "text: /path/file.txt" in lines[-1] and not list((tmp_path / "cache").glob("*/manifest.json"))


def test_a_text_that_is_left_before_its_end_leaves_nothing_that_aborts_the_process(hub, tmp_path):
    hub.faults.append(Fault("GET .*resolve.*0001.parquet", hang=60))
    done = captured_apart(tmp_path / "cache", 60, 2000)
    assert done.returncode == 0, done.stderr[-2000:]
    assert TEXT in done.stdout


def re_found(pattern, lines):
    return any(re.search(pattern, line) for line in lines)
