"""Readers and the image decoder handle arbitrary bytes without unexpected errors."""

import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedding.images.decode import BadImage, decode_image
from flows.config.settings import Limits
from flows.ingestion.batches import FetchedRecord
from flows.ingestion.source_batches import IngestRun, fetch_row
from storage.qdrant import Collection
from storage.records import Ignored, Record, Rejected
from storage.sources import BadSource, read_source

EXAMPLES = 150
NOWHERE = Collection("items__test", "test", "test", dim=3)
RUN = IngestRun(UUID(int=0), "test", NOWHERE, ("en",), Limits(10**6, 1))


def a_picture(kind: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((24, 18), 60).convert("P" if kind == "GIF" else "RGB").save(buffer, kind)
    return buffer.getvalue()


PICTURES = {kind: a_picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
columns = st.sampled_from(["key", "text", "texts", "image", "price", "", "metadata"])
rows = st.dictionaries(columns, json_values | st.text(max_size=20), max_size=5)
lines = rows.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=60)

any_bytes = st.binary(max_size=300) | st.text(max_size=200).map(str.encode)


def read_all(name: str, data: bytes) -> list:
    """Read a manifest as an ingest does, and fetch its images."""
    with TemporaryDirectory() as folder:
        path = Path(folder).resolve() / name
        path.write_bytes(data)
        try:
            found = list(read_source(path))
        except BadSource:
            return []
        records = [row for row in found if isinstance(row, Record)]
        for record in filter(_is_local, records):
            assert isinstance(fetch_row(RUN, record), FetchedRecord | Rejected)
        return found


def _is_local(record: Record) -> bool:
    return record.image is None or "://" not in record.image


@settings(max_examples=EXAMPLES)
@given(st.lists(lines, max_size=6))
def test_each_line_of_any_jsonl_is_a_record_or_a_reject(written: list[bytes]):
    data = b"\n".join(line.replace(b"\n", b" ") for line in written)

    found = read_all("any.jsonl", data)

    assert len(found) == sum(bool(line.replace(b"\n", b" ").strip()) for line in written)
    assert all(isinstance(row, Record | Rejected) for row in found)


@settings(max_examples=EXAMPLES)
@given(any_bytes)
@pytest.mark.parametrize("name", ["any.csv", "any.ndjson"])
def test_any_bytes_are_read_or_refused_as_a_source(name: str, data: bytes):
    head = b"key,text,image\n" if name.endswith(".csv") else b""

    assert all(isinstance(row, Record | Rejected | Ignored) for row in read_all(name, head + data))


@settings(max_examples=EXAMPLES // 30)  # each starts a process
@given(any_bytes)
def test_any_bytes_are_read_or_refused_as_parquet(data: bytes):
    assert all(isinstance(row, Record | Rejected) for row in read_all("any.parquet", data))


@settings(max_examples=EXAMPLES)
@given(st.data())
@pytest.mark.parametrize("kind", PICTURES)
def test_any_change_to_a_picture_gives_a_picture_or_a_refusal(kind: str, data: st.DataObject):
    picture = bytearray(PICTURES[kind])
    places = st.integers(0, len(picture) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        picture[place] = value
    cut = data.draw(st.none() | places)
    added = data.draw(st.binary(max_size=40))

    with suppress(BadImage):
        decoded = decode_image(bytes(picture[:cut]) + added, name="any")
        assert decoded.image.mode == "RGB"
        assert decoded.image.size == (decoded.width, decoded.height)
