import csv
import io
import json
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import ParquetFile, ParquetWriter, write_table

from storage.records import Ignored, Record, Rejected, Text
from storage.sources import BadSource, FetchError, fetch, read_source, source_name
from storage.sources.bounded_lines import MAX_LINE_BYTES
from storage.sources.row_estimate import RowEstimate

PICTURE = b"not decoded here"
LIMITS: dict[str, Any] = {"max_bytes": 1_000, "timeout_s": 5}


def a_tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def a_manifest(at: Path, *rows: bytes | str | Mapping[str, Any], name: str = "data.jsonl") -> Path:
    lines = [row if isinstance(row, bytes | str) else json.dumps(row) for row in rows]
    path = at / name
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def a_csv(at: Path, *rows: list[str]) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return a_tree(at, {"data.csv": text.getvalue()}) / "data.csv"


def a_parquet(at: Path, **columns: Any) -> Path:
    write_table(pa.table(columns), at / "data.parquet")
    return at / "data.parquet"


def only(location: Path) -> Record | Rejected | Ignored:
    [row] = read_source(location)
    return row


def the_record(location: Path) -> Record:
    row = only(location)
    assert isinstance(row, Record), row
    return row


def the_reject(location: Path) -> Rejected:
    row = only(location)
    assert isinstance(row, Rejected), row
    return row


def reasons(location: Path) -> list[str]:
    return [row.reason if isinstance(row, Rejected) else type(row).__name__ for row in read_source(location)]


# Where a source is


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "there is nothing there; name a folder of images"),
        ("notes.docx", r"not a source; name a folder of images, or a manifest that ends in \.jsonl"),
        ("no-key.csv", r"no column 'key' among its columns \(id, text\)"),
        ("empty.csv", r"no column 'key' among its columns \(none\)"),
        ("twice.csv", "two columns have the same name"),
        ("latin.csv", "column names are not UTF-8"),
        ("broken.parquet", "not readable as Parquet"),
    ],
)
def test_what_is_no_source_is_refused_before_the_first_row_is_asked_for(tmp_path: Path, name: str, says: str):
    files = {
        "notes.docx": b"",
        "no-key.csv": b"id,text\n1,a\n",
        "empty.csv": b"",
        "twice.csv": b"key,text,text\n",
        "latin.csv": b"\xef\xbb\xbfkey,caf\xe9\n",
        "broken.parquet": b"PAR1 but not really",
    }
    a_tree(tmp_path, files)

    with pytest.raises(BadSource, match=says):
        read_source(tmp_path / name)


def test_a_parquet_file_without_a_key_column_is_refused(tmp_path: Path):
    manifest = a_parquet(tmp_path, id=["1"])

    with pytest.raises(BadSource, match=r"no column 'key' among its columns \(id\)"):
        read_source(manifest)


def test_a_source_is_named_after_its_folder_or_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = a_tree(tmp_path / "stamps", {"more.data.jsonl": b""})
    monkeypatch.chdir(folder)

    assert source_name(Path()) == source_name(folder) == "stamps"
    assert source_name(Path("more.data.jsonl")) == "more.data"


def test_a_link_to_a_manifest_keeps_the_name_and_the_folder_of_the_link(tmp_path: Path):
    a_tree(tmp_path, {"store/4711": b'{"key": "a", "image": "a.png"}\n', "seen/a.png": PICTURE})
    link = tmp_path / "seen" / "data.jsonl"
    link.symlink_to(tmp_path / "store" / "4711")

    assert source_name(link) == "data"
    assert the_record(link).image == str(tmp_path.resolve() / "seen" / "a.png")


def test_rows_are_estimated_while_they_are_read(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {"a.png": b"", "c.JPG": b"", "d.txt": b"", ".hidden.png": b""})
    deep = a_tree(tmp_path / "q", {"a.png": b"", "b/c.JPG": b""})
    lines = b'{"key": "1"}\n{"key": "2"}\n\xff\n{"key":"no newline at the end"}'
    jsonl = a_tree(tmp_path, {"a.jsonl": lines}) / "a.jsonl"
    table = a_csv(tmp_path, ["key", "text"], *(["1", "a"] for _ in range(9)))
    parquet = a_parquet(tmp_path, key=["1", "2", "3", "4"])

    found = {source.name: estimates(source) for source in (folder, deep, jsonl, table, parquet)}

    assert found == {
        "p": [2, 2],
        "q": [0, 2],
        "a.jsonl": [5, 5, 6, 4],
        table.name: [4, 6, 7, 7, 8, 8, 9, 9, 9],
        parquet.name: [4, 4, 4, 4],
    }


