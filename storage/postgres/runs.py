"""Runs and their rejects in Postgres. Functions take a Session and never commit: the caller does."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from storage.postgres.bulk import among
from storage.postgres.catalog import UNUSABLE
from storage.postgres.schema import ItemRow, RejectRow, RunRow, SeenRow
from storage.records import Rejected, item_id

SENT = "api"
"""The flow of a run whose records came with a request: nobody can read them again."""


class RunClosed(RuntimeError):
    """Another run has closed this one as crashed, and may have written since: this one must stop."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is in the stage that it is in."""

    stage: str
    done: int
    total: int
    """0 where nobody knows."""

    since: datetime
    """When the stage began, as far as its progress was told."""

    first: int
    """How much of it was done by then."""

    at: datetime
    """When this was told."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"since": self.since.isoformat(), "at": self.at.isoformat()}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Progress":
        since, at = (datetime.fromisoformat(told[name]) for name in ("since", "at"))
        return cls(told["stage"], told["done"], told["total"], since, told["first"], at)

    def remaining_s(self, now: datetime) -> float | None:
        """Return in how many seconds the stage ends at the pace it has; None where that cannot be told."""
        gained, took_s = self.done - self.first, (self.at - self.since).total_seconds()
        if gained <= 0 or took_s <= 0 or self.total < self.done:
            return None
        at_the_end = (self.total - self.done) * took_s / gained
        return max(0.0, at_the_end - (now - self.at).total_seconds())


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as `status` shows it."""

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
    progress: Progress | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def took_s(self) -> float | None:
        """From its beginning to its end; None while it goes on."""
        return None if self.ended is None else (self.ended - self.started).total_seconds()


@dataclass(frozen=True, slots=True)
class Read:
    """Where a source was read last, and what was asked for then."""

    source: str
    location: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """One open reject, as `rejects` shows it."""

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
    """Whether the record came over the API, so that only whoever sent it can send it again."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


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
    """Open a run, once; earlier runs of `source`, or without one of `flow`, that never ended are closed.

    The caller holds the source's lock, or the one that runs of `flow` have, so that a run that says it is
    running cannot be.
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
    """Close runs that a copy took along as running: where it is now, none of them runs.

    Args:
        but: the run that goes on here.
    """
    running = RunRow.outcome == "running", RunRow.id.is_distinct_from(but)
    session.execute(update(RunRow).where(*running).values(outcome="crashed", ended=func.now()))


def close_failed(session: Session, flow: str, prefect_run_id: UUID, outcome: str, error: str) -> None:
    """Close what a Prefect run has left open; one that has no failed run on record gets a row that says so.

    Args:
        outcome: `failed`, or `crashed` where its process is gone.
    """
    own = RunRow.prefect_run_id == prefect_run_id
    ended = {"outcome": outcome, "ended": func.now(), "error": error}
    closed = update(RunRow).where(own, RunRow.outcome == "running").values(ended).returning(RunRow.id)
    ids = list(session.scalars(closed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))
    if session.scalar(select(exists().where(own, RunRow.outcome.in_(("failed", "crashed"))))):
        return
    about = {"id": uuid4(), "flow": flow, "prefect_run_id": prefect_run_id, "counts": {}, "seconds": {}}
    session.execute(insert(RunRow).values(about | ended))


def close_cancelled(session: Session, prefect_run_id: UUID, why: str) -> None:
    """Have what a Prefect run has left open, or failed to end, say that a person cancelled it."""
    left = RunRow.prefect_run_id == prefect_run_id, RunRow.outcome.in_(("running", "failed"))
    ended = {"outcome": "cancelled", "ended": func.coalesce(RunRow.ended, func.now()), "error": why}
    closed = update(RunRow).where(*left).values(ended).returning(RunRow.id)
    ids = list(session.scalars(closed))
    session.execute(delete(SeenRow).where(SeenRow.run_id.in_(ids)))


def require_running(session: Session, run_id: UUID) -> None:
    """Make sure, for as long as the transaction lasts, that this run is the one that may write.

    Raises:
        RunClosed: it lost its lock, and another run of the same source began.
    """
    outcome = session.scalar(select(RunRow.outcome).where(RunRow.id == run_id).with_for_update(read=True))
    if outcome != "running":
        raise RunClosed(
            "this run lost its connection to Postgres, and another run of the same source has begun; "
            "what this one has not done, that one does"
        )


