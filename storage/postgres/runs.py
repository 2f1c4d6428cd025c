"""Record runs in Postgres; the caller commits."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Text, and_, cast, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from storage.errors import Conflict, NotFound
from storage.postgres.bulk import among
from storage.postgres.schema import ItemRow, RejectRow, RunRow, SeenRow

SENT = "api"
"""The flow of a run whose records came with an API request: they cannot be read again."""

FAILURES = ("failed", "crashed")
NO_VERDICT = ("cancelled", "refused")
"""Outcomes that say nothing about the flow: a person stopped the run, or its request could not be met."""


class NoSuchFailure(NotFound):
    """Report that no failed run has the given id."""

    refusal = True


class RunClosed(Conflict):
    """Signal that another run has closed this one; it must stop.

    The other run may have written since.
    """

    retryable = True


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Store the progress of a run within its stage."""

    stage: str
    done: int
    total: int
    """0 where it is unknown."""

    since: datetime
    """When the progress of the stage was first reported."""

    first: int
    """How much was done by then."""

    at: datetime
    """When this was reported."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"since": self.since.isoformat(), "at": self.at.isoformat()}

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "StageProgress":
        since, at = (datetime.fromisoformat(data[name]) for name in ("since", "at"))
        return cls(data["stage"], data["done"], data["total"], since, data["first"], at)

    def remaining_s(self, now: datetime) -> float | None:
        """Estimate the seconds until the stage ends, or None."""
        gained, took_s = self.done - self.first, (self.at - self.since).total_seconds()
        if gained <= 0 or took_s <= 0 or self.total < self.done:
            return None
        at_the_end = (self.total - self.done) * took_s / gained
        return max(0.0, at_the_end - (now - self.at).total_seconds())


@dataclass(frozen=True, slots=True)
class Run:
    """Represent one run as recorded."""

    id: UUID
    flow: str
    source: str | None
    location: str | None
    started: datetime
    ended: datetime | None
    outcome: str
    error: str | None
    counts: dict[str, Any]
    seconds: dict[str, Any]
    prefect_run_id: UUID | None = None
    progress: StageProgress | None = None
    options: dict[str, Any] = field(default_factory=dict)
    acknowledged: datetime | None = None

    @property
    def took_s(self) -> float | None:
        """Duration; None while the run goes on."""
        return None if self.ended is None else (self.ended - self.started).total_seconds()


@dataclass(frozen=True, slots=True)
class SourceRead:
    """Represent the last read of a source: its location and options."""

    source: str
    location: str
    options: dict[str, Any]


def start_run(
    session: Session,
    run_id: UUID,
    flow: str,
    *,
    source: str | None = None,
    location: str | None = None,
    options: dict[str, Any] | None = None,
    prefect_run_id: UUID | None = None,
) -> None:
    """Record the start of a run; close earlier ones that crashed.

    Those are the runs of `source`, or without a source those of `flow`. The caller holds the lock of the
    source or of the flow, so a run recorded as running has crashed. Safe to repeat.
    """
    same = (
        RunRow.source == source if source is not None else and_(RunRow.source.is_(None), RunRow.flow == flow)
    )
    unended = same, RunRow.id != run_id, RunRow.outcome == "running"
    crashed = update(RunRow).where(*unended).values(outcome="crashed", ended=func.now()).returning(RunRow.id)
    ids = list(session.scalars(crashed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))
    row = {
        "id": run_id,
        "flow": flow,
        "source": source,
        "location": location,
        "options": options or {},
        "prefect_run_id": prefect_run_id,
        "outcome": "running",
        "counts": {},
        "seconds": {},
    }
    session.execute(insert(RunRow).values(row).on_conflict_do_nothing())


def close_all(session: Session, *, but: UUID | None = None) -> None:
    """Close all runs recorded as running, as after a restore.

    Args:
        but: a run to leave open.
    """
    running = RunRow.outcome == "running", RunRow.id.is_distinct_from(but)
    session.execute(update(RunRow).where(*running).values(outcome="crashed", ended=func.now()))


def close_failed(session: Session, flow: str, prefect_run_id: UUID, outcome: str, error: str) -> None:
    """Close the open runs of a failed Prefect run.

    Without a failed run on record, one is added.

    Args:
        outcome: `failed`, or `crashed` where its process is gone.
    """
    own = RunRow.prefect_run_id == prefect_run_id
    ended = {"outcome": outcome, "ended": func.now(), "error": error}
    closed = update(RunRow).where(own, RunRow.outcome == "running").values(ended).returning(RunRow.id)
    ids = list(session.scalars(closed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))
    if session.scalar(select(exists().where(own, RunRow.outcome.in_(FAILURES)))):
        return
    about = {"id": uuid4(), "flow": flow, "prefect_run_id": prefect_run_id, "counts": {}, "seconds": {}}
    session.execute(insert(RunRow).values(about | ended))


def close_cancelled(session: Session, prefect_run_id: UUID, why: str) -> None:
    """Record open or failed runs of a Prefect run as cancelled."""
    left = RunRow.prefect_run_id == prefect_run_id, RunRow.outcome.in_(("running", "failed"))
    ended = {"outcome": "cancelled", "ended": func.coalesce(RunRow.ended, func.now()), "error": why}
    closed = update(RunRow).where(*left).values(ended).returning(RunRow.id)
    ids = list(session.scalars(closed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))


def require_running(session: Session, run_id: UUID) -> None:
    """Require that this run may write, until the transaction ends.

    Raises:
        RunClosed: the run lost its lock, and another run of the same source began.
    """
    outcome = session.scalar(select(RunRow.outcome).where(RunRow.id == run_id).with_for_update(read=True))
    if outcome != "running":
        raise RunClosed(
            "this run lost its connection to Postgres, and another run of the same source has begun; "
            "that run does the rest"
        )


def save_progress(
    session: Session,
    run_id: UUID,
    progress: StageProgress,
    *,
    counts: dict[str, Any] | None = None,
    seconds: dict[str, Any] | None = None,
) -> None:
    """Record the progress of a run that has not ended.

    Args:
        counts: the work done so far, where it is known.
        seconds: the time spent so far, by stage.
    """
    values = {"progress": progress.as_json(), "counts": counts, "seconds": seconds}
    known = {name: value for name, value in values.items() if value is not None}
    session.execute(update(RunRow).where(RunRow.id == run_id, RunRow.outcome == "running").values(known))


def end_run(
    session: Session,
    run_id: UUID,
    outcome: str,
    *,
    counts: dict[str, Any],
    seconds: dict[str, Any],
    error: str | None = None,
) -> None:
    """Record the end of a run, and drop its claims."""
    session.execute(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(outcome=outcome, ended=func.now(), counts=counts, seconds=seconds, error=error, progress=None)
    )
    session.execute(delete(SeenRow).where(SeenRow.run_id == run_id))


def last_location(session: Session, source: str) -> str | None:
    """Return the location that the latest run of `source` read."""
    read = last_read(session, source)
    return None if read is None else read[0]


def last_read(session: Session, source: str) -> tuple[str, dict[str, Any]] | None:
    """Return location and options of the last read of `source`, or None."""
    read = RunRow.source == source, RunRow.location.is_not(None)
    last = select(RunRow.location, RunRow.options).where(*read).order_by(RunRow.started.desc()).limit(1)
    row = session.execute(last).first()
    return None if row is None else (row.location, row.options)


def known_sources(session: Session) -> list[SourceRead]:
    """Return the last ingest of each source with items or rejects."""
    living = exists().where(ItemRow.source == RunRow.source, ItemRow.deleted.is_(None))
    rejected = exists().where(RejectRow.source == RunRow.source, RejectRow.resolved.is_(None))
    ingests = RunRow.flow == "ingest", RunRow.location.is_not(None), or_(living, rejected)
    latest = (
        select(RunRow.source, RunRow.location, RunRow.options)
        .distinct(RunRow.source)
        .where(*ingests)
        .order_by(RunRow.source, RunRow.started.desc())
    )
    return [SourceRead(source, location, options) for source, location, options in session.execute(latest)]


def failed_runs(session: Session) -> list[Run]:
    """Return unacknowledged failures that are the last of flow and source.

    The newest comes first. Cancelled and refused runs do not count.
    """
    ended = (
        select(RunRow)
        .distinct(RunRow.flow, RunRow.source)
        .where(RunRow.ended.is_not(None), RunRow.outcome.not_in(NO_VERDICT))
        .order_by(RunRow.flow, RunRow.source, RunRow.started.desc())
        .subquery()
    )
    last = aliased(RunRow, ended)
    unseen = last.outcome.in_(FAILURES), last.acknowledged.is_(None)
    failed = select(last).where(*unseen).order_by(last.started.desc(), last.id)
    return [_run(row) for row in session.scalars(failed)]


def acknowledge(session: Session, beginning: str | None = None) -> list[UUID]:
    """Acknowledge failed runs; return the ids of those that were not yet.

    Args:
        beginning: first characters of the id of one run; None acknowledges all.

    Raises:
        NoSuchFailure: no failed run has such an id, or several have.
    """
    failures = RunRow.outcome.in_(FAILURES), _begins(beginning or "")
    if beginning is not None:
        found = list(session.scalars(select(RunRow.id).where(*failures).limit(2)))
        if len(found) != 1:
            several = "several failed runs have" if found else "no failed run has"
            raise NoSuchFailure(
                f"{several} an id that begins with {beginning!r}; `sightline status` lists failures"
            )
    noted = update(RunRow).where(*failures, RunRow.acknowledged.is_(None)).values(acknowledged=func.now())
    return list(session.scalars(noted.returning(RunRow.id)))


def _begins(beginning: str) -> ColumnElement[bool]:
    return cast(RunRow.id, Text).startswith(beginning.lower(), autoescape=True)


def recent_runs(
    session: Session,
    limit: int,
    *,
    flow: str | None = None,
    source: str | None = None,
    outcome: str | None = None,
    before: tuple[datetime, UUID] | None = None,
) -> list[Run]:
    """Return the latest runs, newest first.

    Args:
        flow: only runs of this flow; likewise `source` and `outcome`.
        before: start time and id of a run; only runs that follow it in this order.
    """
    wanted = {RunRow.flow: flow, RunRow.source: source, RunRow.outcome: outcome}
    latest = select(RunRow).where(*(column == value for column, value in wanted.items() if value is not None))
    if before is not None:
        started, id = before
        latest = latest.where(or_(RunRow.started < started, and_(RunRow.started == started, RunRow.id > id)))
    rows = session.scalars(latest.order_by(RunRow.started.desc(), RunRow.id).limit(limit))
    return [_run(row) for row in rows]


def find_run(session: Session, run_id: UUID) -> Run | None:
    """Return one run by its id, or None."""
    row = session.get(RunRow, run_id)
    return None if row is None else _run(row)


def runs_of_prefect(session: Session, prefect_run_ids: Collection[UUID]) -> list[Run]:
    """Return the runs on record of these Prefect runs."""
    own = select(RunRow).where(among(RunRow.prefect_run_id, prefect_run_ids))
    return [_run(row) for row in session.scalars(own)]


def recorded_prefect_runs(session: Session, prefect_run_ids: Collection[UUID]) -> set[UUID]:
    """Return those of the Prefect runs that have a run on record."""
    return set(
        session.scalars(select(RunRow.prefect_run_id).where(among(RunRow.prefect_run_id, prefect_run_ids)))
    )


def flows_and_sources(session: Session) -> tuple[list[str], list[str]]:
    """Return the names of all flows and sources on record, in order."""
    flows = session.scalars(select(RunRow.flow).distinct().order_by(RunRow.flow))
    sources = select(RunRow.source).where(RunRow.source.is_not(None)).distinct().order_by(RunRow.source)
    return list(flows), [name for name in session.scalars(sources) if name is not None]


def running(session: Session) -> list[Run]:
    """Return the runs recorded as running, oldest first."""
    rows = select(RunRow).where(RunRow.outcome == "running").order_by(RunRow.started, RunRow.id)
    return [_run(row) for row in session.scalars(rows)]


def last_runs(session: Session) -> list[Run]:
    """Return the latest run of each flow, by flow name."""
    latest = select(RunRow).distinct(RunRow.flow).order_by(RunRow.flow, RunRow.started.desc(), RunRow.id)
    return [_run(row) for row in session.scalars(latest)]


def last_read_count(session: Session, source: str) -> int:
    """Return the records read by the last completed ingest, or 0."""
    complete = RunRow.source == source, RunRow.flow == "ingest", RunRow.outcome == "completed"
    read = (
        select(RunRow.counts["read"].as_integer()).where(*complete).order_by(RunRow.started.desc()).limit(1)
    )
    return session.scalar(read) or 0


def last_left_out(
    session: Session, *, reason: str | None = None, source: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the ignored files of the last ingest of each source.

    Each has counts by reason and suffix (`kinds`), and the first files by name (`first`).
    """
    wanted = [RunRow.flow == "ingest", RunRow.source.is_not(None), RunRow.counts.has_key("left_out")]
    wanted += [RunRow.source == source] if source is not None else []
    latest = (
        select(RunRow.source, RunRow.counts["left_out"])
        .distinct(RunRow.source)
        .where(*wanted)
        .order_by(RunRow.source, RunRow.started.desc())
    )
    return {
        name: {
            "kinds": {code: kinds for code, kinds in found["kinds"].items() if reason in (None, code)},
            "first": [one for one in found["first"] if reason in (None, one["reason"])],
        }
        for name, found in session.execute(latest)
    }


def last_completed(session: Session, source: str) -> datetime | None:
    """Return the end of the last completed ingest of `source`, or None."""
    complete = RunRow.source == source, RunRow.flow == "ingest", RunRow.outcome == "completed"
    return session.scalar(select(func.max(RunRow.ended)).where(*complete))


def last_ingest(session: Session) -> Run | None:
    """Return the latest ingest that embedded records and measured its speed."""
    measured = RunRow.counts.has_key("speed"), RunRow.counts["embedded"].as_integer() > 0
    latest = select(RunRow).where(*measured).order_by(RunRow.started.desc(), RunRow.id).limit(1)
    row = session.scalar(latest)
    return None if row is None else _run(row)


def _run(row: RunRow) -> Run:
    return Run(
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
        row.prefect_run_id,
        None if row.progress is None else StageProgress.of_json(row.progress),
        row.options,
        row.acknowledged,
    )
