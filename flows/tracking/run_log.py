"""The row of each run in `runs`: opened before its first step, closed after the last one, or the error.

Meanwhile it says how far the run is.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from flows.tracking.progress import Advance
from flows.tracking.retry_policy import Held, is_transient
from flows.tracking.tracing import begin_stage, run_span
from storage.postgres import runs
from storage.postgres.runs import Progress
from storage.redaction import redacted

TOLD_EVERY = timedelta(seconds=1)
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Account:
    """What a run has done, as its row tells it."""

    counts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    outcome: str = "completed"
    """Of a run that came to its end."""

    error: str | None = None
    """Why such a run counts as failed."""


@contextmanager
def recorded(
    sessions: sessionmaker[Session],
    held: Held,
    flow: str,
    *,
    account: Callable[[], Account] = Account,
    run_id: UUID | None = None,
    source: str | None = None,
    location: str | None = None,
    options: dict[str, Any] | None = None,
    prefect_run_id: UUID | None = None,
) -> Iterator[UUID]:
    """Keep a run on record with how long it took, whether or not it gets to its end; yield its id.

    Args:
        held: the lock of `source`, or the one that runs of `flow` have.
        account: called once, at the end.
        options: what was asked for, as far as a later run must ask the same.
    """
    own = uuid4() if run_id is None else run_id
    started = perf_counter()

    def begin() -> None:
        with sessions.begin() as session:
            runs.start_run(
                session,
                own,
                flow,
                source=source,
                location=location,
                options=options,
                prefect_run_id=prefect_run_id,
            )

    def end(done: Account, outcome: str, error: str | None) -> None:
        seconds = done.seconds | {"total": round(perf_counter() - started, 3)}
        note({"outcome": outcome, "counts": done.counts, "seconds": seconds}, error)
        with sessions.begin() as session:
            runs.end_run(session, own, outcome, counts=done.counts, seconds=seconds, error=error)

    with run_span(flow, own, {"source": source}) as note:
        held.persist(begin)
        try:
            yield own
        except BaseException as error:
            try:
                why = redacted(f"{type(error).__name__}: {error}".removesuffix(": "))
                end(account(), "failed", why)
            except DBAPIError as second:
                if not is_transient(second):
                    raise
                log.warning(
                    "the run stays open on record, as Postgres does not answer; the next one closes it"
                )
            raise
        done = account()
        held.persist(partial(end, done, done.outcome, done.error))


class Told:
    """Puts on record how far a run is, at the beginning of each stage and then once a second."""

    def __init__(self, sessions: sessionmaker[Session], held: Held, run_id: UUID) -> None:
        self._sessions, self._held, self._run_id = sessions, held, run_id
        self._last: Progress | None = None

    def __call__(
        self, stage: str, done: int, total: int, *, account: Callable[[], Account] = Account
    ) -> None:
        """Take note of it.

        Args:
            total: 0 where it is not known.
            account: what the run has done so far, where it can tell; called when it is put on record.
        """
        now, last = datetime.now(UTC), self._last
        same = last is not None and last.stage == stage and last.done <= done
        if last is not None and same and now - last.at < TOLD_EVERY:
            return
        since, first = (last.since, last.first) if last is not None and same else (now, done)
        if last is None or last.stage != stage:
            begin_stage(self._run_id, stage)
        self._last = Progress(stage, done, total, since, first, now)
        self._held.persist(partial(self._put, self._last, account()))

    def _put(self, progress: Progress, account: Account) -> None:
        with self._sessions.begin() as session:
            runs.note_progress(
                session,
                self._run_id,
                progress,
                counts=account.counts or None,
                seconds=account.seconds or None,
            )


def told_as_well(advance: Advance, told: Told) -> Advance:
    """Return what tells both whoever started the run and whoever watches it."""

    def tell(stage: str, done: int, total: int) -> None:
        advance(stage, done, total)
        told(stage, done, total)

    return tell
