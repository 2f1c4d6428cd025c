"""The console as a process: it listens until a signal ends it."""

import gc
import socket
from collections.abc import Callable

import uvicorn

from flows.config.settings import Settings
from flows.console.app import create_app
from storage.embedded.bounded_http import BoundedProtocol

MOST_AT_ONCE = 512
"""Requests and connections; more of them get 503, and leave file descriptors for the stores."""

GRACE_S = 5
"""For answers that are under way when it ends; open pages are told at once."""


class Server(uvicorn.Server):
    """A server that says when it listens; until then another user's program may have the port."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()


def serve(settings: Settings, tell: Callable[[], None]) -> None:
    """Serve the console, until SIGTERM or SIGINT.

    Args:
        tell: called once it listens.

    Raises:
        NotProtected: it would listen at an address where anyone could use it.
    """
    server = Server(config_of(settings), tell)
    gc.freeze()  # what was imported stays: looking through it for garbage would hold up pages
    server.run()


def config_of(settings: Settings) -> uvicorn.Config:
    """Return how the application is served."""
    console = settings.console
    return uvicorn.Config(
        create_app(settings),
        host=console.host,
        port=console.port,
        log_level="warning",
        access_log=False,  # the address that signs in has a password
        proxy_headers=False,  # who asks is the proxy, and only what a proxy of ours says counts
        http=BoundedProtocol,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=GRACE_S,
    )
