"""Folders and manifests as other tools write them are read as what they are."""

import json
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from storage.records import Ignored, Record, Rejected
from storage.sources import BadSource, read_source
from storage.sources.host_rules import HostRules, Pace, retry_after_s
from storage.sources.read_options import ReadOptions

PNG = b"\x89PNG\r\n\x1a\n and more"
JPEG = b"\xff\xd8\xff\xe0 and more"


def a_tree(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def records(location: Path, options: ReadOptions | None = None) -> dict[str, list[str]]:
    """The texts of each record by its key; nothing else may be in the source but ignored files."""
    rows = list(read_source(location, options=options or ReadOptions()))
    assert not [row for row in rows if isinstance(row, Rejected)]
    return {row.key: [text.text for text in row.texts] for row in rows if isinstance(row, Record)}


def ignored(location: Path, options: ReadOptions | None = None) -> dict[str, str]:
    rows = read_source(location, options=options or ReadOptions())
    return {row.place: row.reason for row in rows if isinstance(row, Ignored)}


COCO = {
    "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "one"},
        {"image_id": 7, "caption": "two"},
        {"image_id": 8, "caption": "lost"},
    ],
}
TAKEOUT = {"title": "1.jpg", "description": "one", "photoTakenTime": {"timestamp": "1"}}


@pytest.mark.parametrize(
    ("files", "image"),
    [
        pytest.param(
            {"metadata.jsonl": '{"file_name": "1.jpg", "text": "one"}\n'}, "1.jpg", id="imagefolder"
        ),
        pytest.param({"metadata.csv": "file_name,text\n1.jpg,one\n"}, "1.jpg", id="imagefolder with CSV"),
        pytest.param(
            {"train/metadata.jsonl": '{"file_name": "a/1.jpg", "text": "one"}\n'},
            "train/a/1.jpg",
            id="imagefolder whose images are below",
        ),
        pytest.param({"1.caption": "one"}, "1.jpg", id=".caption"),
        pytest.param({"1.jpg.txt": "one"}, "1.jpg", id="the image's whole name"),
        pytest.param({"1.jpg.json": TAKEOUT}, "1.jpg", id="Takeout"),
        pytest.param({"1.jpg.supplemental-metadata.json": TAKEOUT}, "1.jpg", id="Takeout since 2024"),
        pytest.param({"1.jpg.supplemental-me.json": TAKEOUT}, "1.jpg", id="Takeout, cut"),
        pytest.param({"1.json": {"caption": "one", "similarity": float("nan")}}, "1.jpg", id="img2dataset"),
        pytest.param({"captions.txt": "image,caption\n1.jpg,one\n"}, "Images/1.jpg", id="Flickr8k"),
        pytest.param(
            {"results.csv": "image_name| comment_number| comment\n1.jpg| 0| one\n"}, "x/1.jpg", id="Flickr30k"
        ),
        pytest.param({"results_20130124.token": "1.jpg#0\tone\n"}, "1.jpg", id="Flickr30k tokens"),
    ],
)
def test_captions_in_a_known_layout_are_the_texts_of_their_image(
    tmp_path: Path, files: dict[str, Any], image: str
):
    folder = a_tree(tmp_path / "p", {image: JPEG, **files})

    assert records(folder) == {image: ["one"]}
    assert ignored(folder) == {}


def test_coco_captions_are_found_from_the_folder_of_their_split(tmp_path: Path):
    files = {"annotations/captions_val2017.json": COCO, "val2017/1.jpg": JPEG, "train2017/1.jpg": JPEG}
    folder = a_tree(tmp_path / "p", files)

    assert records(folder) == {"train2017/1.jpg": [], "val2017/1.jpg": ["one", "two"]}
    assert ignored(folder) == {"annotations/captions_val2017.json: val2017/gone.jpg": "missing_image"}


def test_captions_match_an_image_whose_name_a_system_has_decomposed(tmp_path: Path):
    name = unicodedata.normalize("NFD", "é.jpg")
    folder = a_tree(tmp_path / "p", {name: JPEG, unicodedata.normalize("NFC", "é.txt"): "accent"})

    assert records(folder) == {"é.jpg": ["accent"]}


@pytest.mark.parametrize(
    "content", ["[]", '{"images": 1}', "{", '{"images": [{}], "annotations": []}'], ids=range(4)
)
def test_captions_that_are_not_understood_are_named_and_cost_no_image(tmp_path: Path, content: str):
    folder = a_tree(tmp_path / "p", {"1.jpg": JPEG, "captions_x.json": content, "notes.tsv": "a\tb\n"})

    assert records(folder) == {"1.jpg": []}
    assert ignored(folder) == dict.fromkeys(("captions_x.json", "notes.tsv"), "captions_not_understood")


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.apng", "a.MPO", "a.heic", "a.CR2", "a.jxl", "a", "a.bin", "a.jpg"]
)
def test_an_image_is_known_by_its_suffix_or_by_its_beginning(tmp_path: Path, name: str):
    assert records(a_tree(tmp_path / "p", {name: PNG})) == {name: []}


