from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from rkcnn_lib.worlds.text import Document, TextUnavailable, document_hash, is_held_out, pack, text_sources, tokenize

text_module = sys.modules["rkcnn_lib.worlds.text"]


def test_the_hub_list_fails_in_one_line_each(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(text_module, "hub_problem", lambda: asked.append(1) or "no network")
    sources = text_sources(None, "gpt2")
    assert ["openwebtext" in sources[0].name, "103" in sources[1].name, "wikitext-2" in sources[2].name] == [True] * 3
    for source in sources:
        for act in (source.open, source.identity):
            with pytest.raises(TextUnavailable) as error:
                act()
            assert str(error.value) == f"{source.name}: no network"
    assert len(asked) == 1


@pytest.fixture
def wikitext(monkeypatch, tmp_path):
    """WikiText of the hub, whose commit this machine knows, read by a process that runs the code given."""
    (tmp_path / "datasets--Salesforce--wikitext" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--Salesforce--wikitext" / "refs" / "main").write_text("c0" * 20, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(text_module, "hub_problem", lambda: None)
    monkeypatch.setattr(text_module, "READER", tmp_path / "reader.py")

    def source(code):
        (tmp_path / "reader.py").write_text(f"import json, sys, time\n{code}", encoding="utf-8")
        return text_sources("auto", "gpt2")[1]

    return source


ROWS = "print(json.dumps(' = A = \\n')); print(json.dumps(' body \\n')); print(json.dumps(' = B = \\n'), flush=True)"


def test_a_hub_text_is_read_to_its_end_at_the_commit_in_its_identity(wikitext):
    source = wikitext(f"{ROWS}; print(json.dumps(' '.join(sys.argv[1:]))); print(json.dumps({{'end': None}}))")
    asked = f"Salesforce/wikitext wikitext-103-raw-v1 {'c0' * 20}"
    assert [document.text for document in source.open()] == [" = A = \n body \n", f" = B = \n{asked}"]
    assert source.identity() == f"{source.name} commit:{'c0' * 20}"


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("print(json.dumps({'end': 'ConnectionError: reset'}))", "after 3 rows, which are thrown away: Conn.*: reset$"),
        ("sys.exit(3)", "after 3 rows, which are thrown away: its reader ended with 3$"),
        ("time.sleep(60)", "after 3 rows, which are thrown away: nothing came for 1 s$"),
    ],
)
def test_a_hub_text_that_breaks_off_is_thrown_away_and_says_so(wikitext, monkeypatch, then, said):
    monkeypatch.setattr(text_module, "SILENT_SECONDS", 1.0)
    with pytest.raises(TextUnavailable, match=said):
        list(wikitext(f"{ROWS}; {then}").open())


def test_a_null_row_neither_ends_a_hub_text_nor_is_a_document(wikitext):
    nulls = "print('null', flush=True)"
    source = wikitext(f"{nulls}; {ROWS}; {nulls}; print(json.dumps(' body \\n')); print(json.dumps({{'end': None}}))")
    assert [document.text for document in source.open()] == [" = A = \n body \n", " = B = \n body \n"]


def test_a_hub_text_that_is_silent_from_the_start_or_empty_is_given_up_before_the_model_is_loaded(
    wikitext, monkeypatch
):
    monkeypatch.setattr(text_module, "SILENT_SECONDS", 0.3)
    with pytest.raises(TextUnavailable, match=r"\(train\): nothing came for 0 s$"):
        wikitext("time.sleep(60)").open()
    monkeypatch.setattr(text_module, "SILENT_SECONDS", 20.0)
    with pytest.raises(TextUnavailable, match="holds no text"):
        wikitext("print(json.dumps({'end': None}))").open()


def test_a_hub_text_that_is_not_read_to_its_end_leaves_no_process(wikitext, monkeypatch):
    begun = []
    real = text_module.subprocess.Popen
    monkeypatch.setattr(text_module.subprocess, "Popen", lambda *a, **k: begun.append(real(*a, **k)) or begun[-1])
    documents = wikitext("while True: print(json.dumps(' = A = \\n'))").open()
    next(documents)
    del documents
    assert len(begun) == 1 and begun[0].returncode is not None


@pytest.mark.parametrize(
    ("text", "message"), [("wikitext", "allowed are auto, atlas"), ("/no/file.txt", "no such file")]
)
def test_unknown_texts_are_refused_never_replaced(text, message):
    with pytest.raises(ValueError, match=message):
        text_sources(text, "gpt2")