def test_a_source_that_was_read_to_its_end_has_as_many_rows_as_were_read(tmp_path: Path):
    estimate = RowEstimate()

    rows = list(read_source(a_csv(tmp_path, ["key", "text"], ["1", "a"], ["2", "b"]), estimate))

    assert (len(rows), estimate.total(2)) == (2, 2)


def estimates(source: Path) -> list[int]:
    """The estimate after each row of a source."""
    estimate = RowEstimate()
    rows = (row for row in read_source(source, estimate) if not isinstance(row, Ignored))
    return [estimate.total(number) for number, _ in enumerate(rows, start=1)]


# Folders


def test_a_picture_is_a_record_with_the_texts_and_the_metadata_beside_it(tmp_path: Path):
    folder = a_tree(
        tmp_path / "p",
        {
            "fruit/apple.png": PICTURE,
            "fruit/apple.txt": "An apple.\n\nde.utf8=Ein Apfel.\npt_BR.utf8=Uma maçã.\nfr.utf8= \n",
            "fruit/apple.json": '{"colour": "red", "weight": null, "text": "kept as it is"}',
        },
    )

    assert the_record(folder) == Record(
        key="fruit/apple.png",
        place="fruit/apple.png",
        texts=(Text("An apple."), Text("Ein Apfel.", "de"), Text("Uma maçã.", "pt_BR")),
        image=str(folder.resolve() / "fruit" / "apple.png"),
        metadata={"colour": "red", "text": "kept as it is"},
    )


@pytest.mark.parametrize("lang", ["de", "ast", "pt_BR", "zh_CN", "ca@valencia", "sr@latin", "zh-Hant-TW"])
def test_a_language_tag_is_kept_as_written(tmp_path: Path, lang: str):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE, "a.txt": f"{lang}.utf8=x = y"})

    assert the_record(folder).texts == (Text("x = y", lang),)


@pytest.mark.parametrize("line", ["german.utf8=Apfel", "d.utf8=Apfel", "de.utf16=Apfel", "de=Apfel"])
def test_a_line_that_only_looks_like_a_translation_is_a_text(tmp_path: Path, line: str):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE, "a.txt": line})

    assert the_record(folder).texts == (Text(line),)


def test_a_byte_order_mark_and_foreign_line_ends_leave_no_trace(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE, "a.txt": b"\xef\xbb\xbfone\r\ntwo\rthree\x0bstill\n"})

    assert [text.text for text in the_record(folder).texts] == ["one", "two", "three\x0bstill"]


def test_one_text_belongs_to_every_picture_of_its_stem_and_to_no_other(tmp_path: Path):
    folder = a_tree(
        tmp_path / "p",
        {"a.png": PICTURE, "a.JPG": PICTURE, "a.TXT": "both", "a.b.txt": "x", "ab.webp": PICTURE},
    )

    rows = list(read_source(folder))

    records = {row.key: row.texts for row in rows if isinstance(row, Record)}
    assert records == {"a.JPG": (Text("both"),), "a.png": (Text("both"),), "ab.webp": ()}
    assert [row for row in rows if isinstance(row, Ignored)] == [Ignored("a.b.txt", "unused_text")]


def test_every_file_of_another_kind_is_ignored_by_name_with_a_reason(tmp_path: Path):
    hidden = {".a.png": b"", ".git/b.png": b"", "c/.DS_Store": b""}
    other = {"a.svg": b"", "a.txt": "lonely", "c/d.ogg": b"", "t.xml": b"", "z.tar": b"", "README": b"hi"}
    folder = a_tree(tmp_path / "p", other | hidden)

    found = {row.place: row.reason for row in read_source(folder) if isinstance(row, Ignored)}

    assert found == {
        "README": "not_an_image",
        "a.svg": "vector_image",
        "a.txt": "unused_text",
        "t.xml": "captions_not_understood",
        "z.tar": "archive",
        ".a.png": "hidden",
        ".git": "hidden",
        "c/d.ogg": "not_an_image",
        "c/.DS_Store": "hidden",
    }


def test_pictures_come_in_one_order_with_keys_in_one_unicode_form(tmp_path: Path):
    decomposed = unicodedata.normalize("NFD", "é.png")
    folder = a_tree(tmp_path / "p", dict.fromkeys(("b/z.png", "b.png", "a.png", "B/1.gif", decomposed), b""))

    keys = [row.key for row in read_source(folder) if isinstance(row, Record)]

    assert keys == ["a.png", "b.png", "é.png", "B/1.gif", "b/z.png"]


