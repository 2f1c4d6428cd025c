"""Convert manifest rows of any format into records."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec import available_protocols

from storage.errors import InvalidInput
from storage.records import Record
from storage.sources.columns import CONTENT_COLUMNS, Columns, columns_of, missing_columns
from storage.sources.local_paths import local_path
from storage.sources.read_options import ReadOptions
from storage.sources.validation import (
    BadRow,
    checked_key,
    checked_texts,
    fitting_metadata,
    is_storable,
    printable,
)

MAX_URI_CHARS = 4_096

LOCAL = re.compile(r"(?:file|local):", re.IGNORECASE)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")

INDIRECT = {
    *("async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "dir", "dvc"),
    *("filecache", "generic", "git", "libarchive", "reference", "simplecache", "tar", "zip"),
}
"""Schemes through which fsspec would open files of this machine: a manifest must not reach those."""

UNGUARDED = {"dbfs", "jlab", "jupyter", "webhdfs"}
"""Schemes of drivers that speak HTTP by themselves: any host may redirect them into a private network."""


class BadSource(InvalidInput):
    """Signal a location without a source that can be read completely."""


def check_columns(path: Path, names: Sequence[str], options: ReadOptions) -> Columns:
    """Return the content columns; names are distinct, one is a key.

    Raises:
        BadSource: names the columns found.
    """
    found = printable(", ".join(names)) or "none"
    if not all(map(is_storable, names)):
        raise BadSource(f"{path}: its column names are not UTF-8 ({found}); re-save it as UTF-8")
    if missing := missing_columns(names, options.columns):
        raise BadSource(f"{path}: no column {missing[0]!r} to map among its columns ({found}); correct --map")
    columns = columns_of(names, options.columns)
    if "key" not in columns.named(names) and not columns.key_is_image:
        raise BadSource(
            f"{path}: no column 'key' among its columns ({found}); name one so, or map one: --map key=COLUMN"
        )
    contents = columns.named(names)
    if len(set(contents)) < len(contents):
        raise BadSource(f"{path}: two columns have the same name ({found}); rename one, or see --map")
    return columns


def record_of(row: Mapping[str, Any], *, place: str, folder: Path) -> Record:
    """Convert a row into a record; other columns become metadata.

    Args:
        row: values by column; None for an absent one.
        place: readable position of the row.
        folder: the manifest's, resolved; no path may lead out of it.

    Raises:
        BadRow: with the key of the row, unless the key is invalid.
    """
    image, data = _embedded(row.get("image"))
    key = checked_key(
        row.get("key") if row.get("key") is not row.get("image") else _key_of_image(image, data)
    )
    try:
        texts = checked_texts(_texts(row))
        uri = f"{place}: {image or key}" if data is not None else _image(image, folder)
        if not texts and uri is None:
            raise BadRow("empty_record", "neither text nor image; fill in one of them or remove the row")
        metadata = {name: value for name, value in row.items() if name not in CONTENT_COLUMNS}
        kept, dropped = fitting_metadata(metadata)
        return Record(key, place, texts, uri, kept, data=data, folder=folder, dropped=dropped)
    except BadRow as bad:
        bad.key = key
        raise


def _embedded(value: object) -> tuple[Any, bytes | None]:
    """Return the path and the bytes of an image in a cell.

    A dataset of Hugging Face stores a struct of both; other values are returned as they are.
    """
    if isinstance(value, bytes):
        return None, value
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        data = value.get("bytes")
        return value.get("path"), data if isinstance(data, bytes) else None
    return value, None


def _key_of_image(image: object, data: bytes | None) -> object:
    """Return the key of a record that only its image identifies."""
    if data is not None and not image:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return image


def key_of(row: Mapping[str, Any]) -> str | None:
    """Return the key of a row if it is valid.

    An invalid row may have a valid key.
    """
    try:
        return checked_key(row.get("key"))
    except BadRow:
        return None


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    if row.get("text") is not None:
        yield row["text"], None
    texts = row.get("texts")
    if not isinstance(texts, list | None):
        raise BadRow("bad_text", 'texts is not a list; write a JSON list such as ["a cat", "a tabby"]')
    for entry in texts or ():
        yield (entry.get("text"), entry.get("lang")) if isinstance(entry, dict) else (entry, None)


def _image(value: object, folder: Path) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow("bad_uri", f"image is a {type(value).__name__}; write a path or a URL as a string")
    if not value.strip():
        return None
    if not is_storable(value) or len(value) > MAX_URI_CHARS:
        why = f"image {value[:100]!r} holds NUL or half a character, or has over {MAX_URI_CHARS:,} characters"
        raise BadRow("bad_uri", f"{why}; rename the file")
    if value.startswith("data:"):
        raise BadRow("bad_uri", "image is a data: URL; write the image to a file and name that")
    value = value.strip() if SCHEME.match(value.strip()) else value
    if LOCAL.match(value) or value.startswith(("//", "\\\\")):
        return local_path(value, folder)
    _check_unchained(value)
    scheme = SCHEME.match(value)
    if scheme is None:
        return local_path(value, folder)
    if scheme[1].lower() in INDIRECT | UNGUARDED or scheme[1].lower() not in available_protocols():
        raise BadRow(
            "bad_uri", f"image {value[:300]!r}: {scheme[1]}:// is not taken; use a path or an http URL"
        )
    return value


def _check_unchained(uri: str) -> None:
    first, chain, _ = uri.partition("::")
    if chain and ("://" in uri or first in available_protocols()):
        raise BadRow("bad_uri", f"image {uri[:300]!r} chains URLs with '::'; name the image itself")
