"""Queue API requests in Postgres; the caller commits.

The whole request is stored in its row, so accepting it is one transaction. An accepted request survives a
crash, is part of a backup, and any process can execute it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, defer

from storage.errors import InvalidInput, SightlineError
from storage.postgres.schema import RequestRow

Kind = Literal["ingest", "delete"]
State = Literal["queued", "running", "done", "failed"]
PENDING = ("queued", "running")
AT_ONCE = 1000
"""Largest number of requests in one listing of the queue."""


class KeyReused(InvalidInput):
    """Signal that an idempotency key was reused for another request."""

    # http_status: the IETF's draft on the header says 422; 409 is for a first request that still goes on, and
    # a repeated one is answered with its receipt


class QueueFull(SightlineError):
    """Signal a full queue; a later attempt may succeed."""

    retryable = True
    http_status = 503


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limit the pending requests."""

    requests: int
    bytes: int
    """Of their bodies."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Describe a request and its result."""

    id: UUID
    kind: Kind
    source: str | None
    state: State
    accepted: datetime
    started: datetime | None
    ended: datetime | None
    run_id: UUID | None
    counts: Mapping[str, Any]
    rejects: Sequence[Mapping[str, Any]]
    problem: str | None


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """Refer to a pending request, without its body."""

    id: UUID
    source: str | None
    """None where it may concern any source."""


@dataclass(frozen=True, slots=True)
class ActiveRequest:
    """Store a request that is being executed."""

    id: UUID
    kind: Kind
    source: str | None
    body: bytes
    attempts: int
    """Number of attempts, including this one."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Count the pending requests."""

    many: int
    oldest: datetime | None


def accept(
    session: Session,
    key_id: UUID,
    kind: Kind,
    *,
    source: str | None,
    body: bytes,
    fingerprint: str,
    idempotency_key: str | None,
    room: Capacity | None = None,
) -> tuple[Receipt, bool]:
    """Queue a request; return its receipt, and whether it is new.

    Raises:
        KeyReused: this caller used the idempotency key for another request.
        QueueFull: it is new, and there is no room for it.
    """
    row = {
        "id": uuid4(),
        "key_id": key_id,
        "kind": kind,
        "source": source,
        "body": body,
        "fingerprint": fingerprint,
        "idempotency_key": idempotency_key,
        "state": "queued",
    }
    made = session.scalar(insert(RequestRow).values(row).on_conflict_do_nothing().returning(RequestRow.id))
    own = RequestRow.key_id == key_id, RequestRow.idempotency_key == idempotency_key
    known = select(RequestRow).where(*((RequestRow.id == made,) if made is not None else own))
    found = session.scalars(known.options(defer(RequestRow.body))).one()
    if found.fingerprint != fingerprint:
        raise KeyReused(
            f"the idempotency key {idempotency_key!r} was used for another request; use a key of its own"
        )
    if made is not None and room is not None:
        _require_room(session, room)
    return _receipt(found), made is not None


def _require_room(session: Session, room: Capacity) -> None:
    many, size = session.execute(
        select(func.count(), func.coalesce(func.sum(func.octet_length(RequestRow.body)), 0)).where(
            RequestRow.state.in_(PENDING)
        )
    ).one()
    if many > room.requests or size > room.bytes:
        raise QueueFull(
            f"{many - 1:,} requests wait to be carried out, and no more are accepted; send it again later"
        )


def receipt(session: Session, id: UUID) -> Receipt | None:
    """Return the receipt of a request, or None."""
    row = session.scalar(select(RequestRow).where(RequestRow.id == id).options(defer(RequestRow.body)))
    return None if row is None else _receipt(row)


def pending(session: Session) -> list[PendingRequest]:
    """Return the pending requests, oldest first.

    They include requests that a crashed process had begun.
    """
    waiting = select(RequestRow.id, RequestRow.source).where(RequestRow.state.in_(PENDING))
    rows = session.execute(waiting.order_by(RequestRow.accepted, RequestRow.id).limit(AT_ONCE))
    return [PendingRequest(id, source) for id, source in rows.tuples()]


def backlog(session: Session) -> Backlog:
    """Return the number of pending requests, and the oldest time."""
    counted = select(func.count(), func.min(RequestRow.accepted)).where(RequestRow.state.in_(PENDING))
    return Backlog(*session.execute(counted).one())


def begin(session: Session, id: UUID) -> ActiveRequest | None:
    """Mark a request as running and return it; None if ended.

    The caller holds the queue's lock.
    """
    begun = {"state": "running", "started": func.now(), "attempts": RequestRow.attempts + 1}
    row = session.execute(
        update(RequestRow)
        .where(RequestRow.id == id, RequestRow.state.in_(PENDING))
        .values(begun)
        .returning(RequestRow.kind, RequestRow.source, RequestRow.body, RequestRow.attempts)
    ).first()
    if row is None or row.body is None:
        return None
    return ActiveRequest(id, cast(Kind, row.kind), row.source, row.body, row.attempts)


def requeue(session: Session, taken: ActiveRequest, problem: str, *, is_its_fault: bool = False) -> None:
    """Return a request to the queue.

    Args:
        problem: the reason for the wait, in a sentence.
        is_its_fault: count the attempt: a request that stops the worker must not do so for ever.
    """
    attempts = taken.attempts if is_its_fault else taken.attempts - 1
    waits = {"state": "queued", "attempts": attempts, "problem": problem}
    session.execute(_own(taken.id).values(waits))


def finish(
    session: Session,
    id: UUID,
    *,
    counts: Mapping[str, Any],
    rejects: Sequence[Mapping[str, Any]] = (),
    run_id: UUID | None = None,
) -> None:
    """Record the result of a request, and delete its body."""
    done = {"counts": dict(counts), "rejects": [dict(one) for one in rejects], "run_id": run_id}
    session.execute(_own(id).values(done | _ended("done", None)))


def fail(session: Session, id: UUID, problem: str) -> None:
    """Record why a request failed, and delete its body."""
    session.execute(_own(id).values(_ended("failed", problem)))


def count_old(session: Session, days: float) -> int:
    """Count the receipts of requests that ended over `days` days ago."""
    return session.scalar(select(func.count()).where(_ended_before(days))) or 0


def delete_old(session: Session, days: float) -> None:
    """Delete old receipts with their idempotency keys.

    Their requests ended more than `days` days ago.
    """
    session.execute(delete(RequestRow).where(_ended_before(days)))


def _own(id: UUID) -> Any:
    return update(RequestRow).where(RequestRow.id == id, RequestRow.state.in_(PENDING))


def _ended(state: State, problem: str | None) -> dict[str, Any]:
    return {"state": state, "ended": func.now(), "body": None, "problem": problem}


def _ended_before(days: float) -> Any:
    return RequestRow.ended < func.now() - timedelta(days=days)


def _receipt(row: RequestRow) -> Receipt:
    return Receipt(
        row.id,
        cast(Kind, row.kind),
        row.source,
        cast(State, row.state),
        row.accepted,
        row.started,
        row.ended,
        row.run_id,
        row.counts,
        row.rejects,
        row.problem,
    )
