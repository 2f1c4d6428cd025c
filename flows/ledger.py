"""The row of each run in `runs`: opened before its first step, closed after the last one, or the error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from flows.retries import Held, is_transient
from storage import runs

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
        with sessions.begin() as session:
            runs.end_run(session, own, outcome, counts=done.counts, seconds=seconds, error=error)

    held.persist(begin)
    try:
        yield own
    except BaseException as error:
        try:
            end(account(), "failed", f"{type(error).__name__}: {error}".removesuffix(": "))
        except DBAPIError as second:
            if not is_transient(second):
                raise
            log.warning("the run stays open on record, as Postgres does not answer; the next one closes it")
        raise
    done = account()
    held.persist(partial(end, done, done.outcome, done.error))