def test_a_link_out_of_the_folder_is_set_aside_and_one_within_is_taken(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE, "t.png": PICTURE})
    a_tree(tmp_path, {"secret.png": b"", "secret.txt": "secret", "other/b.png": b""})
    (folder / "in.png").symlink_to("a.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "t.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path / "other")

    rows = {row.place: row for row in read_source(folder)}

    kinds = {
        key: row.reason if isinstance(row, Rejected) else type(row).__name__ for key, row in rows.items()
    }
    assert kinds == {
        "a.png": "Record",
        "in.png": "Record",
        "linked": "Ignored",
        "out.png": "outside_source",
        "t.png": "outside_source",
    }
    assert "secret" not in str(rows["t.png"].raw)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "reason", "says"),
    [
        ("a.txt", b"caf\xe9", "not_utf8", r"a\.txt is not UTF-8 .*byte 4\); re-save it"),
        ("a.txt", b"ok\nbad\0text", "bad_text", "text 2 holds NUL"),
        ("a.json", b"[1]", "bad_metadata", r"\.json is a list; write one object"),
        ("a.json", b"{", "bad_metadata", "is not JSON"),
        ("a.json", b"", "bad_metadata", "is not JSON"),
        ("a.json", b"[" * 100_000, "bad_metadata", "is not JSON"),
    ],
)
def test_a_picture_with_unfit_company_is_set_aside(
    tmp_path: Path, name: str, content: bytes, reason: str, says: str
):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE, name: content})

    reject = the_reject(folder)

    assert (reject.key, reject.place, reject.reason) == ("a.png", "a.png", reason)
    assert re.search(says, reject.message)


def test_a_pipe_beside_a_picture_is_not_waited_for(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {"a.png": PICTURE})
    os.mkfifo(folder / "a.txt")

    assert the_reject(folder).reason == "unreadable"


def test_a_file_name_that_is_not_utf8_is_set_aside_in_writing_that_can_be_kept(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {os.fsdecode(b"caf\xe9.png"): PICTURE})

    reject = the_reject(folder)

    assert reject.reason == "bad_key"
    assert (reject.key, reject.place) == ("caf\\udce9.png", "caf\\udce9.png")


# Manifests


def test_texts_of_every_shape_are_taken_in_order_and_once(tmp_path: Path):
    texts = [
        "a cat",
        {"text": "eine Katze", "lang": "de"},
        " a cat ",
        {"text": "a cat", "lang": "en"},
        "",
        None,
    ]
    manifest = a_manifest(tmp_path, {"key": 7, "text": "first", "texts": texts})

    record = the_record(manifest)

    assert (record.key, record.place, record.image) == ("7", "line 1", None)
    assert record.texts == (Text("first"), Text("a cat"), Text("eine Katze", "de"), Text("a cat", "en"))


def test_other_columns_are_metadata_and_nulls_are_left_out(tmp_path: Path):
    manifest = a_manifest(
        tmp_path, {"key": "a", "text": "x", "lang": "de", "n": [1, {"m": None}], "gone": None}
    )

    assert the_record(manifest).metadata == {"lang": "de", "n": [1, {"m": None}]}


