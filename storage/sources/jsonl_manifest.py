"""Read JSONL manifests: one JSON object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.records import Record, Rejected
from storage.sources.bounded_lines import TOO_LONG, numbered_lines
from storage.sources.columns import columns_of
from storage.sources.manifest_rows import record_of
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate
from storage.sources.validation import BadRow, rejected

MAX_BRACKETS = 100_000
"""Of a line: Python holds an empty list of two characters in 64 bytes. Metadata may have 64 KiB."""


def read_jsonl(
    path: Path, estimate: RowEstimate, options: ReadOptions = DEFAULTS
) -> Iterator[Record | Rejected]:
    """Read one JSON object per line; blank lines do not count.

    Args:
        path: in a resolved folder, which is where relative paths start.
    """
    with path.open("rb") as file:
        estimate.follow(file)
        for line in numbered_lines(file):
            place = f"line {line.number}"
            if not line.whole:
                yield rejected(place, BadRow("line_too_long", TOO_LONG), raw=_shown(line.content))
            elif line.content.strip():
                yield _json_row(line.content, place, path.parent, options)


def _json_row(line: bytes, place: str, folder: Path, options: ReadOptions) -> Record | Rejected:
    try:
        return record_of(_in_columns(_json_object(line), options), place=place, folder=folder)
    except BadRow as bad:
        return rejected(place, bad, raw=_shown(line))


def _in_columns(row: dict[str, Any], options: ReadOptions) -> dict[str, Any]:
    """Return a row under the names of the content columns.

    A row with an image and no key is a mistake, unless it has the columns of a known layout.
    """
    if "key" in row and not options.columns:
        return row
    columns = columns_of(list(row), options.columns)
    return row if columns.key_is_image and not columns.contents else columns.row(row)


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _json_object(line: bytes) -> dict[str, Any]:
    remedy = "write one JSON object a line"
    if line.count(b"{") + line.count(b"[") > MAX_BRACKETS:
        raise BadRow("not_json", f"JSON with over {MAX_BRACKETS:,} lists and objects; leave some out")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"not UTF-8 ({error.reason}, byte {error.start + 1}); re-save it") from error
    except json.JSONDecodeError as error:
        raise BadRow("not_json", f"not JSON ({error.msg}, column {error.colno}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", f"not JSON that can be read ({error}); {remedy}") from error
    if not isinstance(row, dict):
        raise BadRow("not_json", f"a JSON {type(row).__name__}, not an object; {remedy}")
    return row
