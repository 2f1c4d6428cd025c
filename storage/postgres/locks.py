"""Lock sources and stores against concurrent writers."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from threading import RLock
from typing import Self

from sqlalchemy import Connection, DateTime, Engine, Integer, Row, Text, column, func, select, table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.functions import Function

from storage.errors import Conflict, SightlineError
from storage.postgres.engine import address_of, backend_pid_of

STORES = "sightline stores"
LOST_MS = 5000
"""How long to wait for the end of a session that has lost its client."""

ACTIVITY = table("pg_stat_activity", column("pid", Integer), column("backend_start", DateTime(timezone=True)))
OWN_SESSION = select(ACTIVITY.c.pid, ACTIVITY.c.backend_start).where(ACTIVITY.c.pid == func.pg_backend_pid())
LOCKS = table("pg_locks", column("pid", Integer), column("locktype", Text))
OWN_LOCKS = LOCKS.c.pid == func.pg_backend_pid(), LOCKS.c.locktype == "advisory"
HELD = select(
    func.pg_backend_pid(), select(func.count()).select_from(LOCKS).where(*OWN_LOCKS).scalar_subquery()
)
ROUNDS = 20
"""Checks of a pooled session; each misses a change in up to a quarter of cases while a pool is busy."""


class Busy(Conflict):
    """Signal that another process holds the lock.

    Two concurrent writers would undo each other.
    """

    retryable = True


class UnstableSession(SightlineError):
    """Signal that a pooler changes the session between transactions.

    Another process could then hold the same lock.
    """

    retryable = True
    http_status = 503

    def __init__(self, engine: Engine) -> None:
        super().__init__(
            f"a connection pooler at {address_of(engine)} changes the Postgres session between transactions, "
            "so that no lock holds and nothing can be written safely; connect SIGHTLINE_DATABASE_URL to "
            "Postgres itself, or set pool_mode=session for it"
        )


class Lock:
    """Hold advisory locks of one Postgres session.

    Postgres releases them when this process dies. Threads may share a lock: it is held by all of them.
    """

    def __init__(self, engine: Engine, wanted: tuple[tuple[Function[bool], str], ...]) -> None:
        self._engine = engine
        self._wanted = wanted
        self._connection: Connection | None = None
        self._session: Row[tuple[int, datetime]] | None = None
        self._one_at_a_time = RLock()  # a connection takes no more
        self.times_taken = 0
        """Incremented when a lost lock was acquired again: another process may have written in between."""

    def __enter__(self) -> Self:
        self.ensure()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def ensure(self) -> None:
        """Acquire the lock, or check that it is still held.

        A lock is lost with its connection, and acquired again. Another process may have written in
        between: a caller that depends on unchanged data checks it.

        Raises:
            Busy: another process holds a part of it.
            UnstableSession: a pooler prevents it.
            OperationalError: Postgres is unavailable; call this again.
        """
        with self._one_at_a_time:
            if self._connection is not None:
                try:
                    if self._is_held(self._connection):
                        return
                except DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                else:
                    self._connection.invalidate()  # its session is another's now
                    self._connection.close()
                    self._connection = None
                    raise UnstableSession(self._engine)
                self.release()
            self._take()

    def release(self) -> None:
        """Release the lock if it is held."""
        with self._one_at_a_time:
            if self._connection is not None:
                _give_back(self._connection)
                self._connection.close()
                self._connection = None

    def _take(self) -> None:
        connection, session = _own_session(self._engine)
        self._connection = connection
        try:
            self._end_lost_session(connection)
            self._session = None
            for attempt, why in self._wanted:
                if not connection.scalar(select(attempt)):
                    raise Busy(why)
            self._session = session  # not before: a process that failed to lock may get this session again
            connection.commit()  # the locks are the session's, not the transaction's
            self.times_taken += 1
        except BaseException:
            self.release()
            raise

    def _is_held(self, connection: Connection) -> bool:
        """Check that the session is unchanged and still holds the locks."""
        pid, held = connection.execute(HELD).one()
        connection.commit()
        return self._session is not None and (pid, held) == (self._session.pid, len(self._wanted))

    def _end_lost_session(self, connection: Connection) -> None:
        """End the session that held the lock before.

        Its server may not have noticed yet that the client is gone.
        """
        if self._session is not None:
            pid, start = self._session
            lost = ACTIVITY.c.pid == pid, ACTIVITY.c.backend_start == start
            connection.execute(select(func.pg_terminate_backend(ACTIVITY.c.pid, LOST_MS)).where(*lost))


def source_lock(engine: Engine, source: str) -> Lock:
    """Return the lock for writing one source, beside writers of other sources.

    It is busy while another process writes this source, or has all sources for itself.
    """
    shared = func.pg_try_advisory_lock_shared(_number(STORES))
    own = func.pg_try_advisory_lock(_number(f"sightline source {source}"))
    repaired = "the stores are being repaired, backed up or restored; wait until that has ended"
    written = f"source {source!r} is being written by another run; wait until it has ended"
    return Lock(engine, ((shared, repaired), (own, written)))


def exclusive_lock(engine: Engine) -> Lock:
    """Return the lock for writing anything; it excludes all other writers."""
    exclusive = func.pg_try_advisory_lock(_number(STORES))
    return Lock(engine, ((exclusive, "an ingest or another repair is running; wait until it has ended"),))


def shared_lock(engine: Engine) -> Lock:
    """Return the lock for writing beside runs of sources.

    It is busy while another process holds the exclusive lock.
    """
    shared = func.pg_try_advisory_lock_shared(_number(STORES))
    repaired = "the stores are being repaired, backed up or restored; wait until that has ended"
    return Lock(engine, ((shared, repaired),))


def flow_lock(engine: Engine, work: str) -> Lock:
    """Return the lock for one kind of work; other work may write."""
    own = func.pg_try_advisory_lock(_number(f"sightline flow {work}"))
    return Lock(engine, ((own, f"another {work} is running; wait until it has ended"),))


@contextmanager
def collection_lock(engine: Engine) -> Iterator[None]:
    """Lock the creation and switching of collections; wait until it is free.

    Raises:
        UnstableSession: a pooler prevents it.
    """
    connection, _ = _own_session(engine)
    with connection:
        try:
            connection.execute(select(func.pg_advisory_lock(_number("sightline collections"))))
            connection.commit()
            yield
        finally:
            _give_back(connection)


def _own_session(engine: Engine) -> tuple[Connection, Row[tuple[int, datetime]]]:
    """Open a connection with a stable session; the caller closes it.

    Raises:
        UnstableSession: a pooler gives each transaction the session that happens to be free.
    """
    connection = engine.connect()
    try:
        session = connection.execute(OWN_SESSION).one()
        if session.pid != backend_pid_of(connection) and not _keeps(connection, engine, session.pid):
            raise UnstableSession(engine)
    except BaseException:
        connection.close()
        raise
    return connection, session


def _keeps(connection: Connection, engine: Engine, pid: int) -> bool:
    """Check that an idle connection keeps its session behind a pooler."""
    own = select(func.pg_backend_pid())
    connection.commit()
    for _ in range(ROUNDS):
        with engine.connect() as other:
            given_away = other.scalar(own) == pid
        # only after the other's transaction has ended: the pool may have one session in all
        if given_away or connection.scalar(own) != pid:
            return False
        connection.commit()
    return True


def _give_back(connection: Connection) -> None:
    try:
        connection.rollback()
        connection.execute(select(func.pg_advisory_unlock_all()))
        connection.commit()
    except DBAPIError:
        connection.invalidate()  # the session is gone, or ends now, and its locks with it


def _number(name: str) -> Function[int]:
    return func.hashtextextended(name, 0)