BINS = (
    *("@eaDir/a.jpg/THUMB.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/S-1/a.jpg", "__MACOSX/a.jpg"),
    *("lost+found/a.jpg", "Previews.lrdata/a.jpg", "My.photoslibrary/resources/derivatives/a.jpg"),
)


def test_thumbnails_and_bins_are_left_out_by_name(tmp_path: Path):
    folder = a_tree(tmp_path / "p", dict.fromkeys((*BINS, "2019/@eaDir/b.jpg", "a.jpg"), JPEG))

    assert records(folder) == {"a.jpg": []}
    assert ignored(folder) == dict.fromkeys((*BINS, "2019/@eaDir/b.jpg"), "excluded")


def test_patterns_exclude_and_an_ignore_file_takes_in_again(tmp_path: Path):
    names = ("raw/a.jpg", "a_small.jpg", "a.jpg", "@eaDir/a.jpg")
    folder = a_tree(
        tmp_path / "p", dict.fromkeys(names, JPEG) | {".sightlineignore": "*_small.*\n!@eaDir/\n"}
    )

    assert list(records(folder, ReadOptions(exclude=("raw/",)))) == ["a.jpg", "@eaDir/a.jpg"]
    with pytest.raises(BadSource, match="over 12 wildcards"):
        read_source(folder, options=ReadOptions(exclude=("*a" * 13,)))


def test_links_to_folders_are_named_or_followed_without_going_round(tmp_path: Path):
    a_tree(tmp_path, {"blobs/4711": JPEG, "more/b.jpg": JPEG, "hub/set/c.jpg": JPEG})
    folder = (tmp_path / "hub" / "set").resolve()
    (folder / "a.jpg").symlink_to("../../blobs/4711")
    (folder / "more").symlink_to("../../more")
    (folder / "round").symlink_to("..")
    (folder / "away").symlink_to("/")
    wide = ReadOptions(links_within=tmp_path.resolve())

    closed = {row.place: getattr(row, "reason", "") for row in read_source(folder)}

    assert closed["a.jpg"] == "outside_source"
    assert [closed[name] for name in ("away", "more", "round")] == ["link_to_folder"] * 3
    assert list(records(folder, wide)) == ["a.jpg", "c.jpg", "more/b.jpg"]
    assert ignored(folder, wide) == {"away": "link_outside", "round": "link_loop"}


# Manifests


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        pytest.param("key;text\r\na;x\r\n;\r\n", ["x"], id="semicolons and a blank row"),
        pytest.param("sep=;\r\nkey;text\r\na;x\r\n", ["x"], id="Excel's first line"),
        pytest.param("key\ttext\na\tx, y\n", ["x, y"], id="tabs"),
        pytest.param("Key,TEXT\na,x\n,,\n", ["x"], id="header in capitals"),
        pytest.param("\ufeffkey,text\na,naïve\n".encode("utf-16-le"), ["naïve"], id="UTF-16"),
        pytest.param("key,text\na,naïve\n".encode("cp1252"), ["naïve"], id="cp1252"),
        pytest.param(("key,text\na," + "Добрый вечер, " * 9).encode("cp1251"), None, id="cp1251"),
    ],
)
def test_a_csv_is_read_as_a_spreadsheet_writes_it(
    tmp_path: Path, content: str | bytes, texts: list[str] | None
):
    if texts is None:
        content = content if isinstance(content, bytes) else content.encode()
        content = content.replace(b", ", b" ")
        texts = [("Добрый вечер " * 9).strip()]

    assert records(a_tree(tmp_path, {"a.csv": content}) / "a.csv") == {"a": texts}


def test_a_utf8_csv_with_a_damaged_byte_stays_utf8(tmp_path: Path):
    content = "key,text\na,naïve é\n".encode() + b"b,\xff\n"

    first, second = read_source(a_tree(tmp_path, {"a.csv": content}) / "a.csv")

    assert isinstance(first, Record)
    assert first.texts[0].text == "naïve é"
    assert isinstance(second, Rejected)
    assert second.reason == "not_utf8"


