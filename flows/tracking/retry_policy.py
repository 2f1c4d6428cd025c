"""Retry store requests that went unanswered, with exponential backoff."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from storage.fault_evidence import demanded_wait_s
from storage.faults import find_fault
from storage.postgres.locks import Lock

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15
LONGEST_DEMANDED_S = 300
"""A server that demands a longer pause is not waited for."""

DEMANDS = 2
"""Pauses that a server may demand of one piece of work, even beyond the retry time."""

BACKOFF = wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=FIRST_PAUSE_S)

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def persist(work: Callable[[], Result], *, for_s: float) -> Result:
    """Run `work`, with exponential backoff while a store is unavailable.

    Args:
        work: safe to repeat.
        for_s: no attempt begins later than so many seconds after the first; the last error is raised then.
            Where the server names a time itself, that time is waited, at least twice; 0 never waits.
    """
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        stop=partial(_is_over, for_s),
        wait=_pause,
        before_sleep=_log_retry,
        reraise=True,
    )
    return attempts(work)


@contextmanager
def hold(lock: Lock, *, for_s: float) -> "Iterator[HeldLock]":
    """Hold a lock, and retry the work under it.

    Args:
        for_s: how long work is retried while a store does not answer.

    Raises:
        Busy: another process holds it.
    """
    try:
        persist(lock.ensure, for_s=for_s)
        yield HeldLock(lock, for_s)
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class HeldLock:
    """Represent a lock in use, with its retry time."""

    lock: Lock
    for_s: float

    def persist(self, work: Callable[[], Result]) -> Result:
        """Run `work`, which is safe to repeat, with retries under the lock.

        Raises:
            Busy: the lock was lost with its connection, and another process holds it now.
        """
        return persist(partial(self._attempt, work), for_s=self.for_s)

    def _attempt(self, work: Callable[[], Result]) -> Result:
        self.lock.ensure()
        return work()


def is_transient(error: BaseException) -> bool:
    """Return whether a failure passes; `storage.faults` lists which do."""
    fault = find_fault(error)
    return fault is not None and fault.passes


def _pause(state: RetryCallState) -> float:
    """Return the pause that the server demands, or that of the backoff."""
    demanded = _demanded_s(state)
    return BACKOFF(state) if demanded is None else demanded + FIRST_PAUSE_S / 2


def _is_over(for_s: float, state: RetryCallState) -> bool:
    demanded = _demanded_s(state)
    allowed = for_s
    if demanded is not None and for_s > 0:
        if demanded > LONGEST_DEMANDED_S:
            return True
        allowed = max(for_s, DEMANDS * (demanded + FIRST_PAUSE_S) + FIRST_PAUSE_S)
    return (state.seconds_since_start or 0) + state.upcoming_sleep >= allowed


def _demanded_s(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return None if error is None else demanded_wait_s(error)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0
    log.warning("a store did not answer (%s); retrying in %.1f s", first_line(error), pause)


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return (str(origin).strip().splitlines() or [type(origin).__name__])[0]
