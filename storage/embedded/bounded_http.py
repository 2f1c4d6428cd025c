"""Bound what one connection may take: the size of a request's head, and the time until it is there."""

import asyncio
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
HEAD_S = 20.0
"""From the first byte of a connection, or of its next request, to the last byte of the head."""

BODY_S = 300.0
"""For a body, whose size is limited elsewhere."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it; a request that does not arrive ends its connection.

    Without it a head may be of any size, for the parser only hands on what it has, and a request that is
    never finished holds its connection for ever.
    """

    is_bounded = True
    """Whether the limits hold for this connection."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _has_ended = False
    """Whether a message ended in the data at hand."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(HEAD_S)

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._deadline is None:
            self._expect(HEAD_S)
        self._has_ended = False
        super().data_received(data)
        if self.is_bounded and self._in_head and not self._has_ended:  # all of this belongs to one head
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._expect(HEAD_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._expect(BODY_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = self._has_ended = True
        self._expect(None)
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._in_head = False
        self._expect(None)
        super().handle_websocket_upgrade()

    def _expect(self, within_s: float | None) -> None:
        """Begin to wait for the rest of a head or a body, or end that."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if self.is_bounded and within_s is not None:
            self._deadline = self.loop.call_later(within_s, partial(self._refuse, "408 Request Timeout"))

    def _refuse(self, status: str) -> None:
        """End the connection, with a word of why where no answer has begun."""
        self._expect(None)
        transport: Any = self.transport
        if transport.is_closing():
            return
        if self._in_head and (self.cycle is None or self.cycle.response_complete):
            head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            transport.write(head.encode("ascii"))
        transport.close()
