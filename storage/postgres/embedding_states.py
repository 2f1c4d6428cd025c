"""Find outdated embedding states, and rows changed since a snapshot."""

from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, cast, func, literal_column, or_, select
from sqlalchemy.orm import Session

from storage.postgres.schema import ItemRow, MarkRow


def outdated(session: Session, collection: str, *, after: UUID | None, limit: int) -> list[UUID]:
    """Return the living items without a current point, in id order.

    Args:
        after: only items with a greater id.
    """
    statement = (
        select(ItemRow.id)
        .outerjoin(MarkRow, _state_in(collection))
        .where(
            ItemRow.deleted.is_(None),
            or_(
                MarkRow.content_hash.is_distinct_from(ItemRow.content_hash),
                MarkRow.record_hash.is_distinct_from(ItemRow.record_hash),
            ),
        )
        .order_by(ItemRow.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(ItemRow.id > after)
    return list(session.scalars(statement))


def count_living(session: Session) -> int:
    """Return the number of living items."""
    return session.scalar(select(func.count()).select_from(ItemRow).where(ItemRow.deleted.is_(None))) or 0


def oldest_transaction(session: Session) -> str:
    """Return the oldest transaction id that a snapshot does not see."""
    current: ColumnElement[str] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::xid")
    return session.execute(select(cast(current, Text))).scalar_one()


def changed_since(session: Session, collection: str, transaction: str) -> set[UUID]:
    """Return the items with changes since a transaction, embedding states included.

    Every transaction that a snapshot does not see has an id from its `oldest_transaction` on, so that no
    change after the snapshot is left out; some from shortly before it may be returned as well. Deleted items
    are among them, but not a state whose row is gone: its item is `outdated` then, or not living.

    Args:
        transaction: returned by `oldest_transaction`, in the last two thousand million transactions.
    """
    items = select(ItemRow.id).where(_written_from(ItemRow.__tablename__, transaction))
    states = select(MarkRow.item_id).where(
        MarkRow.collection == collection, _written_from(MarkRow.__tablename__, transaction)
    )
    return set(session.scalars(items.union(states)))


def sample_images(session: Session, collection: str, size: int) -> list[UUID]:
    """Return a sample of living items with image vectors.

    It depends on their ids alone.
    """
    statement = (
        select(ItemRow.id)
        .join(MarkRow, _state_in(collection))
        .where(ItemRow.deleted.is_(None), ItemRow.image_sha256.is_not(None))
        .order_by(func.sha256(func.uuid_send(ItemRow.id)))
        .limit(size)
    )
    return list(session.scalars(statement))


def _state_in(collection: str) -> ColumnElement[bool]:
    return and_(MarkRow.item_id == ItemRow.id, MarkRow.collection == collection)


def _written_from(table: str, transaction: str) -> ColumnElement[bool]:
    """Match rows by the age of their transaction; ids wrap around."""
    oldest = func.age(literal_column(f"'{int(transaction)}'::xid"))
    return func.age(literal_column(f"{table}.xmin")) <= oldest