def test_texts_are_compared_and_kept_in_one_unicode_form(tmp_path: Path):
    manifest = a_manifest(tmp_path, {"key": "a", "texts": ["café", unicodedata.normalize("NFD", "café")]})

    assert the_record(manifest).texts == (Text("café"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"text": "x"}, "no_key", id="no key"),
        pytest.param({"key": None, "text": "x"}, "no_key", id="null key"),
        pytest.param({"key": " ", "text": "x"}, "no_key", id="blank key"),
        pytest.param({"key": True, "text": "x"}, "no_key", id="true"),
        pytest.param({"key": 1.0, "text": "x"}, "no_key", id="float"),
        pytest.param({"key": "a\0", "text": "x"}, "bad_key", id="NUL in the key"),
        pytest.param({"key": "\ud800", "text": "x"}, "bad_key", id="half a character in the key"),
        pytest.param({"key": "k" * 1_025, "text": "x"}, "bad_key", id="long key"),
        pytest.param({"key": "a"}, "empty_record", id="nothing"),
        pytest.param({"key": "a", "text": " ", "texts": [""], "image": ""}, "empty_record", id="only blanks"),
        pytest.param({"key": "a", "text": 5}, "bad_text", id="text is a number"),
        pytest.param({"key": "a", "texts": "x"}, "bad_text", id="texts is no list"),
        pytest.param({"key": "a", "texts": [["x"]]}, "bad_text", id="text is a list"),
        pytest.param({"key": "a", "texts": [{"text": "x", "lang": 1}]}, "bad_text", id="lang is a number"),
        pytest.param({"key": "a", "texts": [{"text": "x", "lang": "d\0"}]}, "bad_text", id="NUL in lang"),
        pytest.param({"key": "a", "texts": [{"text": "x", "lang": "d" * 65}]}, "bad_text", id="long lang"),
        pytest.param({"key": "a", "text": "x\0"}, "bad_text", id="NUL in a text"),
        pytest.param({"key": "a", "text": "x\udfff"}, "bad_text", id="half a character in a text"),
        pytest.param({"key": "a", "text": "x" * 32_769}, "text_too_long", id="long text"),
        pytest.param({"key": "a", "image": 5}, "bad_uri", id="image is a number"),
        pytest.param({"key": "a", "image": "a\0.png"}, "bad_uri", id="NUL in a path"),
        pytest.param({"key": "a", "image": "gopher://x/a.png"}, "bad_uri", id="unknown scheme"),
        pytest.param({"key": "a", "image": "zip://a::file:///x.zip"}, "bad_uri", id="chained"),
        pytest.param({"key": "a", "image": "simplecache::/etc/passwd"}, "bad_uri", id="chained to a path"),
        pytest.param({"key": "a", "image": "asynclocal:///etc/passwd"}, "bad_uri", id="local by a detour"),
        pytest.param({"key": "a", "image": "data:image/png;base64,AAAA"}, "bad_uri", id="data URL"),
    ],
)
def test_a_row_that_cannot_be_taken_in_is_set_aside_and_reading_goes_on(
    tmp_path: Path, row: dict[str, Any], reason: str
):
    manifest = a_manifest(tmp_path, row, {"key": "next", "text": "fine"})

    reject, after = read_source(manifest)

    assert isinstance(reject, Rejected)
    assert reject.reason == reason
    assert reject.message.startswith("line 1: ")
    assert reject.key == "a" or reason in ("no_key", "bad_key")
    assert isinstance(after, Record)
    assert (after.key, after.place) == ("next", "line 2")


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b"{key: 1}", "not_json", "Expecting property name enclosed in double quotes, column 2); write one"),
        (b'["key"]', "not_json", "line 1: a JSON list, not an object; write one JSON object a line"),
        (
            b'{"key": 1' + b"0" * 5_000 + b"}",
            "not_json",
            "line 1: not JSON that can be read (Exceeds the limit",
        ),
        (b"[" * 100_000, "not_json", "line 1: not JSON that can be read (maximum recursion depth"),
        (
            b'{"key": "caf\xe9"}',
            "not_utf8",
            "line 1: not UTF-8 (invalid continuation byte, byte 13); re-save it",
        ),
        (
            b'{"key": ' + b"9" * 20 + b', "n": ' + b"[" * 40 + b"]" * 40 + b"}",
            "empty_record",
            "neither text nor",
        ),
    ],
)
def test_a_line_that_is_no_object_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, line: bytes, reason: str, message: str
):
    reject = the_reject(a_manifest(tmp_path, line))

    assert reject.reason == reason
    assert message in reject.message


def test_a_line_that_is_too_long_is_skipped_to_its_end(tmp_path: Path):
    longest = b'{"key": "longest", "text": "x"}'.ljust(MAX_LINE_BYTES)
    manifest = a_manifest(tmp_path, b"x" * (MAX_LINE_BYTES + 1), longest, {"key": "b", "text": "x"})

    rows = list(read_source(manifest))

    assert [(row.place, getattr(row, "reason", "")) for row in rows] == [
        ("line 1", "line_too_long"),
        ("line 2", ""),
        ("line 3", ""),
    ]


def test_blank_lines_and_a_byte_order_mark_count_for_nothing_but_the_line_number(tmp_path: Path):
    manifest = a_manifest(
        tmp_path, b'\xef\xbb\xbf{"key": "a", "text": "x"}\r', b"", b" \t\r", '{"key":"b","text":"x"}'
    )

    first, second = read_source(manifest)

    assert (first.place, second) == ("line 1", Record("b", "line 4", (Text("x"),), None, {}))


