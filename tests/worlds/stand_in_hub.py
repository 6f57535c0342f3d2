"""A stand-in for the Hugging Face hub on 127.0.0.1: repositories in memory, in the hub's layout, faults on demand."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.worlds.tiny import WORDS

TEXT = "Skylion007/openwebtext"


@dataclass
class Repository:
    """Revision to path to content; gated ones let in the token ``hf_good`` alone."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False

    def find(self, revision: str) -> dict[str, bytes] | None:
        return self.revisions.get(revision) or next(
            (files for files in self.revisions.values() if commit(files) == revision), None
        )


@dataclass
class Fault:
    """What happens to requests whose "METHOD path" matches: at most ``times``, after the first ``skip``."""

    match: str
    status: int | None = None
    hang: float | None = None  # seconds without an answer
    cut: int | None = None  # bytes of the file after which the connection breaks
    times: int = 10**6
    skip: int = 0


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


@dataclass
class StandInHub:
    """The server: ``repositories`` by "models/owner/name" or "datasets/owner/name", ``aliases`` answered by 307."""

    repositories: dict[str, Repository]
    aliases: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *words) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(line)
        self.fault = next((f for f in self.hub.faults if re.search(f.match, line) and self._is_due(f)), None)
        try:
            if self.fault and self.fault.hang:
                time.sleep(self.fault.hang)
                self.close_connection = True
            elif self.fault and self.fault.status:
                self._say(self.fault.status, b"")
            else:
                self._answer(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def _is_due(self, fault: Fault) -> bool:
        if fault.skip:
            fault.skip -= 1
            return False
        fault.times -= 1
        return fault.times >= 0

    def _say(self, status: int, raw: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(raw))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.cut is not None and len(raw) > self.fault.cut:
            self.wfile.write(raw[: self.fault.cut])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.wfile.write(raw)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._say(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def _answer(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        found = re.match(
            r"/(api/)?(models/|datasets/)?(.+?)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?$", path
        )
        api, kind, name, verb, revision, rest = found.groups()
        kind, revision, rest = kind or "models/", unquote(revision or "main"), unquote(rest or "")
        if f"{kind}{name}" in self.hub.aliases:
            to = self.hub.aliases[f"{kind}{name}"]
            return self._say(307, b"", Location=path.replace(f"/{name}", f"/{to}", 1))
        repository = self.hub.repositories.get(f"{kind}{name}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None:  # strangers are not told whether there is such a repository
            return (
                self._refuse(404, "RepoNotFound") if token else self._refuse(401, "", "Invalid username or password.")
            )
        if not api and repository.gated and token != "hf_good":
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to {name} is restricted.")
        files = repository.find(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self._say(200, json.dumps(self._told(name, verb, rest, files, body)).encode())
        if rest not in files:
            return self._refuse(404, "EntryNotFound")
        self._file(files[rest], commit(files))

    def _told(self, name: str, verb: str | None, rest: str, files: dict[str, bytes], body: bytes):
        if verb in ("tree", "paths-info"):
            asked = json.loads(body)["paths"] if verb == "paths-info" and body[:1] == b"{" else []
            inside = [path for path in files if path.startswith(rest) and (not asked or path in asked)]
            folders = {str(parent) for path in inside for parent in Path(path).parents} - {"."}
            folders = [p for p in sorted(folders) if p.startswith(rest) and p != rest and (not asked or p in asked)]
            rows = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
            return rows + [
                {"type": "file", "oid": hashlib.sha1(files[p]).hexdigest(), "size": len(files[p]), "path": p}
                for p in inside
            ]
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "sha": commit(files), "private": False, "tags": [], "siblings": siblings}

    def _file(self, raw: bytes, sha: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = (int(asked[1]), int(asked[2] or len(raw) - 1) + 1) if asked else (0, len(raw))
        headers = {"X_Repo_Commit": sha, "ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "Accept_Ranges": "bytes"}
        if asked:
            headers["Content_Range"] = f"bytes {start}-{min(end, len(raw)) - 1}/{len(raw)}"
        self._say(206 if asked else 200, raw[start:end], **headers)


def gpt2(folder: Path) -> dict[str, bytes]:
    """Return the files of a 2-block GPT-2 (width 32, 64 positions) with a byte-level BPE tokenizer, in its layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=400, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    special = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    # not to be fetched
    return files | {"README.md": b"# GPT-2", "pytorch_model.bin": b"x", "onnx/config.json": b"{}", "onnx/a.onnx": b"x"}


def openwebtext(n_files: int = 2) -> dict[str, bytes]:
    """Return a text set's files at ``refs/convert/parquet``: 300 documents of 10 to 60 words a file."""
    import pandas as pd

    rng, files = random.Random(0), {}
    for i in range(n_files):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(10, 60))) for _ in range(300)]
        pd.DataFrame({"text": texts}).to_parquet(raw := io.BytesIO())
        files[f"plain_text/train/{i:04d}.parquet"] = raw.getvalue()
    return files
