"""Compute figures for monitoring, with one statement each."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Date, Float, and_, cast, func, literal, select
from sqlalchemy.orm import Session

from storage.postgres.runs import SENT
from storage.postgres.schema import EvaluationRow, ItemRow, MarkRow, RejectRow, RunRow

INGESTS = ("ingest", "retry", SENT)
HEADLINE = "recall@10"
ONE_FIGURE = (
    EvaluationRow.dataset,
    EvaluationRow.lang,
    EvaluationRow.direction,
    EvaluationRow.model,
    EvaluationRow.metric,
)
"""Columns that identify a figure, whenever it was measured."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Count the records, and how many of them are searchable."""

    items: int
    """Living ones."""

    pending: int
    """Living ones without a current point."""

    deleted: int
    waiting_since: datetime | None
    """When the oldest pending record was written; None without one."""

    newest_waiting: datetime | None
    """When the newest pending record was written."""

    @property
    def searchable(self) -> int:
        return self.items - self.pending

    def age_s(self, now: datetime) -> float:
        """Return the age of the oldest pending record in seconds, or 0."""
        return 0.0 if self.waiting_since is None else max(0.0, (now - self.waiting_since).total_seconds())


@dataclass(frozen=True, slots=True)
class RejectCount:
    """Count the open rejects of one source and reason."""

    source: str
    reason: str
    many: int


@dataclass(frozen=True, slots=True)
class Day:
    """Summarise the ingests and the search quality of one day (UTC)."""

    day: date
    read: int = 0
    rejected: int = 0
    seconds: float = 0.0
    """Total duration of its ingests."""

    recall: float | None = None
    """Recall@10 of the last evaluation of that day, averaged over directions."""

    @property
    def records_a_second(self) -> float | None:
        return self.read / self.seconds if self.seconds else None


@dataclass(frozen=True, slots=True)
class EvaluationFigure:
    """Store one figure of an evaluation, over all its queries."""

    model: str
    """Its fingerprint."""

    collection: str | None
    at: datetime
    dataset: str
    direction: str
    metric: str
    value: float
    low: float | None
    high: float | None
    queries: int
    gallery: int
    langs: str | None = None
    """The requested languages of the captions; None for the embedded ones."""


def figures(session: Session, collection: str | None) -> Figures:
    """Count all records, and those without a current point.

    Args:
        collection: the active one; None before the first ingest.
    """
    shown = and_(
        MarkRow.item_id == ItemRow.id,
        MarkRow.collection == collection,
        MarkRow.content_hash == ItemRow.content_hash,
        MarkRow.record_hash == ItemRow.record_hash,
    )
    living = ItemRow.deleted.is_(None)
    waits = and_(living, MarkRow.item_id.is_(None))
    row = session.execute(
        select(
            func.count().filter(living),
            func.count().filter(waits),
            func.count().filter(~living),
            func.min(ItemRow.updated).filter(waits),
            func.max(ItemRow.updated).filter(waits),
        )
        .select_from(ItemRow)
        .outerjoin(MarkRow, shown)
    ).one()
    return Figures(*row)


def count_rejects(session: Session) -> list[RejectCount]:
    """Count the open rejects by reason and source, most frequent first."""
    many = func.count()
    statement = (
        select(RejectRow.source, RejectRow.reason, many)
        .where(RejectRow.resolved.is_(None))
        .group_by(RejectRow.source, RejectRow.reason)
        .order_by(many.desc(), RejectRow.reason, RejectRow.source)
    )
    return [RejectCount(*row) for row in session.execute(statement).tuples()]


def days(session: Session, now: datetime, many: int) -> list[Day]:
    """Summarise the last `many` days, today last, idle ones included."""
    today = now.date()
    first = today - timedelta(days=many - 1)
    own_day = cast(func.timezone("UTC", RunRow.started), Date)
    seconds = func.coalesce(func.sum(cast(RunRow.seconds["total"].astext, Float)), 0.0)
    ingests = (
        select(own_day, _sum("read"), _sum("rejected"), seconds)
        # of a scheduled run each source has a row of its own
        .where(RunRow.started >= _midnight(first), RunRow.flow.in_(INGESTS), RunRow.source.is_not(None))
        .group_by(own_day)
    )
    recalls = _recalls(session, first)
    done = {
        day: Day(day, read, rejected, took, recalls.get(day))
        for day, read, rejected, took in session.execute(ingests).tuples()
    }
    every = (first + timedelta(days=number) for number in range(many))
    return [done.get(day, Day(day, recall=recalls.get(day))) for day in every]


def last_evaluation(session: Session, collection: str | None) -> list[EvaluationFigure]:
    """Return the figures of the last evaluation, by direction and metric."""
    own = EvaluationRow.collection == collection, EvaluationRow.part.is_(None)
    last = select(func.max(EvaluationRow.at)).where(*own).scalar_subquery()
    rows = session.scalars(
        select(EvaluationRow)
        .where(*own, EvaluationRow.at == last)
        .order_by(EvaluationRow.direction, EvaluationRow.metric, EvaluationRow.id)
    )
    return [_measured(row) for row in rows]


def last_evaluations(session: Session) -> list[EvaluationFigure]:
    """Return the last figures of each model on each data set.

    They are sorted by data set, direction, model and metric.
    """
    rows = session.scalars(
        select(EvaluationRow)
        .distinct(*ONE_FIGURE)
        .where(EvaluationRow.part.is_(None))
        .order_by(*ONE_FIGURE, EvaluationRow.at.desc(), EvaluationRow.id.desc())
    )
    return [_measured(row) for row in rows]


def _measured(row: EvaluationRow) -> EvaluationFigure:
    return EvaluationFigure(
        row.model,
        row.collection,
        row.at,
        row.dataset,
        row.direction,
        row.metric,
        row.value,
        row.low,
        row.high,
        row.queries,
        row.gallery,
        row.lang,
    )


def _recalls(session: Session, first: date) -> dict[date, float]:
    """Return the recall of each day's last evaluation, averaged over directions."""
    day = cast(func.timezone("UTC", EvaluationRow.at), Date).label("day")
    mean = func.avg(EvaluationRow.value).label("mean")
    each = (
        select(day, EvaluationRow.at, mean)
        .where(
            EvaluationRow.at >= _midnight(first),
            EvaluationRow.metric == HEADLINE,
            EvaluationRow.part.is_(None),
            EvaluationRow.collection.is_not(None),
        )
        .group_by(day, EvaluationRow.at)
        .subquery()
    )
    last = select(each.c.day, each.c.mean).distinct(each.c.day).order_by(each.c.day, each.c.at.desc())
    return dict(session.execute(last).tuples().all())


def _midnight(day: date) -> Any:
    return func.timezone("UTC", literal(datetime(day.year, day.month, day.day)))  # noqa: DTZ001 (Postgres adds UTC)


def _sum(count: str) -> Any:
    return func.coalesce(func.sum(RunRow.counts[count].as_integer()), 0)
