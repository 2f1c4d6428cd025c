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
    """None for a deleted record: its contents are private."""

    created: datetime
    updated: datetime
    deleted: datetime | None
    deletion: str | None
    """`asked`: deleted on request; `missing`: gone from its source."""

    embedded: datetime | None
    """When its point in the collection was written; None without a point."""

    is_current: bool
    """Whether the point was built from the current record."""


def details(session: Session, id: UUID, collection: str | None) -> Details | None:
    """Return the details of a record, or None if it never existed.

    Args:
        collection: the active one.
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
