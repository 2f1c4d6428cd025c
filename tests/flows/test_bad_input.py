"""What strangers send: the run goes on, what is good is searchable, and the reason is on record."""

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import catalog, rejects
from storage.postgres.rejects import Reject
from tests.support.builders import a_folder, png

GOOD = {f"good{n}.png": png("red", (16, 16 + n)) for n in range(3)}


def ingest(deps: Deps, settings: Settings, location: Path) -> IngestReport:
    lenient = settings.model_copy(update={"max_reject_share": 1.0})
    return ingest_source(deps, lenient, Request(location))


def open_rejects(deps: Deps) -> dict[str, Reject]:
    with deps.sessions() as session:
        return {reject.place: reject for reject in rejects.open_rejects(session)}


def searchable(deps: Deps) -> set[str]:
    with deps.sessions() as session:
        collection = qdrant.collection_name(deps.encoder.fingerprint)
        return {one.key for one in catalog.entries(session, collection) if one.mark}


def a_claim_of_600_megapixels() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def a_jpeg_cut_in_half() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def a_gif_of_1000_frames() -> bytes:
    frames = [Image.new("P", (16, 16), colour % 256) for colour in range(1000)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("huge.png", a_claim_of_600_megapixels(), "too_many_pixels"),
        ("half.jpg", a_jpeg_cut_in_half(), "damaged_picture"),
        ("empty.png", b"", "empty_file"),
        ("text.png", b"this is no picture", "not_a_picture"),
        ("dot.png", png("red", (1, 1)), "too_small"),
    ],
)
def test_a_bad_picture_is_set_aside_with_its_reason(
    deps: Deps, settings: Settings, tmp_path: Path, name: str, data: bytes, reason: str
):
    folder = a_folder(tmp_path / "shop", GOOD | {name: data})

    report = ingest(deps, settings, folder)

    assert (report.embedded, report.rejected, report.outcome) == (3, 1, "completed")
    [reject] = open_rejects(deps).values()
    assert (reject.place, reject.key, reject.reason) == (name, name, reason)
    assert reject.message.startswith(f"{name}: ")
    assert searchable(deps) == GOOD.keys()


def test_of_a_gif_with_1000_frames_the_first_is_taken(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"film.gif": a_gif_of_1000_frames()})

    assert ingest(deps, settings, folder).embedded == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps({"key": "x", "image": "../../secret.png"}), "outside_source"),
        (json.dumps({"key": "x", "image": "/etc/passwd"}), "outside_source"),
        (json.dumps({"key": "x", "image": "file:///etc/passwd"}), "outside_source"),
        (json.dumps({"key": "x", "image": "not there.png"}), "missing_file"),
        ("{this is not JSON", "not_json"),
        (json.dumps({"text": "without a key"}), "no_key"),
        (json.dumps({"key": "good", "text": "a second one"}), "duplicate_key"),
        (json.dumps({"key": "x", "text": "long " * 20_000}), "text_too_long"),
        (json.dumps({"key": "x", "texts": [f"text {n}" for n in range(1_001)]}), "too_many_texts"),
        (json.dumps({"key": "x", "text": "a NUL \0 inside"}), "bad_text"),
        (json.dumps({"key": "x", "text": "half a \ud800 character"}), "bad_text"),
        (json.dumps({"key": "x", "text": {"de": "rot"}}), "bad_text"),
        (json.dumps({"key": "x"}), "empty_record"),
        (json.dumps({"key": "x", "texts": [{"text": "rot", "lang": "de"}]}), "nothing_to_embed"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(
    deps: Deps, settings: Settings, tmp_path: Path, line: str, reason: str
):
    manifest = tmp_path / "rows" / "shop.jsonl"
    first, last = json.dumps({"key": "good", "text": "red"}), json.dumps({"key": "also good", "text": "blue"})
    a_folder(manifest.parent, {"shop.jsonl": f"{first}\n{line}\n{last}\n"})
    a_folder(tmp_path, {"secret.png": png("red")})

    report = ingest(deps, settings, manifest)

    assert (report.read, report.embedded, report.rejected) == (3, 2, 1)
    [reject] = open_rejects(deps).values()
    assert (reject.place, reject.reason) == ("line 2", reason)
    assert "line 2" in reject.message
    assert len(reject.raw) <= 2_000
    assert searchable(deps) == {"good", "also good"}


@pytest.mark.parametrize(
    "caption", ["تفاحة حمراء", "红苹果", "👩‍🚀 in space", "ａ ｆｕｌｌｗｉｄｔｈ ａｐｐｌｅ"]
)
def test_a_caption_in_any_script_comes_back_as_it_was(
    deps: Deps, settings: Settings, tmp_path: Path, caption: str
):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "a.txt": caption})

    ingest(deps, settings, folder)

    with deps.sessions() as session:
        [(item, _)] = catalog.living_items(session)
    assert item.embedded_texts == (caption,)


def test_a_link_that_leads_out_of_the_folder_is_not_followed(deps: Deps, settings: Settings, tmp_path: Path):
    a_folder(tmp_path, {"secret.png": png("blue")})
    folder = a_folder(tmp_path / "shop", GOOD)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")

    ingest(deps, settings, folder)

    assert {place: one.reason for place, one in open_rejects(deps).items()} == {"link.png": "outside_source"}
    assert searchable(deps) == GOOD.keys()


def test_a_picture_file_over_the_limit_is_not_read_whole(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", GOOD | {"big.png": b"\0" * 10_000})
    small = settings.model_copy(update={"max_picture_bytes": 5_000})

    ingest_source(deps, small, Request(folder))

    assert {place: one.reason for place, one in open_rejects(deps).items()} == {"big.png": "too_large"}
