"""Manifests in CSV: comma-separated rows under a header."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from storage.records import Record, Rejected
from storage.source.lines import TOO_LONG, numbered_lines
from storage.source.manifest import BadSource, check_columns, key_of, record_of
from storage.source.validate import MAX_RAW_CHARS, BadRow, rejected

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not UTF-8."""


class _LineTooLong(csv.Error):
    """One physical line is longer than a row may be; the next one may be fine."""


class _CsvLines:
    """The lines of a CSV file; it goes on after an error, which a generator could not.

    Attributes:
        number: of the last physical line read, from 1.
        raw: the beginning of what was read since `raw` was last emptied.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._lines = numbered_lines(file)
        self.number = 0
        self.raw = ""

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number = line.number
        text = line.content.decode("utf-8", "surrogateescape") + "\n"
        self.raw += text[: max(0, MAX_RAW_CHARS + 1 - len(self.raw))]
        if not line.whole:
            raise _LineTooLong(TOO_LONG)
        return text


def read_csv(path: Path) -> Iterator[Record | Rejected]:
    """Read comma-separated rows under a header; an empty cell is an absent value.

    Args:
        path: in a resolved folder, which is where relative paths start.

    Raises:
        BadSource: no readable header with a `key` column; raised at once.
    """
    with path.open("rb") as file:
        columns = _header(path, _CsvLines(file))
    return _csv_rows(path, columns)


def _header(path: Path, lines: _CsvLines) -> list[str]:
    try:
        columns = [name.strip() for name in next(csv.reader(lines, strict=True), [])]
    except csv.Error as error:
        raise BadSource(
            f"{path}: no CSV header in its first line ({error}); name the columns there"
        ) from error
    check_columns(path, columns)
    return columns


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Record | Rejected]:
    with path.open("rb") as file:
        lines = _CsvLines(file)
        reader = csv.reader(lines, strict=True)
        next(reader, None)
        while True:
            first, lines.raw = lines.number + 1, ""
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield rejected(f"line {first}", _bad_csv(error, lines.number), lines.raw.rstrip("\n"))
                continue
            if cells:
                yield _csv_row(columns, cells, f"line {first}", path.parent, lines.raw.rstrip("\n"))


def _bad_csv(error: csv.Error, last: int) -> BadRow:
    if isinstance(error, _LineTooLong):
        return BadRow("line_too_long", str(error))
    return BadRow("bad_row", f"not CSV, read up to line {last} ({error}); is a quote missing?")


def _csv_row(
    columns: Sequence[str], cells: Sequence[str], place: str, folder: Path, raw: str
) -> Record | Rejected:
    named = zip(columns, cells, strict=False)
    row: dict[str, Any] = {name: cell for name, cell in named if cell.strip()}
    try:
        if len(cells) != len(columns):
            why = f"{len(cells)} cells under {len(columns)} columns; quote a cell that holds a comma"
            raise BadRow("bad_row", why, key=key_of(row))
        if any(map(NOT_UTF8.search, cells)):
            raise BadRow("not_utf8", "not UTF-8; re-save the file as UTF-8", key=key_of(row))
        if "texts" in row:
            row["texts"] = _json_or_same(row["texts"])
        return record_of(row, place=place, folder=folder)
    except BadRow as bad:
        return rejected(place, bad, raw)


def _json_or_same(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
