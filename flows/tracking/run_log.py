"""Record each run and its progress in the table `runs`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from flows.tracking.progress import Progress, no_progress
from flows.tracking.retry_policy import HeldLock, hold, is_transient
from flows.tracking.signals import StopRequested, Terminated
from flows.tracking.tracing import begin_stage, run_span
from storage.errors import SightlineError
from storage.postgres import runs
from storage.postgres.locks import Lock
from storage.redaction import redacted

RECORD_EVERY = timedelta(seconds=1)
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Totals(NamedTuple):
    """Counts and stage durations of a run."""

    counts: dict[str, Any]
    seconds: dict[str, Any]


@dataclass(slots=True)
class TrackedRun:
    """Represent a run with an open row in `runs`."""

    id: UUID
    lock: HeldLock
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    """Duration of each stage, in seconds."""

    error: str | None = None
    """Reason why a run that reaches its end counts as failed."""

    _sessions: sessionmaker[Session] = field(kw_only=True)
    _report: Progress = field(kw_only=True)
    _totals: Callable[[], Totals] | None = field(kw_only=True)
    _last: runs.StageProgress | None = field(default=None, init=False)

    def persist(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, with retries under the lock; see `HeldLock.persist`."""
        return self.lock.persist(work)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Record progress, at most once a second and stage.

        Every report is passed on to the caller's `Progress`.

        Args:
            stage: a new name begins a new span.
            done: steps completed.
            total: 0 where it is unknown.
        """
        self._report(stage, done, total)
        now, last = datetime.now(UTC), self._last
        same = last is not None and last.stage == stage and last.done <= done
        if last is not None and same and now - last.at < RECORD_EVERY:
            return
        since, first = (last.since, last.first) if last is not None and same else (now, done)
        if last is None or last.stage != stage:
            begin_stage(self.id, stage)
        self._last = runs.StageProgress(stage, done, total, since, first, now)
        self.persist(partial(self._record, self._last, self.totals()))

    def totals(self) -> Totals:
        """Return the current counts and durations."""
        return Totals(self.counts, self.seconds) if self._totals is None else self._totals()

    def _record(self, progress: runs.StageProgress, totals: Totals) -> None:
        with self._sessions.begin() as session:
            runs.save_progress(
                session,
                self.id,
                progress,
                counts=totals.counts or None,
                seconds=totals.seconds or None,
            )


def outcome_of(error: BaseException) -> str:
    """Return the outcome of a run that an exception ends.

    >>> outcome_of(KeyboardInterrupt()), outcome_of(RuntimeError())
    ('cancelled', 'failed')
    """
    if isinstance(error, KeyboardInterrupt | StopRequested | Terminated):
        return "cancelled"
    return "refused" if isinstance(error, SightlineError) and error.refusal else "failed"


def reason_of(error: BaseException) -> str:
    """Return why a run ended, for its record."""
    if isinstance(error, Terminated):
        return "Terminated: a signal ended its process"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


@contextmanager
def tracked_run(
    sessions: sessionmaker[Session],
    lock: Lock | HeldLock,
    flow: str,
    *,
    for_s: float = 0,
    run_id: UUID | None = None,
    source: str | None = None,
    location: str | None = None,
    options: dict[str, Any] | None = None,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
    totals: Callable[[], Totals] | None = None,
) -> Iterator[TrackedRun]:
    """Hold a lock and record a run, whether it completes or fails.

    Args:
        lock: is taken for the run and released after it; one that is held already stays held.
        for_s: how long the work under `lock` is retried while a store does not answer.
        options: parameters that a later run must repeat.
        progress: receives every report as well.
        totals: computes counts and durations each time the row is written; default: those of the run.

    Raises:
        Busy: another process holds the lock.
    """
    own: AbstractContextManager[HeldLock] = (
        hold(lock, for_s=for_s) if isinstance(lock, Lock) else nullcontext(lock)
    )
    started = perf_counter()
    with own as held:
        run = TrackedRun(run_id or uuid4(), held, _sessions=sessions, _report=progress, _totals=totals)

        def begin() -> None:
            with sessions.begin() as session:
                runs.start_run(
                    session,
                    run.id,
                    flow,
                    source=source,
                    location=location,
                    options=options,
                    prefect_run_id=prefect_run_id,
                )

        def end(done: Totals, outcome: str, error: str | None) -> None:
            seconds = done.seconds | {"total": round(perf_counter() - started, 3)}
            note({"outcome": outcome, "counts": done.counts, "seconds": seconds}, error)
            with sessions.begin() as session:
                runs.end_run(session, run.id, outcome, counts=done.counts, seconds=seconds, error=error)

        with run_span(flow, run.id, {"source": source}) as note:
            run.persist(begin)
            try:
                yield run
            except BaseException as error:
                try:
                    end(run.totals(), outcome_of(error), redacted(reason_of(error)))
                except DBAPIError as second:
                    if not is_transient(second):
                        raise
                    log.warning(
                        "the run stays open on record, as Postgres does not answer; the next one closes it"
                    )
                raise
            outcome = "completed" if run.error is None else "failed"
            run.persist(partial(end, run.totals(), outcome, run.error))
