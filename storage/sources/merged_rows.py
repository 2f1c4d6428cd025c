"""Merge consecutive rows of one image, as Flickr30k has them."""

from collections.abc import Iterator
from dataclasses import replace

from storage.records import Ignored, Record, Rejected
from storage.sources.validation import MAX_TEXTS, fitting_metadata, printable

Row = Record | Rejected | Ignored


def merged(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows, and merge records with one key and one image.

    Of a metadata field the first value counts; if others differ, the field is named once a record.
    Only rows that follow each other are merged, so that one row is held at a time.
    """
    held: Record | None = None
    for row in rows:
        if held is not None and isinstance(row, Record) and _is_same(held, row):
            held = _together(held, row)
            continue
        if held is not None:
            yield held
            held = None
        if isinstance(row, Record) and row.image is not None and row.texts:
            held = row
        else:
            yield row
    if held is not None:
        yield held


def _is_same(held: Record, row: Record) -> bool:
    same = held.key == row.key and held.image == row.image and held.data is None
    new = bool(set(row.texts) - set(held.texts))  # a row written twice is a duplicate
    return same and new and len(held.texts) + len(row.texts) <= MAX_TEXTS


def _together(held: Record, row: Record) -> Record:
    """Return the record of two rows; a field of either is kept."""
    named = {name for name, _ in held.dropped}
    added = {name: value for name, value in row.metadata.items() if name not in {*held.metadata, *named}}
    metadata, too_large = fitting_metadata({**held.metadata, **added}) if added else (held.metadata, ())
    dropped = dict((*row.dropped, *_differing(held, row), *too_large))
    return replace(
        held,
        texts=tuple(dict.fromkeys(held.texts + row.texts)),
        hides=held.hides + row.hides,
        metadata=metadata,
        dropped=held.dropped + tuple(one for one in dropped.items() if one[0] not in named),
    )


def _differing(held: Record, row: Record) -> tuple[tuple[str, str], ...]:
    """Return the fields that differ from those of the first row."""
    return tuple(
        (printable(name, 100), f"{row.place}: differs from {held.place} of the same image, which counts")
        for name, value in row.metadata.items()
        if name in held.metadata and held.metadata[name] != value
    )
