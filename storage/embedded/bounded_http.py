"""Bound the size and the duration of request heads per connection."""

import asyncio
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
HEAD_S = 20.0
"""Time from the first byte of a connection or of its next request to the end of the head."""

BODY_S = 300.0
"""Time for a body; its size is limited elsewhere."""


class BoundedProtocol(HttpToolsProtocol):
    """Limit each HTTP/1.1 connection, and close those of incomplete requests.

    uvicorn alone accepts heads of any size, since its parser passes on each part, and keeps the connection of
    an incomplete request open forever.
    """

    is_bounded = True
    """Whether the limits apply to this connection."""

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
                self._reject("431 Request Header Fields Too Large")

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
        """Set or clear the deadline for a head or a body."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if self.is_bounded and within_s is not None:
            self._deadline = self.loop.call_later(within_s, partial(self._reject, "408 Request Timeout"))

    def _reject(self, status: str) -> None:
        """Close the connection, with an error status where no response has begun."""
        self._expect(None)
        transport: Any = self.transport
        if transport.is_closing():
            return
        if self._in_head and (self.cycle is None or self.cycle.response_complete):
            head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            transport.write(head.encode("ascii"))
        transport.close()