def note_progress(
    session: Session,
    run_id: UUID,
    progress: Progress,
    *,
    counts: dict[str, Any] | None = None,
    seconds: dict[str, Any] | None = None,
) -> None:
    """Put on record how far a run is, for whoever watches it; a run that has ended stays as it is.

    Args:
        counts: what it has done so far, where it can tell.
        seconds: where the time went so far.
    """
    told = {"progress": progress.as_json(), "counts": counts, "seconds": seconds}
    known = {name: value for name, value in told.items() if value is not None}
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
    """Close a run, and drop its claims."""
    session.execute(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(outcome=outcome, ended=func.now(), counts=counts, seconds=seconds, error=error, progress=None)
    )
    session.execute(delete(SeenRow).where(SeenRow.run_id == run_id))


def last_location(session: Session, source: str) -> str | None:
    """Return where the latest run of `source` read it."""
    read = last_read(session, source)
    return None if read is None else read[0]


def last_read(session: Session, source: str) -> tuple[str, dict[str, Any]] | None:
    """Return where `source` was read last, and what was asked for then; None if it never was."""
    read = RunRow.source == source, RunRow.location.is_not(None)
    last = select(RunRow.location, RunRow.options).where(*read).order_by(RunRow.started.desc()).limit(1)
    row = session.execute(last).first()
    return None if row is None else (row.location, row.options)


def known_sources(session: Session) -> list[Read]:
    """Return where each source was last ingested from, by name; without those of which nothing is left."""
    living = exists().where(ItemRow.source == RunRow.source, ItemRow.deleted.is_(None))
    rejected = exists().where(RejectRow.source == RunRow.source, RejectRow.resolved.is_(None))
    ingests = RunRow.flow == "ingest", RunRow.location.is_not(None), or_(living, rejected)
    latest = (
        select(RunRow.source, RunRow.location, RunRow.options)
        .distinct(RunRow.source)
        .where(*ingests)
        .order_by(RunRow.source, RunRow.started.desc())
    )
    return [Read(source, location, options) for source, location, options in session.execute(latest)]


