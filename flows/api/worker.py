"""Carry out queued API requests in order, one process at a time.

Requests about one source never overtake each other. One that has to wait, for another run that writes its
source or for a store that is unavailable, stays in the queue; others go on.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import UUID

from qdrant_client.http.exceptions import UnexpectedResponse
from sqlalchemy.orm import Session

from flows.api.request_models import DeleteRequest, IngestRequest
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import COUNTS
from flows.ingestion.request import Request
from flows.maintenance.delete import NoSuchItem, TooManyItems, delete_items, require_few
from flows.service.pool import Backend
from flows.tracking.errors import explain, is_own
from flows.tracking.retry_policy import persist
from storage.errors import StoreUnavailable
from storage.postgres import request_queue
from storage.postgres.locks import Busy, UnstableSession, flow_lock
from storage.postgres.rejects import rejects_of_run
from storage.postgres.request_queue import ActiveRequest, PendingRequest

POLL_S = 0.5
LATER_S = 5.0
"""Pause before a request that has to wait is tried again."""

STOP_S = 30
BAD_REQUEST = 400
MOST_ATTEMPTS = 5
"""A request during which the process ends is not begun more often."""

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Represent the effects of a carried out request."""

    counts: Mapping[str, Any]
    rejects: Sequence[Mapping[str, Any]] = ()
    run_id: UUID | None = None


@dataclass(slots=True)
class BlockedSources:
    """Track the sources blocked by an earlier waiting request."""

    sources: set[str] = field(default_factory=set)
    all: bool = False

    def has(self, waiting: PendingRequest) -> bool:
        return self.all or waiting.source in self.sources or (waiting.source is None and bool(self.sources))

    def add(self, waiting: PendingRequest) -> None:
        if waiting.source is None:
            self.all = True
        else:
            self.sources.add(waiting.source)


@contextmanager
def queue_worker(backend: Backend) -> Iterator[None]:
    """Carry out accepted requests in a thread while this is open.

    The next process resumes the rest. At the end it waits up to `STOP_S` for the request in progress. One
    that takes longer is begun again later, as after a crash.
    """
    ended = Event()
    thread = Thread(target=_keep_draining, args=(backend, ended), name="queue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(STOP_S)
        if thread.is_alive():
            log.warning("a request is still being carried out; it is begun again at the next start")


def _keep_draining(backend: Backend, ended: Event) -> None:
    pause_s = 0.0
    while not ended.wait(pause_s):
        try:
            pause_s = LATER_S if drain(backend, ended) else POLL_S
        except (Busy, StoreUnavailable) as error:
            log.debug("the queue waits: %s", error)
            pause_s = LATER_S
        except UnstableSession as error:
            log.error("the queue waits: %s", error)
            pause_s = LATER_S
        except Exception:
            log.exception("the queue waits: a bug")  # the end of this thread would go unnoticed
            pause_s = LATER_S


def drain(backend: Backend, ended: Event | None = None) -> int:
    """Carry out queued requests; return how many have to wait.

    Args:
        ended: once it is set, no further request is begun.

    Raises:
        Busy: another process drains the queue.
        UnstableSession: a pooler before Postgres makes locks void.
        StoreUnavailable: a store is unavailable.
    """
    with backend.sessions() as sessions, sessions() as session:
        if not request_queue.pending(session):
            return 0
    with backend.stores() as stores, flow_lock(stores.engine, "queue") as lock:
        while True:
            with stores.sessions() as session:
                found = request_queue.pending(session)
            blocked, left = BlockedSources(), 0
            for waiting in found:
                if ended is not None and ended.is_set():
                    return len(found)
                lock.ensure()
                if blocked.has(waiting) or not _carry_out(backend, waiting):
                    blocked.add(waiting)
                    left += 1
            if left == len(found):
                return left


def _carry_out(backend: Backend, waiting: PendingRequest) -> bool:
    """Begin a request; return whether it has ended."""
    taken = _in_transaction(backend, partial(request_queue.begin, id=waiting.id))
    if taken is None:
        return True
    if taken.attempts > MOST_ATTEMPTS:
        why = f"it was begun {MOST_ATTEMPTS} times, and each time the process ended; see the server's log"
        _in_transaction(backend, partial(request_queue.fail, id=taken.id, problem=why))
        return True
    try:
        done = _ingest(backend, taken) if taken.kind == "ingest" else _delete(backend, taken)
    except (NoSuchItem, TooManyItems) as error:
        _in_transaction(backend, partial(request_queue.fail, id=taken.id, problem=str(error)))
        return True
    except Exception as error:
        if is_retryable(error):
            _in_transaction(backend, partial(request_queue.requeue, taken=taken, problem=explain(error)))
            return False
        log.exception("request %s failed by a bug", taken.id)  # and the queue must go on
        return _after_a_bug(backend, taken, error)
    finish = partial(request_queue.finish, counts=done.counts, rejects=done.rejects, run_id=done.run_id)
    _in_transaction(backend, partial(finish, id=taken.id))
    return True


def is_retryable(error: Exception) -> bool:
    """Return whether the environment caused the error, not the request."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code != BAD_REQUEST  # Qdrant needs another key, for example
    return isinstance(error, OSError) or (is_own(error) and error.retryable)


def _after_a_bug(backend: Backend, taken: ActiveRequest, error: Exception) -> bool:
    why = explain(error)
    if taken.attempts >= MOST_ATTEMPTS:
        _in_transaction(backend, partial(request_queue.fail, id=taken.id, problem=why))
        return True
    back = partial(request_queue.requeue, taken=taken, problem=why, is_its_fault=True)
    _in_transaction(backend, back)
    return False


def _ingest(backend: Backend, taken: ActiveRequest) -> Outcome:
    request = IngestRequest.model_validate_json(taken.body)
    rows = tuple(record.as_row() for record in request.records)
    # starting decoding processes takes longer than decoding the images of one request
    settings = backend.settings.model_copy(update={"decode_workers": 0})
    with backend.writing() as deps:
        report = ingest_source(
            deps, settings, Request(None, request.source, revive=request.revive, sent=rows)
        )
        with deps.sessions() as session:
            rejects = rejects_of_run(session, report.run)
    return Outcome({name: getattr(report, name) for name in COUNTS}, rejects, report.run)


def _delete(backend: Backend, taken: ActiveRequest) -> Outcome:
    request = DeleteRequest.model_validate_json(taken.body)
    settings, selection = backend.settings, request.as_selection()
    with backend.stores() as stores:
        if request.at_most is not None:
            require_few(stores, selection, request.at_most)
        receipt = delete_items(stores, selection, settings.home / "receipts", for_s=settings.retry_for_s)
    return Outcome(receipt.as_json())


def _in_transaction(backend: Backend, write: Callable[[Session], Result]) -> Result:
    """Return the result of a committed `write`, retrying without Postgres."""
    with backend.sessions() as sessions:

        def attempt() -> Result:
            with sessions.begin() as session:
                return write(session)

        return persist(attempt, for_s=backend.settings.retry_for_s)
