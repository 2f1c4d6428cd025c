"""Connect to Postgres with time limits, with or without a pooler."""

import shlex
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, create_engine, event

from storage.errors import InvalidInput

CONNECT_TIMEOUT_S = 10
PATIENCE = 1.25
"""Factor of the client's time limit: the server reports the slow statement first."""

LIMITS = "-c statement_timeout={ms} -c lock_timeout={ms} -c idle_in_transaction_session_timeout={idle}"
SERVER_KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
IDLE_S = 600
"""A process that hangs inside a transaction keeps its locks no longer than this."""

POLL_S = 0.1
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
REFUSED = "unsupported startup parameter"
"""The beginning of the message of poolers that reject options; others drop them."""

BY_STATEMENT = "limits by statement"
"""Where a connection through a pooler keeps the statement that each transaction begins with."""


class UnknownOption(InvalidInput):
    """Signal a URL option that no statement can set.

    A connection pooler makes statements necessary.
    """


def open_engine(
    url: str, *, timeout_s: float, before_connecting: Callable[[], object] = lambda: None
) -> Engine:
    """Create an engine with client and server time limits on statements.

    The server's own limit does not help where the network goes silent. Each wait for a response has a
    limit too, a little longer; after it the client raises `OperationalError` and closes the connection.
    """
    limited = _limited(timeout_s * PATIENCE)
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    limits = LIMITS.format(ms=round(timeout_s * 1000), idle=IDLE_S * 1000)

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, record: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        before_connecting()
        # the server takes the last of two: a limit in the URL is kept
        own = named.pop("options", "")
        # prepared statements belong to a session, which a pooler may change; they save 0.06 ms each
        defaults: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "prepare_threshold": None}
        named = defaults | KEEPALIVES | named
        options = f"{limits} {SERVER_KEEPALIVES} {own}".strip()
        try:
            connection = limited.connect(*args, **named, options=options)
        except psycopg.OperationalError as error:
            if REFUSED not in str(error):
                raise
            connection = limited.connect(*args, **named)
        try:
            if _is_pooled(connection):
                record.info[BY_STATEMENT] = _setting(f"{limits} {own}")
        except BaseException:
            connection.close()
            raise
        return connection

    @event.listens_for(engine, "begin")
    def limit(connection: Connection) -> None:
        if (statement := connection.info.get(BY_STATEMENT)) is not None:
            connection.exec_driver_sql(*statement)

    return engine


def backend_pid_of(connection: Connection) -> int:
    """Return the backend's process id as reported at connect.

    A pooler reports its own.
    """
    driver: Any = connection.connection.driver_connection
    return int(driver.pgconn.backend_pid)


def address_of(engine: Engine) -> str:
    """Return the address of the server, without user and password."""
    url = engine.url
    host = url.host or url.query.get("host") or "the default socket"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or ''}"


def _is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Check whether a pooler responds in place of Postgres.

    A pooler may drop options and change sessions.
    """
    connection.autocommit = True  # one round trip, in place of three
    [pid] = connection.execute("select pg_backend_pid()").fetchone() or [None]
    connection.autocommit = False
    return bool(pid != connection.pgconn.backend_pid)


def _setting(options: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement that sets start-up options for one transaction.

    Its parameters follow.
    """
    settings = settings_of(options)
    calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
    return f"select {calls}", tuple(part for setting in settings.items() for part in setting)


def settings_of(options: str) -> dict[str, str]:
    """Parse the settings in start-up options; the last of two wins.

    >>> settings_of("-c lock_timeout=5 --work-mem=1MB -cwork_mem=2MB")
    {'lock_timeout': '5', 'work_mem': '2MB'}

    Raises:
        UnknownOption: an option is no setting.
    """
    lexer = shlex.shlex(options, posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.commenters = True, "", ""
    settings = {}
    words = iter(lexer)
    for word in words:
        setting = next(words, "") if word == "-c" else word.removeprefix("-c").removeprefix("--")
        name, equals, value = setting.partition("=")
        if not word.startswith(("-c", "--")) or not equals:
            raise UnknownOption(
                f"a connection pooler is between this program and Postgres, and {word} of the URL's options "
                "cannot be set through it; write -c name=value, or connect to Postgres itself"
            )
        settings[name.replace("-", "_")] = value
    return settings


def _limited(timeout_s: float) -> type[psycopg.Connection[Any]]:
    """Return a connection class that closes after `timeout_s` without a response."""

    class Limited(psycopg.Connection[Any]):
        def wait(self, gen: PQGen[Any], interval: float = POLL_S, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout_s if timeout is None else timeout)
            except psycopg.errors._WaitTimeout as error:
                self.pgconn.finish()  # a late response would be read as that of another statement
                raise psycopg.OperationalError(f"no answer within {timeout_s:g} s") from error

    return Limited
