"""Manifests in Parquet, a small batch of rows at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from storage.records import Record, Rejected
from storage.source.manifest import BadSource, check_columns, key_of, record_of
from storage.source.validate import BadRow, rejected

BATCH_ROWS = 256
UNREADABLE_CELL = (ValueError, OverflowError, pa.ArrowException)


def read_parquet(path: Path) -> Iterator[Record | Rejected]:
    """Read the rows of a Parquet file, `BATCH_ROWS` at a time.

    Args:
        path: in a resolved folder, which is where relative paths start.

    Raises:
        BadSource: not Parquet or without a column `key`, raised at once; or, while iterating, damaged.
    """
    with _opened(path) as file:
        check_columns(path, file.schema_arrow.names)
    return _rows(path)


def count_parquet(path: Path) -> int:
    """Return how many rows the file says it has.

    Raises:
        BadSource: not Parquet.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BadSource(f"{path}: not readable as Parquet ({error}); write it again") from error


def _rows(path: Path) -> Iterator[Record | Rejected]:
    number = 0
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in _values(batch):
                number += 1
                yield _row(row, f"row {number}", path.parent)
        if number != file.metadata.num_rows:
            raise BadSource(
                f"{path}: {number:,} rows where it says it has {file.metadata.num_rows:,}; write it again"
            )


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows as Python values; in place of a cell that has none stands its exception."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UNREADABLE_CELL:
        names = batch.schema.names
        return [{name: _cell(batch, name, i) for name in names} for i in range(batch.num_rows)]
    return rows


def _cell(batch: pa.RecordBatch, name: str, i: int) -> Any:
    try:
        return batch.column(name)[i].as_py()
    except UNREADABLE_CELL as error:
        return error


def _row(row: dict[str, Any], place: str, folder: Path) -> Record | Rejected:
    try:
        for name, value in row.items():
            if isinstance(value, Exception):
                reason = "not_utf8" if isinstance(value, UnicodeDecodeError) else "bad_row"
                why = f"column {name!r} cannot be read ({value}); correct it at the source"
                raise BadRow(reason, why, key=key_of(row))
        return record_of(row, place=place, folder=folder)
    except BadRow as bad:
        return rejected(place, bad, raw=_shown(row))


def _shown(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=_shown_value)


def _shown_value(value: object) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)
