"""Run the console as a process until a signal."""

import gc
import socket
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn

from flows.config.settings import Console, Settings
from flows.console.auth import require_protection
from storage.embedded.bounded_http import BoundedProtocol
from storage.errors import SightlineError

MOST_AT_ONCE = 512
"""Requests and connections at once; further ones get 503, which leaves file descriptors for the stores."""

BACKLOG = 2048
GRACE_S = 5
"""Seconds for responses in progress at the end; open pages are closed at once."""


class AddressUnavailable(SightlineError):
    """Report an address at which the console cannot listen."""


class Server(uvicorn.Server):
    """Run uvicorn, and report once it serves requests.

    Until then another user's program may have the port.
    """

    def __init__(self, config: uvicorn.Config, report: Callable[[], None]) -> None:
        super().__init__(config)
        self._report = report

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._report()


def serve(settings: Settings, report: Callable[[], None]) -> None:
    """Serve the console until SIGTERM or SIGINT.

    Args:
        report: called once it serves requests.

    Raises:
        NotProtected: it would listen at an address where anyone could use it.
        AddressUnavailable: its address is taken, or none of this machine.
    """
    require_protection(settings.console)
    with ExitStack() as opened:
        # before the stores are opened: a taken port is noticed at once
        sockets = [opened.enter_context(listener) for listener in listeners(settings.console)]
        server = Server(config_of(settings), report)
        gc.freeze()  # imported modules stay: collecting garbage among them would hold up pages
        server.run(sockets)


def listeners(console: Console) -> list[socket.socket]:
    """Listen at each address of the console's host.

    Raises:
        AddressUnavailable: an address is taken, or none of this machine.
    """
    found: list[socket.socket] = []
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            console.host, console.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            found.append(socket.create_server(address, family=family, backlog=BACKLOG))
    except OSError as error:
        for listener in found:
            listener.close()
        why = str(error.strerror).partition(" (")[0].lower()  # what follows is the address again
        raise AddressUnavailable(
            f"the console cannot listen at port {console.port} of {console.host}: {why}; choose "
            "another port with --port, or another address with --host"
        ) from error
    return found


def config_of(settings: Settings) -> uvicorn.Config:
    """Return the uvicorn configuration of the application."""
    from flows.console.app import create_app  # takes seconds, and a port may be taken

    console = settings.console
    return uvicorn.Config(
        create_app(settings),
        host=console.host,
        port=console.port,
        log_level="warning",
        access_log=False,  # the URL that signs in contains the password
        proxy_headers=False,  # the client is the proxy, and only headers of a trusted proxy count
        http=BoundedProtocol,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=GRACE_S,
    )
