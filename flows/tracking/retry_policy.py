"""The one place that tries again: when a store did not answer, never when a record is wrong."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from storage.postgres.locks import Lock

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15
OVERLOADED = (429, 502, 503, 504)

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def persist(work: Callable[[], Result], *, for_s: float) -> Result:
    """Return what `work` returns; while a store does not answer, try again with growing pauses.

    Args:
        work: safe to repeat.
        for_s: no attempt begins later than so many seconds after the first; the last error is raised then.
    """
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_before_delay(for_s),
        wait=wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=FIRST_PAUSE_S),
        before_sleep=_tell,
        reraise=True,
    )
    return attempts(work)


@contextmanager
def held(lock: Lock, *, for_s: float) -> "Iterator[Held]":
    """Take `lock`, and give it back in the end; work under it is tried again for `for_s` seconds.

    Raises:
        Busy: another process holds it.
    """
    try:
        persist(lock.keep, for_s=for_s)
        yield Held(lock, for_s)
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that is held, and how long a store that does not answer is asked again under it."""

    lock: Lock
    for_s: float

    def persist(self, work: Callable[[], Result]) -> Result:
        """Return what `work`, which is safe to repeat, returns; each attempt makes sure of the lock first.

        Raises:
            Busy: the lock was lost with its connection, and another process holds it now.
        """
        return persist(partial(self._attempt, work), for_s=self.for_s)

    def _attempt(self, work: Callable[[], Result]) -> Result:
        self.lock.keep()
        return work()


def is_transient(error: BaseException) -> bool:
    """Whether a store could not be reached, or had too much to do."""
    match error:
        case OperationalError() | ResponseHandlingException():
            return True
        case DBAPIError():
            return error.connection_invalidated
        case UnexpectedResponse():
            return error.status_code in OVERLOADED
    return False


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0
    log.warning("a store did not answer (%s); trying again in %.1f s", first_line(error), pause)


def first_line(error: BaseException | None) -> str:
    """Return what `error` says, on one line."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return (str(origin).strip().splitlines() or [type(origin).__name__])[0]
