"""Read one record with its state; the caller owns the transaction."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from storage.postgres.catalog import item_of
from storage.postgres.schema import ItemRow, MarkRow
from storage.records import Item


@dataclass(frozen=True, slots=True)
class Details:
    """Describe a record, living or deleted, and its embedding state."""

    source: str
    key: str
    item: Item | None
    """None where it is deleted: what it held is nobody's business any more."""

    created: datetime
    updated: datetime
    deleted: datetime | None
    deletion: str | None
    """Why: `asked` for by a person, or `missing` from its source."""

    embedded: datetime | None
    """When its point in the collection was made; None if it has none."""

    is_current: bool
    """Whether that point was made from what the record is now."""


def details(session: Session, id: UUID, collection: str | None) -> Details | None:
    """Return the details of a record, or None if it never existed.

    Args:
        collection: the one that searches go to.
    """
    marked = and_(MarkRow.item_id == ItemRow.id, MarkRow.collection == collection)
    found = session.execute(select(ItemRow, MarkRow).outerjoin(MarkRow, marked).where(ItemRow.id == id))
    both = found.tuples().one_or_none()
    if both is None:
        return None
    row, mark = both
    made_from = None if mark is None else (mark.content_hash, mark.record_hash)
    return Details(
        row.source,
        row.key,
        item_of(row) if row.deleted is None else None,
        row.created,
        row.updated,
        row.deleted,
        row.deletion,
        None if mark is None else mark.embedded,
        made_from == (row.content_hash, row.record_hash),
    )
