"""Read CSV manifests: comma-separated rows under a header."""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from storage.errors import SightlineError
from storage.records import Ignored, Record, Rejected
from storage.sources.bounded_lines import MAX_LINE_BYTES, TOO_LONG, Line, numbered_lines
from storage.sources.columns import Columns
from storage.sources.csv_dialect import Dialect, dialect_of, open_as_utf8
from storage.sources.manifest_rows import BadSource, check_columns, key_of, record_of
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate
from storage.sources.validation import MAX_RAW_CHARS, BadRow, rejected

if TYPE_CHECKING:  # the type of `csv.reader` has no name at run time
    from _csv import Reader

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Characters that `surrogateescape` returns for bytes that are not UTF-8."""


MAX_ROW_LINES = 10_000
ROW_TOO_LONG = f"a row of over {MAX_ROW_LINES:,} lines or {MAX_LINE_BYTES:,} bytes; is a quote missing?"
MAX_REREAD_LINES = 10 * MAX_ROW_LINES
"""Limit of the lines read again to find rows hidden in another one."""


class _LineTooLong(SightlineError, csv.Error):
    """Signal a line or row that is too long.

    The next one may be fine.
    """


class _Unclear(SightlineError):
    """Signal that the search for hidden rows exceeds its limit."""


class _CsvLines:
    """Iterate over the lines of a CSV file, even after an error.

    A generator could not go on.

    Attributes:
        number: of the last physical line read, from 1.
        taken: the lines that were read since `taken` was last emptied.
    """

    def __init__(self, file: BinaryIO, dialect: Dialect) -> None:
        self._lines = numbered_lines(file)
        self.separator = dialect.separator
        self._ahead: deque[Line] = deque()
        self.number = 0
        self.taken: list[str] = []
        self._taken_bytes = 0
        self._reread = self._reread_bytes = 0
        if dialect.names_separator:
            self.number = next(self._lines).number

    def rows(self) -> "Reader":
        """Return a reader of the rows from the next line on."""
        return csv.reader(self, delimiter=self.separator, strict=True)

    def begin_row(self) -> None:
        """Start a new row with the next line."""
        self.taken = []
        self._taken_bytes = self._reread = self._reread_bytes = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.number = line.number
        if len(self.taken) >= MAX_ROW_LINES or self._taken_bytes > MAX_LINE_BYTES:
            raise _LineTooLong(ROW_TOO_LONG)
        self._taken_bytes += len(line.content)
        self.taken.append(_decoded(line))
        return _whole(line)

    def again_from(self, index: int) -> Iterator[str]:
        """Yield the lines taken from `index` on, and the lines that follow.

        Those that follow stay untaken.

        Raises:
            _Unclear: too many lines have been given for this row.
        """
        for later in range(index, len(self.taken)):
            yield self._count_reread(self.taken[later])
        for line in self._ahead:
            yield self._count_reread(_whole(line))
        for line in self._lines:
            self._ahead.append(line)
            yield self._count_reread(_whole(line))

    def _count_reread(self, line: str) -> str:
        self._reread += 1
        self._reread_bytes += len(line)
        if self._reread > MAX_REREAD_LINES or self._reread_bytes > 2 * MAX_LINE_BYTES:
            raise _Unclear
        return line


def _decoded(line: Line) -> str:
    return line.content.decode("utf-8", "surrogateescape") + "\n"


def _whole(line: Line) -> str:
    if not line.whole:
        raise _LineTooLong(TOO_LONG)
    return _decoded(line)


@dataclass(frozen=True, slots=True)
class _Span:
    """Store the physical lines of one row.

    It is usually one line; there are more where a cell has several lines, or a quote is open.
    """

    first: int
    last: int
    lines: Sequence[str]
    inner: Sequence[Sequence[str]] = ()
    """The cells of rows parsed from each line after the first."""

    is_clear: bool = True
    """Whether `inner` contains all hidden rows."""

    @property
    def place(self) -> str:
        return f"line {self.first}"

    @property
    def raw(self) -> str:
        return "".join(self.lines)[: MAX_RAW_CHARS + 1].rstrip("\n")

    @property
    def filled(self) -> int:
        """How many of its lines are not blank."""
        return sum(bool(line.strip()) for line in self.lines)

    def hidden_keys(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the keys of rows that may be hidden inside this one.

        A quote too many makes one cell of the rows up to the next quote. A row that is whole begins on a
        line of its own, so that it is found by reading from there.
        """
        at = columns.index("key" if "key" in columns else "image")
        keys = (key_of({"key": cells[at]}) for cells in self.inner if len(cells) > at)
        return tuple(dict.fromkeys(key for key in keys if key is not None))

    def hidden_rows(self, columns: Sequence[str]) -> int:
        """Count the complete rows that may be hidden inside this one."""
        return sum(len(cells) == len(columns) for cells in self.inner)


