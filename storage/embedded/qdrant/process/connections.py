"""Limit connections at the loopback port, which every user can open.

The socket in the index's folder has none: its clients are ours, and no other user may enter there.
"""

import asyncio
import socket
from typing import Any

from storage.embedded.bounded_http import BoundedProtocol

MOST_AT_ONCE = 128
"""More than one qdrant-client opens; further connections are closed at once."""


class LoopbackProtocol(BoundedProtocol):
    """Limit connections from the network, and their number."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.is_bounded = _is_network(transport)
        super().connection_made(transport)
        if self.is_bounded and sum(_is_network(one.transport) for one in self.connections) > MOST_AT_ONCE:
            transport.abort()


def _is_network(transport: Any) -> bool:
    return bool(transport.get_extra_info("socket").family != socket.AF_UNIX)