def test_what_is_told_of_a_reject_is_short_and_can_be_kept_in_postgres(tmp_path: Path):
    manifest = a_manifest(tmp_path, '{"key": "a\\u0000\\ud800", "text": "\0' + "x" * 5_000)
    twin = a_manifest(tmp_path, '{"key": "a\\u0000\\ud800b"}', name="b.jsonl")

    reject, told = the_reject(manifest), the_reject(twin)

    assert len(reject.raw) == 2_000
    assert reject.raw.endswith("x…")
    assert told.key == "a\\x00\\ud800b"
    for text in (reject.raw, reject.message, told.key, told.message, told.raw):
        assert "\0" not in text
        text.encode("utf-8")


def test_a_picture_is_a_path_within_the_folder_of_the_manifest_or_a_url(tmp_path: Path):
    folder = a_tree(tmp_path / "m", {"sub/a.png": PICTURE}).resolve()
    images = [
        "sub/a.png",
        "missing.png",
        "sub/../b.png",
        f"{folder}/c.png",
        f"file://{folder}/d.png",
        "local://e.png",
    ]
    urls = ["https://example.org/a.png?b=c", "s3://bucket/a.png"]
    manifest = a_manifest(folder, *({"key": n, "image": image} for n, image in enumerate(images + urls)))

    found = [row.image for row in read_source(manifest) if isinstance(row, Record)]

    names = ["sub/a.png", "missing.png", "b.png", "c.png", "d.png", "e.png"]
    assert found == [*(f"{folder}/{name}" for name in names), *urls]


@pytest.mark.parametrize(
    "image",
    [
        "../secret.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "local:///etc/passwd",
        "link.png",
    ],
)
def test_a_picture_outside_the_folder_of_the_manifest_is_refused(tmp_path: Path, image: str):
    a_tree(tmp_path, {"secret.png": PICTURE, "m/x": b""})
    (tmp_path / "m" / "link.png").symlink_to(tmp_path / "secret.png")
    manifest = a_manifest(tmp_path / "m", {"key": "a", "image": image})

    reject = the_reject(manifest)

    assert (reject.key, reject.reason) == ("a", "outside_source")
    assert "copy the file into that folder" in reject.message


def test_links_that_go_round_in_a_circle_are_left_to_fetch(tmp_path: Path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    manifest = a_manifest(tmp_path, {"key": "a", "image": "loop.png"})

    image = the_record(manifest).image

    assert image is not None
    with pytest.raises(FetchError, match="symbolic links"):
        fetch(image, **LIMITS)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param(float("nan"), "not JSON", id="NaN"),
        pytest.param({"m": [float("inf")]}, "not JSON", id="infinity"),
        pytest.param(2**63, "more than 64 bits", id="big integer"),
        pytest.param("\0", "holds NUL", id="NUL"),
        pytest.param({"\ud800": 1}, "half a character", id="name that is no text"),
        pytest.param("x" * 65_536, "bytes of metadata", id="much metadata"),
        pytest.param(json.loads("[" * 40 + "]" * 40), "more than 32 deep", id="deep"),
    ],
)
def test_metadata_that_cannot_be_stored_costs_the_field_and_not_the_record(
    tmp_path: Path, value: object, why: str
):
    record = the_record(a_manifest(tmp_path, {"key": "a", "text": "x", "n": value, "year": 1999}))

    assert record.metadata == {"year": 1999}
    [(name, reason)] = record.dropped
    assert name == "n"
    assert why in reason


def test_the_largest_fields_go_first_where_all_metadata_are_too_large(tmp_path: Path):
    row = {"key": "a", "text": "x", "exif": "e" * 40_000, "ocr": "o" * 50_000, "year": 1999}

    record = the_record(a_manifest(tmp_path, row))

    assert record.metadata == {"exif": "e" * 40_000, "year": 1999}
    assert [name for name, _ in record.dropped] == ["ocr"]


def test_a_csv_row_says_on_which_line_it_starts(tmp_path: Path):
    manifest = a_csv(
        tmp_path,
        ["key", " text", "texts", "n"],
        ["a", "two\nlines", "", "1"],
        [],
        ["b", "", '["x", {"text": "y"}]', ""],
    )

    assert list(read_source(manifest)) == [
        Record("a", "line 2", (Text("two\nlines"),), None, {"n": "1"}),
        Record("b", "line 5", (Text("x"), Text("y")), None, {}),
    ]


