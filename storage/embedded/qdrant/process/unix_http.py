"""Send HTTP requests over a Unix socket.

httpx can do that by itself, but leaves the socket of a failed connection open, and fails while the server's
queue of connections is full, where TCP waits.
"""

import errno
import select
import socket
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

POLL_S = 0.02


class UnixTransport(httpx.HTTPTransport):
    """Send all requests to the server at one socket."""

    def __init__(self, path: str, *, max_connections: int) -> None:
        super().__init__()
        self._pool = httpcore.ConnectionPool(
            uds=path, max_connections=max_connections, keepalive_expiry=5, network_backend=_Backend()
        )


def has_no_listener(error: httpx.ConnectError) -> bool:
    """Return whether a connection failed because no process listens."""
    cause = error.__cause__.args[0] if error.__cause__ is not None and error.__cause__.args else None
    return isinstance(cause, ConnectionRefusedError | FileNotFoundError)


class _Backend(httpcore.NetworkBackend):
    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 (of httpcore's interface)
    ) -> httpcore.NetworkStream:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(connection, path, timeout)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise httpcore.ConnectError(error) from error
            raise
        return _Stream(connection)


def _connect(connection: socket.socket, path: str, timeout: float | None) -> None:
    """Connect as soon as the server's queue has room.

    Raises:
        BlockingIOError: it has none in time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    connection.settimeout(timeout)
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError as error:
            if error.errno != errno.EAGAIN or (deadline is not None and time.monotonic() > deadline):
                raise
        time.sleep(POLL_S)


class _Stream(httpcore.NetworkStream):
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._connection.settimeout(timeout)
            return self._connection.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from error
        except OSError as error:
            raise httpcore.ReadError(error) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._connection.settimeout(timeout)
            self._connection.sendall(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def close(self) -> None:
        self._connection.close()

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._connection.fileno() < 0:
            return True  # closed
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))
