"""Record rejected rows in Postgres; the caller commits."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.postgres.bulk import among
from storage.postgres.catalog import UNUSABLE
from storage.postgres.runs import SENT
from storage.postgres.schema import ItemRow, RejectRow, RunRow, SeenRow
from storage.records import Rejected, item_id


@dataclass(frozen=True, slots=True)
class Reject:
    """Represent one open reject."""

    id: UUID
    source: str
    place: str
    key: str | None
    reason: str
    message: str
    raw: str
    first_seen: datetime
    last_seen: datetime
    sent: bool
    """Whether the record came over the API, so that only its client can send it again."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def save_rejects(session: Session, run_id: UUID, source: str, rejects: Sequence[Rejected]) -> None:
    """Record the rejects of a run, and update earlier ones.

    A record is recognised by its place, and by its key where it has moved since the earlier run.
    """
    if not rejects:
        return
    fields = "place", "key", "reason", "message", "raw"
    rows = [
        {"id": item_id(source, reject.place), "source": source, "run_id": run_id}
        | {name: getattr(reject, name) for name in fields}
        for reject in rejects
    ]
    statement = insert(RejectRow).values(rows)
    changed = {name: statement.excluded[name] for name in ("key", "reason", "message", "raw", "run_id")}
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[RejectRow.id],
            set_=changed | {"last_seen": func.now(), "resolved": None},
        )
    )
    keys = {reject.key for reject in rejects if reject.key is not None}
    moved = RejectRow.source == source, RejectRow.key.in_(keys), RejectRow.run_id != run_id
    session.execute(update(RejectRow).where(*moved, RejectRow.resolved.is_(None)).values(resolved=func.now()))


def resolve_rejects(
    session: Session,
    run_id: UUID,
    source: str,
    places: Iterable[str] | None = None,
    *,
    whole: bool = True,
) -> None:
    """Resolve the rejects of `source` that this run did not meet again.

    Rejects of API records stay open: no run can read their rows.

    Args:
        places: the places that the run tried; None for all.
        whole: whether the run read and parsed the whole source. If not, a row that was not met may still
            exist, and only rejects whose row was ingested are resolved.
    """
    tried: list[ColumnElement[bool]] = [
        RejectRow.source == source,
        RejectRow.run_id != run_id,
        RejectRow.resolved.is_(None),
        ~_was_sent(),
    ]
    if places is not None:
        tried.append(among(RejectRow.place, places))
    if not whole:
        tried.append(_was_ingested(run_id))
    session.execute(update(RejectRow).where(*tried).values(resolved=func.now()))


def _was_ingested(run_id: UUID) -> ColumnElement[bool]:
    """Return the condition that the run claimed the row of a reject.

    A row is recognised by its place, or by its own key.
    """
    claims = select(SeenRow.item_id).join(ItemRow, ItemRow.id == SeenRow.item_id)
    claims = claims.where(
        SeenRow.run_id == run_id, SeenRow.place != UNUSABLE, ItemRow.source == RejectRow.source
    )
    here = claims.where(SeenRow.place == RejectRow.place)
    same_key = ItemRow.key == RejectRow.key
    moved = claims.where(same_key, RejectRow.reason != "duplicate_key")
    return or_(and_(RejectRow.key.is_(None), here.exists()), here.where(same_key).exists(), moved.exists())


def resolve_api_rejects(session: Session, run_id: UUID, source: str, keys: Sequence[str]) -> None:
    """Resolve earlier rejects of API records with `keys`, which this run tried."""
    tried = RejectRow.source == source, among(RejectRow.key, keys), RejectRow.run_id != run_id
    still_open = _was_sent(), RejectRow.resolved.is_(None)
    session.execute(update(RejectRow).where(*tried, *still_open).values(resolved=func.now()))


def rejects_of_run(session: Session, run_id: UUID) -> list[dict[str, Any]]:
    """Return the rejects that a run met last, by place.

    Each has key, reason and message.
    """
    columns = RejectRow.key, RejectRow.reason, RejectRow.message
    rows = session.execute(select(*columns).where(RejectRow.run_id == run_id).order_by(RejectRow.place))
    return [dict(row._mapping) for row in rows]


def open_rejects(
    session: Session,
    *,
    reason: str | None = None,
    source: str | None = None,
    ids: Iterable[UUID] | None = None,
    after: tuple[str, str] | None = None,
    limit: int | None = None,
) -> list[Reject]:
    """Return the open rejects, by source and place.

    Args:
        reason: only those for this reason; likewise `source` and `ids`.
        after: source and place of a reject; only those that follow it.
    """
    wanted: list[ColumnElement[bool]] = [RejectRow.resolved.is_(None)]
    if reason is not None:
        wanted.append(RejectRow.reason == reason)
    if source is not None:
        wanted.append(RejectRow.source == source)
    if ids is not None:
        wanted.append(among(RejectRow.id, ids))
    if after is not None:
        wanted.append(tuple_(RejectRow.source, RejectRow.place) > tuple_(*map(literal, after)))
    statement = (
        select(RejectRow, _was_sent()).where(*wanted).order_by(RejectRow.source, RejectRow.place).limit(limit)
    )
    return [
        Reject(
            row.id,
            row.source,
            row.place,
            row.key,
            row.reason,
            row.message,
            row.raw,
            row.first_seen,
            row.last_seen,
            was_sent,
        )
        for row, was_sent in session.execute(statement).tuples()
    ]


def _was_sent() -> ColumnElement[bool]:
    return exists().where(RunRow.id == RejectRow.run_id, RunRow.flow == SENT)


def forget_rejects(session: Session, items: Sequence[tuple[str, str]]) -> int:
    """Delete the rejects of these (source, key) pairs; return their number."""
    pairs = tuple_(RejectRow.source, RejectRow.key).in_(items)
    return len(session.execute(delete(RejectRow).where(pairs).returning(RejectRow.id)).all())


def count_rejects(session: Session) -> dict[str, int]:
    """Count the open rejects by reason, most frequent first."""
    many = func.count()
    statement = (
        select(RejectRow.reason, many)
        .where(RejectRow.resolved.is_(None))
        .group_by(RejectRow.reason)
        .order_by(many.desc(), RejectRow.reason)
    )
    return dict(session.execute(statement).tuples().all())
