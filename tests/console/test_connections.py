"""Limits of one connection to the console, without a key or a password."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from storage.embedded import bounded_http
from storage.embedded.bounded_http import MAX_HEAD_BYTES, BoundedProtocol
from tests.support.processes import wait_until

BODY = b"x" * 300_000


async def application(_scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(bounded_http, "HEAD_S", 0.5)
    monkeypatch.setattr(bounded_http, "BODY_S", 0.5)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=BoundedProtocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    wait_until(lambda: server.started, patience_s=30)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def answered(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
        found = b""
        with suppress(ConnectionResetError):
            while more := connection.recv(65_536):
                found += more
        return found


def test_a_head_without_end_is_rejected(port: int):
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ")
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 100 * 2**20:
                sent += connection.send(b"x" * 65_536)

    assert sent < 16 * 2**20  # most of that was in the buffers of the system


def test_a_head_of_many_headers_is_rejected(port: int):
    many = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 100) for number in range(1000))
    assert len(many) > MAX_HEAD_BYTES
    parts = [many[start : start + 8192] for start in range(0, len(many), 8192)]

    found = answered(port, b"GET / HTTP/1.1\r\nHost: x\r\n", *parts)

    # nothing, where the system drops the answer as the rest of the head comes
    assert found == b"" or found.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"G",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Half",
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
    ],
)
def test_a_request_that_is_never_finished_ends_its_connection(port: int, begun: bytes):
    began = time.monotonic()

    answered(port, begun)

    assert time.monotonic() - began < 10


def test_a_head_that_comes_byte_by_byte_ends_its_connection(port: int):
    parts = [bytes([one]) for one in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: yes yes yes\r\n\r\n"]

    assert b"200 OK" not in answered(port, *parts, pause_s=0.05)


def test_a_body_of_any_size_is_no_head(port: int):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    assert answered(port, head + BODY, head + BODY, last).count(b"200 OK") == 3