@pytest.mark.parametrize(
    ("row", "reason", "key"),
    [
        pytest.param(b"a,x,too many", "bad_row", "a", id="a cell too many"),
        pytest.param(b"a", "bad_row", "a", id="a cell too few"),
        pytest.param(b'a,"x"y', "bad_row", None, id="text after a quote"),
        pytest.param(b"a," + b"x" * 200_000, "bad_row", None, id="a huge cell"),
        pytest.param(b"a," + b"x" * (MAX_LINE_BYTES + 1), "line_too_long", None, id="a huge line"),
        pytest.param(b"a,caf\xe9", "not_utf8", "a", id="not UTF-8"),
        pytest.param(b"caf\xe9,a", "not_utf8", None, id="key is not UTF-8"),
        pytest.param(b"a,\0", "bad_text", "a", id="NUL"),
        pytest.param(b" ,x", "no_key", None, id="blank key"),
    ],
)
def test_a_bad_csv_row_is_set_aside_and_reading_goes_on(
    tmp_path: Path, row: bytes, reason: str, key: str | None
):
    manifest = a_manifest(tmp_path, b"\xef\xbb\xbfkey,text\r", row, b"next,fine", name="data.csv")

    reject, after = read_source(manifest)

    assert isinstance(reject, Rejected)
    assert (reject.reason, reject.key, reject.place) == (reason, key, "line 2")
    assert reject.raw[:2] in (row[:2].decode(), "a,")
    assert after == Record("next", "line 3", (Text("fine"),), None, {})


def test_a_quote_that_never_closes_does_not_swallow_the_rest_in_silence(tmp_path: Path):
    manifest = a_manifest(tmp_path, "key,text", 'a,"x', "b,y", "c,z", name="data.csv")

    reject = the_reject(manifest)

    assert (reject.reason, reject.place, reject.raw) == ("bad_row", "line 2", 'a,"x\nb,y\nc,z')
    assert "read up to line 4" in reject.message


def test_a_parquet_row_becomes_plain_values(tmp_path: Path):
    manifest = a_parquet(
        tmp_path,
        key=[1, 2],
        texts=[["a", None], ["b"]],
        day=[date(2024, 2, 29), None],
        price=[Decimal("1.50"), None],
        nested=[{"n": [1.5]}, None],
    )

    assert list(read_source(manifest)) == [
        Record(
            "1", "row 1", (Text("a"),), None, {"day": "2024-02-29", "price": "1.50", "nested": {"n": [1.5]}}
        ),
        Record("2", "row 2", (Text("b"),), None, {}),
    ]


def test_texts_with_their_language_are_read_from_parquet(tmp_path: Path):
    manifest = a_parquet(
        tmp_path, key=["a"], texts=[[{"text": "Katze", "lang": "de"}, {"text": "cat", "lang": None}]]
    )

    assert the_record(manifest).texts == (Text("Katze", "de"), Text("cat"))


def test_a_bad_parquet_row_is_set_aside_and_reading_goes_on(tmp_path: Path):
    not_utf8 = pa.array([b"fine", b"\xff", b"fine", b"fine"], pa.binary()).view(pa.string())
    manifest = a_parquet(tmp_path, key=["a", "b", None, "d"], text=not_utf8, blob=[None, None, None, b"\xff"])

    rows = list(read_source(manifest))

    assert [(row.place, getattr(row, "key", None), getattr(row, "reason", "")) for row in rows] == [
        ("row 1", "a", ""),
        ("row 2", "b", "not_utf8"),
        ("row 3", None, "no_key"),
        ("row 4", "d", ""),
    ]
    assert "holds a bytes" in str(rows[3].dropped)  # type: ignore[union-attr]


def test_rows_are_numbered_across_batches(tmp_path: Path):
    manifest = a_parquet(tmp_path, key=list(range(1_000)), text=["x"] * 1_000)

    rows = list(read_source(manifest))

    assert [row.place for row in rows] == [f"row {n}" for n in range(1, 1_001)]


# Streaming: what is not there yet when the first row comes out must still be found


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("a.jsonl", b'{"key": "a", "text": "x"}\n', b'{"key": "b", "text": "x"}\n'),
        ("a.csv", b"key,text\na,x\n", b"b,x\n"),
    ],
)
def test_a_manifest_is_read_no_further_than_asked(tmp_path: Path, name: str, first: bytes, second: bytes):
    manifest = a_tree(tmp_path, {name: first}) / name
    rows = read_source(manifest)
    before = next(rows)

    with manifest.open("ab") as file:
        file.write(second)

    assert [row.key for row in (before, *rows) if isinstance(row, Record)] == ["a", "b"]


