"""Postgres, over connections that never wait for ever."""

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event

CONNECT_TIMEOUT_S = 10
PATIENCE = 1.25
"""How many times as long as the server the client waits, so that the server can say what was too slow."""

SERVER_OPTIONS = (
    "-c statement_timeout={ms} -c lock_timeout={ms} -c idle_in_transaction_session_timeout={idle}"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)
IDLE_S = 600
"""A process that hangs inside a transaction keeps its locks no longer than this."""

POLL_S = 0.1
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


def open_engine(
    url: str, *, timeout_s: float, before_connecting: Callable[[], object] = lambda: None
) -> Engine:
    """Return an engine whose statements end within `timeout_s`, by the server's clock or by ours.

    The server's own limit doesn't help where the network goes silent, so that each wait for an answer has
    one too, a little longer; whoever overruns it gets an `OperationalError` and a closed connection.
    """
    limited = _limited(timeout_s * PATIENCE)
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    limits = SERVER_OPTIONS.format(ms=round(timeout_s * 1000), idle=IDLE_S * 1000)

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        before_connecting()
        # the server takes the last of two: whoever sets a limit of its own in the URL keeps it
        options = f"{limits} {named.pop('options', '')}".strip()
        defaults: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S} | KEEPALIVES
        return limited.connect(*args, **defaults | named, options=options)

    return engine


def address_of(engine: Engine) -> str:
    """Return where the server of `engine` is, for a person: no user, no password."""
    url = engine.url
    host = url.host or url.query.get("host") or "the default socket"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or ''}"


def _limited(timeout_s: float) -> type[psycopg.Connection[Any]]:
    """Return a kind of connection that waits `timeout_s` for an answer, and then closes."""

    class Limited(psycopg.Connection[Any]):
        def wait(self, gen: PQGen[Any], interval: float = POLL_S, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout_s if timeout is None else timeout)
            except psycopg.errors._WaitTimeout as error:
                self.pgconn.finish()  # what comes now would be taken for the answer to something else
                raise psycopg.OperationalError(f"no answer within {timeout_s:g} s") from error

    return Limited
