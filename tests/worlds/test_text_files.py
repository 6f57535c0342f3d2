"""Local texts are cut into documents, or refused with the file and the place where they are wrong."""

from __future__ import annotations

import json

import pytest

from rkcnn_lib.worlds.text import check_text, document_hash, text_sources


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
    ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}', 'a.jsonl, line 2: "text" is of type list, expected a string'),
    ("a.jsonl", b'{"text": "a"}\n{"text": 5}', 'line 2: "text" is of type int'),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": false}', 'line 3: "text" is of type bool'),
    ("a.jsonl", b'{"text": "a"}\nnot JSON', 'a.jsonl, line 2: expected a JSON object with a field "text"'),
    ("a.jsonl", b'{"text": "a"}\n"text"', "line 2: expected a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2: expected a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a.jsonl: byte 24 \(in line 2\) is not UTF-8"),
    ("a.txt", b"\xef\xbb\xbfone\r\n" + b"two\n" * 9000 + b"caf\xe9", r"a.txt: byte 36011 \(in line 9002\) is"),
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


def test_a_file_is_known_by_its_content(tmp_path):
    for name, content in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    a, b, c = (text_sources(str(tmp_path / name), "m")[0].identity() for name in ("a.txt", "b.txt", "c.txt"))
    assert a == b != c
