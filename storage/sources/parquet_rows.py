"""Convert Parquet batches into records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.records import Record, Rejected
from storage.sources.bounded_lines import MAX_LINE_BYTES
from storage.sources.manifest_rows import key_of, record_of
from storage.sources.validation import BadRow, rejected

UNREADABLE_CELL = (ValueError, OverflowError, pa.ArrowException)
MAX_SHOWN_CHARS = 16_384


def values_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield rows as Python values; unreadable cells hold their exception."""
    names = batch.schema.names
    for number in range(batch.num_rows):
        try:
            [row] = batch.slice(number, 1).to_pylist()
        except UNREADABLE_CELL:
            row = {name: _cell(batch, name, number) for name in names}
        yield row


def _cell(batch: pa.RecordBatch, name: str, number: int) -> Any:
    try:
        return batch.column(name)[number].as_py()
    except UNREADABLE_CELL as error:
        return error


def row_of(row: dict[str, Any], place: str, folder: Path) -> Record | Rejected:
    """Return the record of a row, or its reject."""
    try:
        for name, value in row.items():
            if isinstance(value, Exception):
                reason = "not_utf8" if isinstance(value, UnicodeDecodeError) else "bad_row"
                why = f"column {name!r} cannot be read ({value}); correct it at the source"
                raise BadRow(reason, why, key=key_of(row))
        record = record_of(row, place=place, folder=folder)
        if sum(len(text.text) for text in record.texts) > MAX_LINE_BYTES:
            why = f"its texts have over {MAX_LINE_BYTES:,} characters; make several records of it"
            raise BadRow("text_too_long", why, key=record.key)
        return record
    except BadRow as bad:
        return rejected(place, bad, raw=_shown(row))


def _shown(row: dict[str, Any]) -> str:
    """Return the beginning of a row as JSON, to display it."""
    shown, left = [], MAX_SHOWN_CHARS
    encoder = json.JSONEncoder(ensure_ascii=False, default=_shown_value)
    short = {
        name: value[:left] if isinstance(value, str | bytes | list) else value for name, value in row.items()
    }
    for part in encoder.iterencode(short):
        shown.append(part)
        left -= len(part)
        if left < 0:
            break
    return "".join(shown)


def _shown_value(value: object) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)
