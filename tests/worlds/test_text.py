from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest

from rkcnn_lib.worlds.packing import pack, tokenize, without_halves
from rkcnn_lib.worlds.splits import document_hash, is_held_out
from rkcnn_lib.worlds.text import Document, TextUnavailable, check_text, text_sources

text_module = sys.modules["rkcnn_lib.worlds.text"]


def read(text, model="some/model"):
    (source,) = text_sources(str(text), model)
    return [document.text for document in source.open()]


def test_a_wikitext_is_cut_at_its_titles_only(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(
        " \n = First = \n \n a = b \n = = Section = = \n text \n = Second <unk> = \n more \n", encoding="utf-8"
    )
    first, second = read(path)
    assert first.strip().startswith("= First =") and "Section" in first and second.startswith(" = Second")


def test_plain_text_is_cut_at_blank_lines(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("\n\none\ntwo\n \n\nthree", encoding="utf-8")
    assert read(path) == ["one\ntwo\n", "three"]


def test_jsonl_and_parquet_give_their_text_field(tmp_path):
    import pandas as pd

    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in ("a", " ", "b\nc")), encoding="utf-8")
    pd.DataFrame({"n": [1, 2, 3], "text": ["a", None, "b\nc"]}).to_parquet(tmp_path / "a.parquet")
    assert read(lines) == read(tmp_path / "a.parquet") == ["a", "b\nc"]
    lines.write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        read(lines)
    pd.DataFrame({"body": ["a"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match='expected a column "text", found body'):
        read(tmp_path / "b.parquet")


def test_null_texts_blank_lines_and_a_byte_order_mark_are_no_documents(tmp_path):
    import pandas as pd

    lines, plain = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_text('\ufeff{"text": null}\n\n{"text": "w1 w2"}\n  \n{"text": null}\n{"text": "w3"}', encoding="utf-8")
    pd.DataFrame({"text": [None, "w1 w2", None, "w3"]}).to_parquet(tmp_path / "a.parquet")
    plain.write_text("\ufeffw1 w2\n\nw3", encoding="utf-8")
    assert read(lines) == read(tmp_path / "a.parquet") == ["w1 w2", "w3"]
    assert [text.strip() for text in read(plain)] == ["w1 w2", "w3"]


BAD_TEXTS = [
    ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}', 'a.jsonl, line 2: "text" is a list, expected a string or null'),
    ("a.jsonl", b'{"text": "a"}\n{"text": 5}', 'line 2: "text" is a int'),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": false}', 'line 3: "text" is a bool'),
    ("a.jsonl", b'{"text": "a"}\nnot JSON', 'a.jsonl, line 2: expected a JSON object with a field "text"'),
    ("a.jsonl", b'{"text": "a"}\n"text"', "line 2: expected a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2: expected a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a.jsonl: byte 24 \(in line 2\) is not UTF-8"),
    ("a.txt", b"\xef\xbb\xbfone\r\n" + b"two\n" * 9000 + b"caf\xe9 bar", r"a.txt: byte 36011 \(in line 9002\) is not UTF-8"),
    ("a.txt", b"one\ntw\xc3", r"byte 6 \(in line 2\)"),
    ("a.txt", "one".encode("utf-16"), r"byte 0 \(in line 1\) is not UTF-8; .*convert it first"),
    ("a.txt", b"", "a.txt: it holds no text"),
    ("a.jsonl", b'{"text": null}\n{"text": " "}\n', "a.jsonl: it holds no text"),
    ("a.parquet", b"", "a.parquet cannot be read as parquet: "),
    ("a.parquet", b"PAR1 not really PAR1", "a.parquet cannot be read as parquet: "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "message"), BAD_TEXTS)
def test_a_text_that_cannot_be_read_is_refused_with_its_file_and_line_or_byte(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([["a"], ["b"]], "list<"), ([{"a": "b"}], "struct<"), ([1, 2], "int64"), ([b"a"], "binary"), ([True], "bool")],
)
def test_a_parquet_column_of_anything_but_strings_is_refused_by_name(tmp_path, values, kind):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    for act in (check_text, read):
        with pytest.raises(ValueError, match=rf'a\.parquet: column "text" holds {kind}.*, expected strings'):
            act(str(tmp_path / "a.parquet"))