def make_documents(n, rng, bos=None):
    for i in range(n):
        ids = rng.integers(2, 100, size=rng.integers(1, 60)).tolist()
        yield ([bos, *ids] if bos is not None and i % 2 else ids), document_hash(f"{i}")


@pytest.mark.parametrize("bos", [1, None])
def test_packing_keeps_every_token_in_order_and_held_out_apart(bos):
    """Read back, each of the two streams is its documents, one after the other."""
    documents = list(make_documents(400, np.random.default_rng(0), bos))
    packed = pack(documents, n_contexts=10**3, context_size=16, bos=bos)
    owner_held_out = is_held_out(packed.document_hashes)[packed.document_ids]
    assert np.array_equal(owner_held_out.all(1), packed.held_out) and np.array_equal(
        owner_held_out.any(1), packed.held_out
    )
    if bos is not None:
        assert (packed.tokens[:, 0] == bos).all()
    for side in (False, True):
        here = packed.held_out == side
        assert here.sum() > 10
        found = list(zip(packed.document_ids[here].ravel().tolist(), packed.tokens[here].ravel().tolist(), strict=True))
        found = [pair for pair in found if pair[1] != bos]
        expected = [(i, token) for i, (ids, h) in enumerate(documents) for token in ids
                    if is_held_out(np.array([h]))[0] == side and token != bos]  # fmt: skip
        assert found == expected[: len(found)] and len(expected) - len(found) < 16


def test_every_document_and_context_begins_with_one_bos():
    documents = [([5, 6, 7], 2**62), ([1, 8, 9], 2**62 + 1), ([4] * 9, 2**62 + 2)]
    packed = pack(documents, n_contexts=9, context_size=4, bos=1)
    assert packed.tokens.tolist() == [[1, 5, 6, 7], [1, 8, 9, 1], [1, 4, 4, 4], [1, 4, 4, 4], [1, 4, 4, 4]]
    assert packed.document_ids.tolist() == [[0] * 4, [1, 1, 1, 2], [2] * 4, [2] * 4, [2] * 4]


def test_without_continuation_every_context_begins_with_a_document():
    documents = [([1, 5, 6], 2**62), ([1, 8, 9, 7, 7], 2**62 + 1), ([1, 4], 2**62 + 2), ([1, 3], 2**62 + 3)]
    packed = pack(documents, n_contexts=9, context_size=4, bos=1, continued=False)
    assert packed.tokens.tolist() == [[1, 5, 6, 1], [1, 4, 1, 3]]


def test_atlas_generates_its_own_ids_and_text_for_others():
    from itertools import islice

    (own,), (other,) = text_sources(None, "atlas"), text_sources("atlas", "gpt2")
    pairs = list(islice(zip(own.open(), other.open(), strict=True), 20))
    assert all(a.text == b.text and a.ids and b.ids is None for a, b in pairs)
    assert not own.continued and other.continued


def test_packing_less_gives_the_beginning_of_packing_more():
    few = pack(make_documents(400, np.random.default_rng(0)), 50, 16, 1)
    many = pack(make_documents(400, np.random.default_rng(0)), 200, 16, 1)
    assert np.array_equal(few.tokens, many.tokens[:50]) and np.array_equal(few.held_out, many.held_out[:50])


def test_lone_halves_of_surrogate_pairs_become_replacement_characters_and_are_counted(tmp_path):
    path, count = tmp_path / "a.jsonl", Counter()
    path.write_text(r'{"text": "w1 \ud83d w2"}' + "\n" + r'{"text": "\ud83d\ude00 \udc00\ud800"}', encoding="utf-8")
    texts = []

    def tokenizer(group, **_):
        texts.extend(group)
        return {"input_ids": [[1]] * len(group)}

    hashes = [content for _, content in tokenize(text_sources(str(path), "m")[0].open(), tokenizer, 2, count)]
    assert (
        hashes == [document_hash(text) for text in texts]
        and texts == ["w1 \ufffd w2", "\U0001f600 \ufffd\ufffd"]
        and count["halves"] == 3
    )


def test_own_ids_are_taken_as_they_are_and_ids_beyond_the_vocabulary_refused():
    documents = [Document("a b", (3, 4)), Document("", ()), Document("c", (5,))]
    assert list(tokenize(documents, None, 10, Counter())) == [([3, 4], document_hash("a b")), ([5], document_hash("c"))]
    with pytest.raises(ValueError, match="token id 5: the model's vocabulary ends at 4"):
        list(tokenize(documents, None, 5, Counter()))