def test_rows_of_one_image_that_follow_each_other_are_one_record(tmp_path: Path):
    rows = "image_name| comment_number| comment| author\n"
    rows += "".join(f"0.jpg| {n}| text {n}| {'me' if n else ''}\n" for n in range(5))

    [record] = read_source(a_tree(tmp_path, {"a.csv": rows + "\n"}) / "a.csv")

    assert isinstance(record, Record)
    assert [text.text for text in record.texts] == [f"text {n}" for n in range(5)]
    assert (record.key, Path(str(record.image)).name) == ("0.jpg", "0.jpg")
    assert {name: str(value).strip() for name, value in record.metadata.items()} == {
        "comment_number": "0",
        "author": "me",
    }
    assert [name for name, _ in record.dropped] == ["comment_number"]  # once, and not once a row


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("captions.txt", "ingest the folder: {}"),
        ("results.token", "ingest the folder: {}"),
        ("annotations/captions_val2017.json", "ingest the folder: {}"),
        ("00000.tar", "unpack it, and ingest the folder"),
        ("a.png", "ingest its folder: {}"),
        ("notes.txt", "name a folder of images, or a manifest"),
    ],
)
def test_a_file_that_is_no_source_is_named_with_what_to_ingest(tmp_path: Path, file: str, remedy: str):
    with pytest.raises(BadSource, match=re.escape(remedy.format(tmp_path))):
        read_source(a_tree(tmp_path, {file: "x"}) / file)


def test_columns_are_mapped_by_name(tmp_path: Path):
    manifest = a_tree(tmp_path, {"a.jsonl": {"id": 7, "URL": "https://x.org/a.jpg", "ALT": "x"}}) / "a.jsonl"
    mapped = (("key", "id"), ("image", "URL"), ("text", "ALT"))

    [record] = read_source(manifest, options=ReadOptions(columns=mapped))

    assert isinstance(record, Record)
    assert (record.key, record.image, record.texts[0].text) == ("7", "https://x.org/a.jpg", "x")
    table = a_tree(tmp_path, {"a.csv": "URL,TEXT\nhttps://x.org/a.jpg,x\n"}) / "a.csv"
    assert records(table) == {"https://x.org/a.jpg": ["x"]}
    with pytest.raises(BadSource, match="no column 'NAME' to map"):
        read_source(table, options=ReadOptions(columns=(("text", "NAME"),)))


def test_images_in_cells_of_a_parquet_file_are_read_as_images(tmp_path: Path):
    images = [{"bytes": JPEG, "path": "a.jpg"}, {"bytes": PNG, "path": None}]
    write_table(pa.table({"image": images, "text": ["x", "y"]}), tmp_path / "a.parquet")

    first, second = read_source(tmp_path / "a.parquet")

    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.key, first.data, second.data) == ("a.jpg", JPEG, PNG)
    assert second.key.startswith("sha256:")


@pytest.mark.parametrize(
    ("image", "file"),
    [
        (r"in\a.jpg", "in/a.jpg"),
        (r"odd\name.jpg", r"odd\name.jpg"),
        (unicodedata.normalize("NFD", "in/é.jpg"), unicodedata.normalize("NFC", "in/é.jpg")),
        ("file://localhost{folder}/in/a%20b.jpg", "in/a b.jpg"),
        ("file:{folder}/in/a.jpg", "in/a.jpg"),
    ],
)
def test_a_path_is_understood_as_other_systems_write_it(tmp_path: Path, image: str, file: str):
    folder = tmp_path.resolve()
    row = {"key": "a", "image": image.replace("{folder}", str(folder))}

    [record] = read_source(a_tree(folder, {file: JPEG, "a.jsonl": row}) / "a.jsonl")

    assert isinstance(record, Record)
    assert record.image == str(folder / file)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("//host/a.jpg", "bad_uri"),
        (r"\\nas\photos\a.jpg", "bad_uri"),
        (r"..\..\etc\passwd", "outside_source"),
        ("file:///etc/%70asswd", "outside_source"),
    ],
)
def test_a_path_to_another_host_or_folder_is_rejected_by_name(tmp_path: Path, image: str, reason: str):
    [reject] = read_source(a_tree(tmp_path / "p", {"a.jsonl": {"key": "a", "image": image}}) / "a.jsonl")

    assert isinstance(reject, Rejected)
    assert reject.reason == reason


# Hosts


def test_a_host_is_asked_at_its_rate_and_again_at_the_time_that_it_names():
    pace, now = Pace(), datetime(2026, 1, 1, tzinfo=UTC)

    assert [pace.reserve("x.org", 4, 10.0) for _ in range(3)] == [10.0, 10.25, 10.5]
    assert [pace.reserve("127.0.0.1", 4, 10.0) for _ in range(2)] == [10.0, 10.0]
    assert retry_after_s(503, "Thu, 01 Jan 2026 00:00:09 GMT", now) == 9
    assert retry_after_s(429, "soon") is None


def test_headers_of_a_host_go_to_no_other_and_every_request_names_us():
    rules = HostRules("https://x.org/us", {"*": {"Accept": "image/*"}, "a.org": {"Authorization": "secret"}})

    assert rules.headers_for("A.org")["Authorization"] == "secret"
    assert rules.headers_for("b.org").keys() == {"User-Agent", "Accept"}
    assert rules.headers_for("b.org")["User-Agent"].startswith("Sightline/")
    assert rules.headers_for("b.org")["User-Agent"].endswith("(+https://x.org/us)")
    assert "secret" not in repr(rules)
