"""Builders: a test names what matters to it, and only that."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedding.images.formats import formats_of
from storage.records import ImageInfo, Item, Record, Text
from tests.support.fakes import PALETTE


def png(colour: str = "red", size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture of one colour; another size is another file."""
    return encoded(Image.new("RGB", size, PALETTE[colour]), "PNG")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    formats_of(b"\0\0\0\x18ftyp")  # as the decoder, Pillow knows HEIF from the first such file on
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture with as much detail as there can be, the same for the same size."""
    width, height = size
    rows = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def a_record(key: str = "cat", *, texts: Sequence[str] = ("a cat",), image: str | None = None) -> Record:
    return Record(key, f"line {key}", tuple(Text(text) for text in texts), image)


def an_item(
    key: str = "cat",
    *,
    source: str = "test",
    texts: Sequence[str] = ("a cat",),
    sha256: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Item:
    picture = ImageInfo(sha256, f"/pictures/{key}.png", 16, 16, "PNG") if sha256 else None
    return Item(source, key, tuple(Text(text) for text in texts), picture, metadata or {})


def a_folder(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write `files` below `root`; a string is a text file."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def a_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
