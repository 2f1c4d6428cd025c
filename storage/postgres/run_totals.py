"""Aggregate the runs on record: monotonic counters and last results."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Float, Integer, cast, func, or_, select
from sqlalchemy.orm import Session

from storage.postgres.runs import Run, last_ingest
from storage.postgres.schema import RunRow
from storage.postgres.statistics import INGESTS

RESULTS = ("unchanged", "embedded", "updated", "rejected", "still_deleted")
"""Results of an ingested record; each record has exactly one."""

COMPARISON = "reconcile"
STILL = "still"
"""Key of the differences that remain after a repair; the other counts are of before."""


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """Count the runs of a flow with one outcome."""

    flow: str
    outcome: str
    many: int
    last_ended: datetime | None


@dataclass(frozen=True, slots=True)
class IngestTotals:
    """Count the results of all ingests, current ones included."""

    results: Mapping[str, int]
    """By `RESULTS`."""

    deleted: int
    """By ingests and by deletes."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Store the result of the last comparison or repair."""

    at: datetime
    differences: Mapping[str, int]
    """Counts by kind; absent means 0."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Store all aggregates of the runs on record."""

    outcomes: tuple[OutcomeCount, ...]
    took_s: Mapping[str, float]
    """Duration of the last ended run, by flow."""

    ingest_totals: IngestTotals
    stage_seconds: Mapping[str, float]
    """Work time of all ingests, by stage."""

    last_ingest: Run | None
    """The last ingest that embedded records."""

    comparison: Comparison | None


def totals(session: Session) -> Totals:
    """Aggregate the runs on record, one statement per figure."""
    return Totals(
        tuple(outcomes(session)),
        took_s(session),
        ingest_totals(session),
        stage_seconds(session),
        last_ingest(session),
        last_comparison(session),
    )


def outcomes(session: Session) -> list[OutcomeCount]:
    """Count the runs by flow and outcome, with their last end."""
    each = RunRow.flow, RunRow.outcome
    statement = select(*each, func.count(), func.max(RunRow.ended)).group_by(*each).order_by(*each)
    return [OutcomeCount(*row) for row in session.execute(statement).tuples()]


def took_s(session: Session) -> dict[str, float]:
    """Return the duration of the last ended run of each flow."""
    seconds = cast(RunRow.seconds["total"].astext, Float)
    last = (
        select(RunRow.flow, seconds)
        .distinct(RunRow.flow)
        .where(RunRow.ended.is_not(None), seconds.is_not(None))
        .order_by(RunRow.flow, RunRow.started.desc())
    )
    return dict(session.execute(last).tuples().all())


def ingest_totals(session: Session) -> IngestTotals:
    """Sum the results over all runs of single sources.

    A run over several sources has a row for each of them besides its own.
    """
    ingests = RunRow.flow.in_(INGESTS)
    sums = [
        func.coalesce(func.sum(cast(RunRow.counts[name].astext, Integer)).filter(ingests), 0)
        for name in RESULTS
    ]
    deleted = func.coalesce(func.sum(cast(RunRow.counts["deleted"].astext, Integer)), 0)
    row = session.execute(
        select(*sums, deleted).where(RunRow.flow.in_((*INGESTS, "delete")), RunRow.source.is_not(None))
    ).one()
    return IngestTotals(dict(zip(RESULTS, row[:-1], strict=True)), row[-1])


def stage_seconds(session: Session) -> dict[str, float]:
    """Return the total work time of each ingest stage."""
    stage = func.jsonb_each_text(RunRow.seconds).table_valued("key", "value").lateral("stage")
    statement = (
        select(stage.c.key, func.sum(cast(stage.c.value, Float)))
        .select_from(RunRow)
        .join(stage, stage.c.key != "total")
        .where(RunRow.flow.in_(INGESTS), RunRow.source.is_not(None))
        .group_by(stage.c.key)
        .order_by(stage.c.key)
    )
    return dict(session.execute(statement).tuples().all())


def last_comparison(session: Session) -> Comparison | None:
    """Return the result of the last finished comparison, or None."""
    compared = or_(RunRow.outcome == "completed", RunRow.counts != {})
    last = (
        select(RunRow.ended, RunRow.counts)
        .where(RunRow.flow == COMPARISON, RunRow.ended.is_not(None), compared)
        .order_by(RunRow.started.desc(), RunRow.id)
        .limit(1)
    )
    row = session.execute(last).first()
    return None if row is None else Comparison(row.ended, row.counts.get(STILL, row.counts))