def test_a_folder_is_listed_no_further_than_asked(tmp_path: Path):
    folder = a_tree(tmp_path / "p", {"a.png": b"", "later/x.svg": b""})
    rows = read_source(folder)
    before = next(rows)

    a_tree(folder, {"later/b.png": b""})

    assert [row.key for row in (before, *rows) if isinstance(row, Record)] == ["a.png", "later/b.png"]


def test_parquet_is_decoded_no_further_than_asked(tmp_path: Path):
    manifest = tmp_path / "data.parquet"
    rows_of_a_group = pa.table({"key": list(range(300)), "text": ["x"] * 300})
    with ParquetWriter(manifest, rows_of_a_group.schema) as writer:
        writer.write_table(rows_of_a_group)
        writer.write_table(rows_of_a_group)
    second_group = ParquetFile(manifest).metadata.row_group(1).column(0).data_page_offset
    with manifest.open("r+b") as file:
        file.seek(second_group)
        file.write(b"\xff" * 40)

    rows = read_source(manifest)

    assert isinstance(next(rows), Record)
    with pytest.raises(BadSource, match="not readable as Parquet"):
        list(rows)


# Properties

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
texts = st.builds(
    Text,
    words.map(lambda word: unicodedata.normalize("NFC", word).strip()).filter(bool),
    st.sampled_from([None, "de", "pt_BR"]),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
columns = words.filter(lambda name: name not in {"key", "text", "texts", "image"})
records = st.builds(
    Record,
    key=words.filter(str.strip),
    place=st.just(""),
    texts=st.lists(texts, min_size=1, max_size=4, unique=True).map(tuple),
    image=st.none() | st.just("https://example.org/a.png"),
    metadata=st.dictionaries(columns, json_values.filter(lambda value: value is not None), max_size=3),
)
almost_rows = st.dictionaries(st.sampled_from(["key", "text", "texts", "image", "other"]), json_values).map(
    lambda row: json.dumps(row).encode()
)


@given(st.lists(st.binary(max_size=40) | almost_rows))
def test_every_line_that_is_not_blank_gives_one_row_whatever_its_bytes(lines: list[bytes]):
    content = b"\n".join(lines)
    expected = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    with TemporaryDirectory() as folder:
        rows = list(read_source(a_tree(Path(folder), {"a.jsonl": content}) / "a.jsonl"))

    assert len(rows) == len(expected)
    assert all(isinstance(row, Record | Rejected) for row in rows)


@given(st.lists(st.binary(max_size=60)))
def test_no_bytes_under_a_csv_header_raise(lines: list[bytes]):
    content = b"\n".join([b"key,text,texts,image", *lines])
    with TemporaryDirectory() as folder:
        rows = list(read_source(a_tree(Path(folder), {"a.csv": content}) / "a.csv"))

    assert all(isinstance(row, Record | Rejected) or row.reason == "encoding" for row in rows)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_no_bytes_beside_a_picture_raise(text: bytes, metadata: bytes):
    with TemporaryDirectory() as folder:
        row = only(a_tree(Path(folder), {"a.png": b"", "a.txt": text, "a.json": metadata}))

    assert isinstance(row, Record | Rejected)


def as_row(record: Record) -> dict[str, Any]:
    texts = [{"text": text.text, "lang": text.lang} for text in record.texts]
    return {"key": record.key, "texts": texts, "image": record.image, **record.metadata}


@given(st.lists(records, max_size=4, unique_by=lambda record: record.key))
def test_records_written_as_jsonl_are_read_back_as_they_were(written: list[Record]):
    with TemporaryDirectory() as folder:
        rows = list(read_source(a_manifest(Path(folder), *map(as_row, written))))

    assert [as_row(row) for row in rows if isinstance(row, Record)] == [as_row(record) for record in written]


# Fetching


class Answers(BaseHTTPRequestHandler):
    """`/picture`, `/endless`, `/round` (redirects to itself), `/silent`, and errors by their number."""

    over = threading.Event()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        match self.path.strip("/"):
            case "picture":
                self._answer(200, PICTURE)
            case "endless":
                self._answer(200)
                try:
                    while not self.over.is_set():
                        self.wfile.write(b"x" * 65_536)
                except OSError:
                    return
            case "round":
                self._answer(302, Location="/round")
            case "away":
                self._answer(302, Location=f"http://localhost:{self.server.server_port}/picture")
            case "here":
                self._answer(302, Location="/picture")
            case "file":
                self._answer(302, Location="file:///etc/passwd")
            case "mapped":
                self._answer(302, Location=f"http://[::ffff:127.0.0.1]:{self.server.server_port}/picture")
            case "metadata":
                self._answer(302, Location="http://169.254.169.254/latest")
            case "silent":
                self.over.wait(30)
            case status:
                self._answer(int(status), b"sorry")

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def a_web_server() -> Iterator[str]:
    Answers.over.clear()
    Answers.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Answers.over.set()
        server.shutdown()
        thread.join()


def a_closed_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        return server.server_port


def the_refusal(uri: str, **limits: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(uri, **LIMITS | limits)
    return caught.value


def test_a_file_is_fetched_up_to_the_limit_and_not_beyond(tmp_path: Path):
    path = str(a_tree(tmp_path, {"a.png": b"12345", "empty.png": b""}) / "a.png")

    assert fetch(path, max_bytes=5, timeout_s=1) == b"12345"
    assert fetch(f"file://{path}", max_bytes=5, timeout_s=1) == b"12345"
    assert fetch(str(tmp_path / "empty.png"), max_bytes=5, timeout_s=1) == b""
    refusal = the_refusal(path, max_bytes=4)
    assert (refusal.reason, str(refusal)) == (
        "too_large",
        f"{path}: over 4 bytes; make it smaller or raise the limit",
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "missing_file"),
        ("folder", "missing_file"),
        ("pipe.png", "missing_file"),
        ("a.png/b.png", "missing_file"),
        ("nul\0.png", "missing_file"),
        ("x" * 300, "unreachable"),
    ],
)
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str, reason: str):
    a_tree(tmp_path, {"folder/x": b"", "a.png": b""})
    os.mkfifo(tmp_path / "pipe.png")

    refusal = the_refusal(str(tmp_path / name))

    assert refusal.reason == reason
    assert name.replace("\0", "\\x00") in str(refusal)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path):
    path = a_tree(tmp_path, {"a.png": PICTURE}) / "a.png"
    path.chmod(0)

    assert the_refusal(str(path)).reason == "unreachable"


