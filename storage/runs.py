"""Runs and their rejects in Postgres. Functions take a Session and never commit: the caller does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.records import Rejected, item_id
from storage.schema import RejectRow, RunRow, SeenRow


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as `status` shows it."""

    id: UUID
    flow: str
    source: str
    location: str
    started: datetime
    ended: datetime | None
    outcome: str
    error: str | None
    counts: dict[str, Any]
    seconds: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """One open reject, as `rejects` shows it."""

    source: str
    place: str
    key: str | None
    reason: str
    message: str
    raw: str
    first_seen: datetime
    last_seen: datetime

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def start_run(
    session: Session, run_id: UUID, flow: str, source: str, location: str, prefect_run_id: UUID | None
) -> None:
    """Open a run; earlier runs of `source` that never ended are closed as crashed.

    The caller holds the source's lock, so a run that says it is running cannot be.
    """
    unended = RunRow.source == source, RunRow.outcome == "running"
    crashed = update(RunRow).where(*unended).values(outcome="crashed", ended=func.now()).returning(RunRow.id)
    ids = list(session.scalars(crashed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))
    session.add(
        RunRow(
            id=run_id,
            flow=flow,
            source=source,
            location=location,
            prefect_run_id=prefect_run_id,
            outcome="running",
            counts={},
            seconds={},
        )
    )


def end_run(
    session: Session,
    run_id: UUID,
    outcome: str,
    *,
    counts: dict[str, Any],
    seconds: dict[str, Any],
    error: str | None = None,
) -> None:
    """Close a run, and drop its claims."""
    session.execute(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(outcome=outcome, ended=func.now(), counts=counts, seconds=seconds, error=error)
    )
    session.execute(delete(SeenRow).where(SeenRow.run_id == run_id))


def last_location(session: Session, source: str) -> str | None:
    """Return where the latest run of `source` read it."""
    latest = select(RunRow.location).where(RunRow.source == source).order_by(RunRow.started.desc()).limit(1)
    return session.scalar(latest)


def recent_runs(session: Session, limit: int) -> list[Run]:
    """Return the latest runs, newest first."""
    rows = session.scalars(select(RunRow).order_by(RunRow.started.desc(), RunRow.id).limit(limit))
    return [
        Run(
            row.id,
            row.flow,
            row.source,
            row.location,
            row.started,
            row.ended,
            row.outcome,
            row.error,
            row.counts,
            row.seconds,
        )
        for row in rows
    ]


def save_rejects(session: Session, run_id: UUID, source: str, rejects: Sequence[Rejected]) -> None:
    """Put rows on record that could not be taken in; a place that failed before keeps one row."""
    if not rejects:
        return
    rows = [
        {"id": item_id(source, reject.place), "source": source, "run_id": run_id} | asdict(reject)
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


def resolve_rejects(session: Session, run_id: UUID, source: str) -> None:
    """Close the rejects of `source` that this run, which read all of it, did not meet again."""
    session.execute(
        update(RejectRow)
        .where(RejectRow.source == source, RejectRow.run_id != run_id, RejectRow.resolved.is_(None))
        .values(resolved=func.now())
    )


def open_rejects(session: Session) -> list[Reject]:
    """Return every open reject, by source and place."""
    rows = session.scalars(
        select(RejectRow).where(RejectRow.resolved.is_(None)).order_by(RejectRow.source, RejectRow.place)
    )
    return [
        Reject(
            row.source,
            row.place,
            row.key,
            row.reason,
            row.message,
            row.raw,
            row.first_seen,
            row.last_seen,
        )
        for row in rows
    ]


def reject_counts(session: Session) -> dict[str, int]:
    """Return how many rejects are open, by reason, most first."""
    many = func.count()
    statement = (
        select(RejectRow.reason, many)
        .where(RejectRow.resolved.is_(None))
        .group_by(RejectRow.reason)
        .order_by(many.desc(), RejectRow.reason)
    )
    return dict(session.execute(statement).tuples().all())