def read_csv(
    path: Path, estimate: RowEstimate, options: ReadOptions = DEFAULTS
) -> Iterator[Record | Rejected | Ignored]:
    """Read separated rows under a header; empty cells are absent values.

    Rows without any value do not count.

    Args:
        path: in a resolved folder, which is where relative paths start.

    Raises:
        BadSource: no readable header with a column for keys or images; raised at once.
    """
    dialect = dialect_of(path, options.columns)
    with open_as_utf8(path, dialect.encoding) as (_, text):
        names = _header(path, _CsvLines(text, dialect))
    columns = check_columns(path, names, options)
    return chain(_notes(path, dialect), _csv_rows(path, names, columns, dialect, estimate))


def _notes(path: Path, dialect: Dialect) -> Iterator[Ignored]:
    if dialect.was_detected:
        yield Ignored(path.name, "encoding", f"read as {dialect.encoding}; save it as UTF-8 to be certain")


def _header(path: Path, lines: _CsvLines) -> list[str]:
    try:
        return [name.strip() for name in next(lines.rows(), [])]
    except csv.Error as error:
        raise BadSource(
            f"{path}: no CSV header in its first line ({error}); name the columns there"
        ) from error


def _csv_rows(
    path: Path, names: Sequence[str], columns: Columns, dialect: Dialect, estimate: RowEstimate
) -> Iterator[Record | Rejected]:
    with open_as_utf8(path, dialect.encoding) as (file, text):
        estimate.follow(file)
        lines = _CsvLines(text, dialect)
        reader = lines.rows()
        next(reader, None)
        header = _span(lines, lines.number)
        if not header.is_clear:
            raise BadSource(f"{path}: a header of {len(header.lines):,} lines; is a quote missing?")
        in_header = header.hidden_keys(columns.named(names))
        while True:
            first = lines.number + 1
            lines.begin_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _bad_csv(error, _Span(first, lines.number, lines.taken))
                continue
            if any(cell.strip() for cell in cells):
                row = _csv_row(names, columns, cells, _span(lines, first), path.parent)
                yield replace(row, hides=in_header + row.hides) if in_header else row
                in_header = ()


def _span(lines: _CsvLines, first: int) -> _Span:
    try:
        inner = [_row_from(lines, index) for index in range(1, len(lines.taken))]
    except _Unclear:
        return _Span(first, lines.number, lines.taken, is_clear=False)
    return _Span(first, lines.number, lines.taken, inner)


def _row_from(lines: _CsvLines, index: int) -> Sequence[str]:
    """Return the cells of a row that begins at a taken line.

    Empty if no row does.
    """
    try:
        return next(csv.reader(lines.again_from(index), delimiter=lines.separator, strict=True), [])
    except csv.Error:
        return []


def _bad_csv(error: csv.Error, span: _Span) -> Rejected:
    """Return one reject for lines that cannot be separated into rows."""
    if isinstance(error, _LineTooLong):
        bad = BadRow("line_too_long", str(error), in_doubt=True)
    else:
        why = f"not CSV from line {span.first} on, read up to line {span.last} ({error}); is a quote missing?"
        bad = BadRow("bad_row", why, in_doubt=True)
    return replace(rejected(span.place, bad, span.raw), rows=max(1, span.filled))


def _csv_row(
    names: Sequence[str], columns: Columns, cells: Sequence[str], span: _Span, folder: Path
) -> Record | Rejected:
    filled = {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
    row, contents = columns.row(filled), columns.named(names)
    hides = span.hidden_keys(contents)
    try:
        _check_cells(names, cells, span, key=key_of(row))
        if "texts" in row:
            row["texts"] = _json_or_same(row["texts"])
        record = record_of(row, place=span.place, folder=folder)
        return replace(record, hides=hides) if hides else record
    except BadRow as bad:
        bad.in_doubt |= "\0" in "".join(cells)  # a page that a crash left empty: rows may have stood there
        rows = span.filled if bad.in_doubt else 1 + span.hidden_rows(names)
        return replace(rejected(span.place, bad, span.raw), rows=rows, hides=hides)


def _check_cells(columns: Sequence[str], cells: Sequence[str], span: _Span, key: str | None) -> None:
    """Raise `BadRow` unless the cells form one row in UTF-8."""
    if not span.is_clear:
        why = f"a row of {len(span.lines):,} lines, which may hide others; write its cells in fewer lines"
        raise BadRow("bad_row", why, key=key, in_doubt=True)
    if len(cells) != len(columns):
        lines = "" if span.first == span.last else f", from line {span.first} to line {span.last}"
        why = f"{len(cells)} cells under {len(columns)} columns{lines}; quote a cell that holds a comma"
        raise BadRow("bad_row", why, key=key, in_doubt=True)
    if any(map(NOT_UTF8.search, cells)):
        raise BadRow("not_utf8", "not UTF-8; re-save the file as UTF-8", key=key)


def _json_or_same(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
