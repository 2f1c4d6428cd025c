"""Who may write: one run a source, several sources at once, and repairs alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.functions import Function

STORES = "sightline stores"


class Busy(RuntimeError):
    """Another process writes what this one wants to write; two at once would undo each other's work."""


class Lock:
    """Advisory locks of one Postgres session; Postgres gives them back when this process dies."""

    def __init__(self, connection: Connection, wanted: tuple[tuple[Function[bool], str], ...]) -> None:
        self._connection = connection
        self._wanted = wanted

    def take(self) -> None:
        """Take all of it.

        Raises:
            Busy: another process holds a part of it.
        """
        for attempt, why in self._wanted:
            if not self._connection.scalar(select(attempt)):
                raise Busy(why)
        self._connection.commit()  # the locks are the session's, not the transaction's

    def keep(self) -> None:
        """Make sure that it is still held: with the connection it was lost, and is taken anew.

        In between another process may have written: whoever depends on that not being so has to look.

        Raises:
            Busy: another process holds it now.
            OperationalError: Postgres does not answer.
        """
        try:
            self._connection.scalar(select(1))
            self._connection.commit()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            self._connection.rollback()
            self.take()


@contextmanager
def source_lock(engine: Engine, source: str) -> Iterator[Lock]:
    """Hold the right to write `source`, while others may write other sources.

    Raises:
        Busy: another process writes this source, or has all sources for itself.
    """
    shared = func.pg_try_advisory_lock_shared(_number(STORES))
    own = func.pg_try_advisory_lock(_number(f"sightline source {source}"))
    repaired = "the stores are being repaired, backed up or restored; wait until that has ended"
    written = f"source {source!r} is being written by another run; wait until it has ended"
    with _held(engine, ((shared, repaired), (own, written))) as lock:
        yield lock


@contextmanager
def lone_lock(engine: Engine) -> Iterator[Lock]:
    """Hold the right to write anything, alone.

    Raises:
        Busy: another process writes.
    """
    alone = func.pg_try_advisory_lock(_number(STORES))
    with _held(engine, ((alone, "an ingest or another repair is running; wait until it has ended"),)) as lock:
        yield lock


@contextmanager
def collection_lock(engine: Engine) -> Iterator[None]:
    """Hold the right to make or switch collections; waits for whoever has it, who needs it for a moment."""
    with engine.connect() as connection:
        try:
            connection.execute(select(func.pg_advisory_lock(_number("sightline collections"))))
            connection.commit()
            yield
        finally:
            _give_back(connection)


@contextmanager
def _held(engine: Engine, wanted: tuple[tuple[Function[bool], str], ...]) -> Iterator[Lock]:
    with engine.connect() as connection:
        lock = Lock(connection, wanted)
        try:
            lock.take()
            yield lock
        finally:
            _give_back(connection)


def _give_back(connection: Connection) -> None:
    try:
        connection.rollback()
        connection.execute(select(func.pg_advisory_unlock_all()))
        connection.commit()
    except DBAPIError:
        connection.invalidate()  # the session is gone, or ends now, and its locks with it


def _number(name: str) -> Function[int]:
    return func.hashtextextended(name, 0)
