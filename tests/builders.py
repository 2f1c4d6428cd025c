"""Builders: a test names what matters to it, and only that."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from storage.records import Item, Picture, Record, Text
from tests.fakes import PALETTE


def png(colour: str = "red", size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture of one colour; another size is another file."""
    buffer = BytesIO()
    Image.new("RGB", size, PALETTE[colour]).save(buffer, "PNG")
    return buffer.getvalue()


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
    picture = Picture(sha256, f"/pictures/{key}.png", 16, 16, "PNG") if sha256 else None
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
