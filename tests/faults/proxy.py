"""A TCP proxy between us and a store, which breaks connections on command."""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from sqlalchemy import Engine

How = Literal["refuse", "reset", "stall", "cut"]
BLOCK = 4096
POLL_S = 0.02


class Proxy:
    """Passes bytes on, until so many have passed; then it breaks what is open, for a while.

    `refuse`: closes all connections and takes no new ones. `reset`: the same, by RST. `stall`: keeps them
    open and passes nothing on. `cut`: closes them in the middle of what was being sent, and takes new ones.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = 0
        self.broken = 0
        self._how: How | None = None
        self._at = 0
        self._for_s = 0.0
        self._until = 0.0
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, passed: int, how: How, *, for_s: float) -> None:
        """Break connections once `passed` bytes more have passed, for `for_s` seconds."""
        with self._lock:
            self.passed, self._at, self._how, self._for_s, self._until = 0, passed, how, for_s, 0.0

    def close(self) -> None:
        self._closing = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_broken and self._how in ("refuse", "reset"):
                _close(near, reset=True)
                continue
            try:
                far = self._connect()
            except OSError:
                _close(near, reset=True)
                continue
            threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        """Pass bytes on in both directions, until one end closes or the proxy breaks the connection."""
        breaks = self.broken
        with suppress(OSError):
            while self.broken == breaks or self._how == "stall":
                if self._closing:
                    break
                if self._is_broken:
                    time.sleep(POLL_S)
                    continue
                ready, _, _ = select.select([near, far], [], [], POLL_S)
                for one in ready:
                    data = one.recv(BLOCK)
                    if not data:
                        raise ConnectionAbortedError
                    self._send(far if one is near else near, data)
        for end in (near, far):
            _close(end, reset=self._how == "reset")

    def _send(self, end: socket.socket, data: bytes) -> None:
        with self._lock:
            before, self.passed = self.passed, self.passed + len(data)
            breaks = self._how is not None and not self._until and self.passed > self._at
            if breaks:
                self._until = time.monotonic() + self._for_s
                self.broken += 1
        allowed = max(0, self._at - before) if breaks else len(data)
        end.sendall(data[:allowed])
        if breaks and self._how == "stall":
            while self._is_broken and not self._closing:
                time.sleep(POLL_S)
            end.sendall(data[allowed:])

    @property
    def _is_broken(self) -> bool:
        return time.monotonic() < self._until


def to_postgres(engine: Engine) -> Callable[[], socket.socket]:
    """Return what connects to the socket of the tests' Postgres."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{engine.url.query['host']}/.s.PGSQL.{engine.url.query['port']}")
        return connection

    return connect


@contextmanager
def a_proxy(connect: Callable[[], socket.socket]) -> Iterator[Proxy]:
    proxy = Proxy(connect)
    try:
        yield proxy
    finally:
        proxy.close()


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