def failed_runs(session: Session) -> list[Run]:
    """Return the last run that ended of each flow and each of its sources, if that failed; newest first.

    One that a person cancelled says nothing of either.
    """
    ended = (
        select(RunRow)
        .distinct(RunRow.flow, RunRow.source)
        .where(RunRow.ended.is_not(None), RunRow.outcome != "cancelled")
        .order_by(RunRow.flow, RunRow.source, RunRow.started.desc())
        .subquery()
    )
    last = aliased(RunRow, ended)
    failed = select(last).where(last.outcome != "completed").order_by(last.started.desc(), last.id)
    return [_run(row) for row in session.scalars(failed)]


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
        before: only runs that come after the one that started then and has this id, in this order.
    """
    wanted = {RunRow.flow: flow, RunRow.source: source, RunRow.outcome: outcome}
    latest = select(RunRow).where(*(column == value for column, value in wanted.items() if value is not None))
    if before is not None:
        started, id = before
        latest = latest.where(or_(RunRow.started < started, and_(RunRow.started == started, RunRow.id > id)))
    rows = session.scalars(latest.order_by(RunRow.started.desc(), RunRow.id).limit(limit))
    return [_run(row) for row in rows]


def run_of(session: Session, run_id: UUID) -> Run | None:
    """Return one run, or None where there is none of that id."""
    row = session.get(RunRow, run_id)
    return None if row is None else _run(row)


def on_record(session: Session, prefect_run_ids: Collection[UUID]) -> set[UUID]:
    """Return those of these runs of Prefect that have put a run of ours on record."""
    return set(
        session.scalars(select(RunRow.prefect_run_id).where(among(RunRow.prefect_run_id, prefect_run_ids)))
    )


def flows_and_sources(session: Session) -> tuple[list[str], list[str]]:
    """Return the names of all flows that have ever run, and of all sources, in order."""
    flows = session.scalars(select(RunRow.flow).distinct().order_by(RunRow.flow))
    sources = select(RunRow.source).where(RunRow.source.is_not(None)).distinct().order_by(RunRow.source)
    return list(flows), [name for name in session.scalars(sources) if name is not None]


def running(session: Session) -> list[Run]:
    """Return the runs that say they go on, oldest first."""
    rows = select(RunRow).where(RunRow.outcome == "running").order_by(RunRow.started, RunRow.id)
    return [_run(row) for row in session.scalars(rows)]


def last_runs(session: Session) -> list[Run]:
    """Return the latest run of each flow, by name of the flow."""
    latest = select(RunRow).distinct(RunRow.flow).order_by(RunRow.flow, RunRow.started.desc(), RunRow.id)
    return [_run(row) for row in session.scalars(latest)]


def last_read_count(session: Session, source: str) -> int:
    """Return how many records the last complete ingest of `source` read; 0 if there was none."""
    complete = RunRow.source == source, RunRow.flow == "ingest", RunRow.outcome == "completed"
    read = (
        select(RunRow.counts["read"].as_integer()).where(*complete).order_by(RunRow.started.desc()).limit(1)
    )
    return session.scalar(read) or 0


def last_completed(session: Session, source: str) -> datetime | None:
    """Return when the last ingest of `source` that came to its end ended; None if none ever did."""
    complete = RunRow.source == source, RunRow.flow == "ingest", RunRow.outcome == "completed"
    return session.scalar(select(func.max(RunRow.ended)).where(*complete))


def last_ingest(session: Session) -> Run | None:
    """Return the latest ingest that has embedded something and tells how fast it was."""
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
        None if row.progress is None else Progress.of_json(row.progress),
        row.options,
    )


def save_rejects(session: Session, run_id: UUID, source: str, rejects: Sequence[Rejected]) -> None:
    """Put rows on record that could not be taken in; a row that failed before keeps its entry.

    A record is known again by its place, and by its key where it has moved since the earlier run.
    """
    if not rejects:
        return
    kept = "place", "key", "reason", "message", "raw"
    rows = [
        {"id": item_id(source, reject.place), "source": source, "run_id": run_id}
        | {name: getattr(reject, name) for name in kept}
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
    """Close the rejects of `source` that this run, which tried all of them, did not meet again.

    Those of records that came over the API stay: no run can read them.

    Args:
        places: only those at these places were tried.
        whole: whether all of the source was read and understood; else a row that was not met may still
            stand there, and only those rejects are closed whose row was ingested.
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
    """Whether the run has claimed the row of a reject: at its place, or by its key where that is its own."""
    claims = select(SeenRow.item_id).join(ItemRow, ItemRow.id == SeenRow.item_id)
    claims = claims.where(
        SeenRow.run_id == run_id, SeenRow.place != UNUSABLE, ItemRow.source == RejectRow.source
    )
    here = claims.where(SeenRow.place == RejectRow.place)
    same_key = ItemRow.key == RejectRow.key
    moved = claims.where(same_key, RejectRow.reason != "duplicate_key")
    return or_(and_(RejectRow.key.is_(None), here.exists()), here.where(same_key).exists(), moved.exists())


def resolve_sent(session: Session, run_id: UUID, source: str, keys: Sequence[str]) -> None:
    """Close the rejects of records with `keys` that came over the API earlier: this run has tried them."""
    tried = RejectRow.source == source, among(RejectRow.key, keys), RejectRow.run_id != run_id
    still_open = _was_sent(), RejectRow.resolved.is_(None)
    session.execute(update(RejectRow).where(*tried, *still_open).values(resolved=func.now()))


def rejects_of(session: Session, run_id: UUID) -> list[dict[str, Any]]:
    """Return what a run, the last one to meet it, could not take in: key, reason and message, by place."""
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
        after: only those that come after this source and place.
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
    """Remove what is on record of the rows of these sources and keys; return how many there were."""
    pairs = tuple_(RejectRow.source, RejectRow.key).in_(items)
    return len(session.execute(delete(RejectRow).where(pairs).returning(RejectRow.id)).all())


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