def test_a_parquet_file_is_read_whatever_its_kind_of_string_and_refused_where_it_is_damaged(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path, texts = tmp_path / "a.parquet", ["a" * 5000, None, "b"]
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        parquet.write_table(pyarrow.table({"text": pyarrow.array(texts).cast(kind)}), path)
        assert read(path) == ["a" * 5000, "b"]
    raw = bytearray(path.read_bytes())
    raw[4:60] = bytes(56)  # a page's header
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet: "):
        read(path)
    bad = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    parquet.write_table(pyarrow.table({"text": bad}), path)
    with pytest.raises(ValueError, match=r'a\.parquet: column "text" holds bytes that are not UTF-8'):
        read(path)
    parquet.write_table(pyarrow.table([pyarrow.array(["a"])] * 2, names=["text", "text"]), path)
    with pytest.raises(ValueError, match='expected a column "text", found text, text'):
        read(path)


def test_a_text_is_checked_by_its_beginning_alone(tmp_path):
    """So a corpus is checked in no time; what is wrong further on is said when it is read."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": null}\n{"text": "a"}\n' + b"x" * 10**5)
    check_text(str(path))
    with pytest.raises(ValueError, match="line 3"):
        read(path)
    for text in (None, "auto", "atlas"):
        check_text(text)
    for text, message in (("wikitext", "allowed are auto"), ("/no/file.txt", "no such file")):
        with pytest.raises(ValueError, match=message):
            check_text(text)


def test_a_file_that_may_not_be_read_or_has_too_long_a_name_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot be read: File name too long$"):
        text_sources(f"{'a' * 5000}.txt", "m")
    with pytest.raises(ValueError, match=r"no such file$"):
        text_sources("~nobody-of-that-name/a.txt", "m")
    path = tmp_path / "a.txt"
    path.write_text("a", encoding="utf-8")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    for act in (check_text, lambda text: text_sources(text, "m")):
        with pytest.raises(ValueError, match=r"a\.txt cannot be read: Permission denied$"):
            act(str(path))


def test_a_text_is_found_wanting_when_it_is_opened_before_its_first_document_is_asked_for(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\n" + b"two\n\n" * 10**4 + b"\xff")
    (source,) = text_sources(str(path), "m")
    with pytest.raises(ValueError, match="byte 50005"):
        source.open()


def test_equal_texts_share_a_split_whatever_white_space_stands_at_their_ends(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"text": t}) for t in ("w1 w2", " w1 w2\n", "\tw1 w2\u2003\r\n")), encoding="utf-8"
    )
    assert len({document_hash(text) for text in read(lines)}) == 1
    assert document_hash("w1  w2") != document_hash("w1 w2")


def test_lone_halves_of_surrogate_pairs_become_replacement_characters_and_are_counted(tmp_path):
    path, count = tmp_path / "a.jsonl", Counter()
    path.write_text(r'{"text": "w1 \ud83d w2"}' + "\n" + r'{"text": "\ud83d\ude00 \udc00\ud800"}', encoding="utf-8")
    texts = [document.text for document in without_halves(text_sources(str(path), "m")[0].open(), count)]
    assert texts == ["w1 \ufffd w2", "\U0001f600 \ufffd\ufffd"] and count["halves"] == 3


def test_a_file_is_known_by_its_content(tmp_path):
    for name, content in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    a, b, c = (text_sources(str(tmp_path / name), "m")[0].identity for name in ("a.txt", "b.txt", "c.txt"))
    assert a == b != c


def test_the_hub_list_fails_in_one_line_each(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(text_module, "hub_problem", lambda: asked.append(1) or "no network")
    sources = text_sources(None, "gpt2")
    assert ["openwebtext" in sources[0].name, "103" in sources[1].name, "wikitext-2" in sources[2].name] == [True] * 3
    for source in sources:
        for act in (source.open, source.pinned):
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
        return text_sources("auto", "gpt2")[1].pinned()

    return source


ROWS = "print(json.dumps(' = A = \\n')); print(json.dumps(' body \\n')); print(json.dumps(' = B = \\n'), flush=True)"


def test_a_hub_text_is_read_to_its_end_at_the_commit_in_its_identity(wikitext):
    source = wikitext(f"{ROWS}; print(json.dumps(' '.join(sys.argv[1:]))); print(json.dumps({{'end': None}}))")
    asked = f"Salesforce/wikitext wikitext-103-raw-v1 {'c0' * 20}"
    assert [document.text for document in source.open()] == [" = A = \n body \n", f" = B = \n{asked}"]
    assert source.identity == f"{source.name} commit:{'c0' * 20}" and source.pinned() is source


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
    packed = pack(documents, n_contexts=10**3, context_size=16, bos=bos, held_out_share=0.1)
    owner_held_out = is_held_out(packed.document_hashes, 0.1)[packed.document_ids]
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
                    if is_held_out(np.array([h]), 0.1)[0] == side and token != bos]  # fmt: skip
        assert found == expected[: len(found)] and len(expected) - len(found) < 16


def test_every_document_and_context_begins_with_one_bos():
    documents = [([5, 6, 7], 2**62), ([1, 8, 9], 2**62 + 1), ([4] * 9, 2**62 + 2)]
    packed = pack(documents, n_contexts=9, context_size=4, bos=1, held_out_share=0.1)
    assert packed.tokens.tolist() == [[1, 5, 6, 7], [1, 8, 9, 1], [1, 4, 4, 4], [1, 4, 4, 4], [1, 4, 4, 4]]
    assert packed.document_ids.tolist() == [[0] * 4, [1, 1, 1, 2], [2] * 4, [2] * 4, [2] * 4]


def test_without_continuation_every_context_begins_with_a_document():
    documents = [([1, 5, 6], 2**62), ([1, 8, 9, 7, 7], 2**62 + 1), ([1, 4], 2**62 + 2), ([1, 3], 2**62 + 3)]
    packed = pack(documents, n_contexts=9, context_size=4, bos=1, held_out_share=0.1, continued=False)
    assert packed.tokens.tolist() == [[1, 5, 6, 1], [1, 4, 1, 3]]


def test_atlas_generates_its_own_ids_and_text_for_others():
    from itertools import islice

    (own,), (other,) = text_sources(None, "atlas"), text_sources("atlas", "gpt2")
    pairs = list(islice(zip(own.open(), other.open(), strict=True), 20))
    assert all(a.text == b.text and a.ids and b.ids is None for a, b in pairs)
    assert not own.continued and other.continued
    assert next(text_sources(None, "atlas", seed=1)[0].open()) != pairs[0][0]


def test_packing_less_gives_the_beginning_of_packing_more():
    few = pack(make_documents(400, np.random.default_rng(0)), 50, 16, 1, 0.1)
    many = pack(make_documents(400, np.random.default_rng(0)), 200, 16, 1, 0.1)
    assert np.array_equal(few.tokens, many.tokens[:50]) and np.array_equal(few.held_out, many.held_out[:50])


def test_own_ids_are_taken_as_they_are_and_ids_beyond_the_vocabulary_refused():
    documents = [Document("a b", (3, 4)), Document("", ()), Document("c", (5,))]
    assert list(tokenize(documents, None, 10)) == [([3, 4], document_hash("a b")), ([5], document_hash("c"))]
    with pytest.raises(ValueError, match="token id 5: the model's vocabulary ends at 4"):
        list(tokenize(documents, None, 5))
    with pytest.raises(ValueError, match="no tokenizer"):
        list(tokenize([Document("a")], None, 100))
