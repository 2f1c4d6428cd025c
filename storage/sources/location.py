"""Read the rows of a source at a location."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.records import Ignored, Record, Rejected
from storage.sources.caption_files import folder_of, layout_of
from storage.sources.csv_manifest import read_csv
from storage.sources.image_folder import read_folder
from storage.sources.image_kinds import ARCHIVES, is_image_name
from storage.sources.jsonl_manifest import read_jsonl
from storage.sources.manifest_rows import BadSource
from storage.sources.merged_rows import merged
from storage.sources.parquet_manifest import read_parquet
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate
from storage.sources.validation import is_storable, printable

ACCEPTED = "a folder of images, or a manifest that ends in .jsonl, .ndjson, .csv, .tsv or .parquet"
MANY_REJECTS = 100_000
"""The read ends when rejects exceed this and the records: few bytes may form a row."""

Row = Record | Rejected | Ignored
Reader = Callable[[Path, RowEstimate, ReadOptions], Iterator[Row]]
READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def read_source(
    location: Path, estimate: RowEstimate | None = None, options: ReadOptions = DEFAULTS
) -> Iterator[Row]:
    """Read `location` row by row, in a stable order.

    It is never in memory as a whole.

    The contents of a row never raise: an invalid row becomes a `Rejected`. Keys are not compared with each
    other, and no image is opened.

    Args:
        location: a folder, or a manifest whose paths are relative to its own folder.
        estimate: is kept current while the rows are read.
        options: the columns of a manifest; the exclusions and links of a folder.

    Raises:
        BadSource: neither of these, or not readable; raised here, before the first row is requested. Or,
            while iterating: a folder cannot be listed, the disk failed, or most of very many rows are
            rejected. Nothing is skipped.
    """
    with _readable(location):
        found = _resolved(location)
        read = read_folder if found.is_dir() else READERS[found.suffix.lower()]
        rows = read(found, estimate or RowEstimate(), options)
    return _to_the_end(location, rows if read is read_folder else merged(rows))


def _to_the_end(location: Path, rows: Iterator[Row]) -> Iterator[Row]:
    with _readable(location):
        yield from _mostly_records(location, rows)


def _mostly_records(location: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield `rows` until rejects are many, and outnumber the records.

    Raises:
        BadSource: names the first reason; the last reject is not yielded.
    """
    records, rejects, first = 0, 0, ""
    for row in rows:
        if isinstance(row, Record):
            records += 1
        elif isinstance(row, Rejected):
            rejects += 1
            first = first or row.message
            if rejects > max(MANY_REJECTS, records):
                raise BadSource(
                    f"{printable(str(location))}: its reading ends at {row.place}, after {MANY_REJECTS:,} "
                    f"rejects or more and {records:,} records; the first reject: {first}"
                )
        yield row


@contextmanager
def _readable(location: Path) -> Iterator[None]:
    """Raise `BadSource` where the system cannot read `location`."""
    try:
        yield
    except OSError as error:
        raise BadSource(
            f"{printable(str(location))}: cannot be read to its end ({error.strerror or error}); check the "
            "disk and the permissions, then run it again"
        ) from error


def find_row(
    location: Path, place: str, key: str | None, options: ReadOptions = DEFAULTS
) -> Record | Rejected | None:
    """Return the current row of an earlier reject.

    Reads the source up to `place`, or to its end if the row has moved; it is then recognised by its key if
    that is unique. None if the source no longer has it.

    Args:
        key: the key of the row, or None.

    Raises:
        BadSource: as `read_source`; or it is not found, and may be in an unreadable part.
    """
    moved: list[Record | Rejected] = []
    unclear: Rejected | None = None
    for row in read_source(location, options=options):
        if isinstance(row, Ignored):
            continue
        if row.place == place and row.key == key:
            return row
        if key is not None and row.key == key:
            moved.append(row)
        if isinstance(row, Rejected) and not row.is_understood:
            unclear = unclear or row
    if not moved and unclear is not None:
        raise BadSource(
            f"{place} is not found, and may be in a part that cannot be parsed: {unclear.message}"
        )
    return moved[0] if len(moved) == 1 else None


def source_name(location: Path) -> str:
    """Return the default name of a source.

    It is the name of the folder, or that of the manifest without its suffix.
    """
    return location.resolve().name if location.is_dir() else location.stem


def _resolved(location: Path) -> Path:
    found = _absolute(location)
    if not found.exists():
        raise BadSource(f"{printable(str(location))}: there is nothing there; name {ACCEPTED}")
    if not is_storable(str(found)):
        raise BadSource(f"{printable(str(found))}: this path is not UTF-8; rename its folders")
    if found.is_dir():
        return found
    if found.suffix.lower() not in READERS:
        raise BadSource(f"{printable(str(found))}: {_why_no_source(found)}")
    if found.is_file():
        _check_readable(found)
    return found


def _why_no_source(file: Path) -> str:
    """Return why a file is no source, and the remedy."""
    if file.suffix.lower() in ARCHIVES:
        return "an archive, not a source; unpack it, and ingest the folder"
    if layout_of(file.name) is not None:
        return f"captions of images in a folder; ingest the folder: {folder_of(file)}"
    if is_image_name(file.name):
        return f"an image, not a source; ingest its folder: {file.parent}"
    return f"not a source; name {ACCEPTED}"


def _absolute(location: Path) -> Path:
    """Return `location` with its folders resolved.

    A link to a manifest keeps its own name and folder.
    """
    if location.is_dir():
        return Path(os.path.realpath(location))
    return Path(os.path.realpath(location.parent)) / location.name


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise BadSource(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