def test_a_url_is_fetched():
    with a_web_server() as url:
        assert fetch(f"{url}/picture", **LIMITS) == PICTURE


def test_a_redirect_is_followed_on_the_same_host_and_elsewhere_when_that_is_allowed():
    with a_web_server() as url:
        assert fetch(f"{url}/here", **LIMITS) == PICTURE
        assert fetch(f"{url}/away", **LIMITS, private_redirects=True) == PICTURE


def test_a_password_in_a_url_is_not_repeated():
    assert "secret" not in str(the_refusal("http://me:secret@127.0.0.1:1/a.png"))


def test_an_answer_without_end_is_read_up_to_the_limit():
    with a_web_server() as url:
        assert the_refusal(f"{url}/endless").reason == "too_large"


@pytest.mark.parametrize(
    ("path", "reason", "says"),
    [
        ("404", "missing_file", "HTTP 404 Not Found; correct the URL"),
        ("410", "missing_file", "HTTP 410"),
        ("403", "unreachable", "HTTP 403 Forbidden; does it need a login"),
        ("503", "unreachable", "HTTP 503"),
        ("round", "unreachable", "redirected more than 10 times"),
        ("away", "private_address", "leads to localhost, a private address"),
        ("mapped", "private_address", "a private address"),
        ("metadata", "private_address", "leads to 169.254.169.254, a private address"),
        ("file", "private_address", "leads to file:, which is not followed"),
        ("silent", "unreachable", "no full answer within 0.1 s"),
    ],
)
def test_an_answer_that_is_no_picture_is_refused_with_its_cause(path: str, reason: str, says: str):
    with a_web_server() as url:
        refusal = the_refusal(f"{url}/{path}", timeout_s=0.1 if path == "silent" else 5)

    assert refusal.reason == reason
    assert says in str(refusal)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://a b/", "http://127.0.0.1:99999/", "http://\udcff/"]
)
def test_a_url_that_makes_no_sense_is_unreachable(url: str):
    assert the_refusal(url).reason == "unreachable"


def test_a_dead_host_is_unreachable():
    refusal = the_refusal(f"http://127.0.0.1:{a_closed_port()}/a.png")

    assert refusal.reason == "unreachable"
    assert "check the URL and the network" in str(refusal)


@pytest.mark.parametrize("url", ["s3a://bucket/a.png", "nonsense://x", "file:///", "webdav://x/y"])
def test_a_store_that_cannot_be_opened_is_unreachable(url: str):
    assert the_refusal(url).reason == "unreachable"
