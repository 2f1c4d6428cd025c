"""Run the process that owns the embedded index of a data directory.

Started as `python -P -m storage.embedded.qdrant.process.owner HOME`.

It serves one machine. It holds Qdrant's own engine, and implements the part of Qdrant's REST API that
qdrant-client uses, on a socket in the index's folder and on loopback. One thread does everything, because
the engine takes one call at a time; only graphs are built in a separate process. A larger installation sets
the URL of a Qdrant server instead.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from storage.embedded.qdrant.process.discovery import (
    ALREADY_OWNED,
    HOST,
    SOCKET,
    AlreadyOwned,
    access_file,
    announce,
    folder_of,
    is_announced,
    new_key,
    ownership,
    socket_path,
    withdraw,
)
from storage.errors import SightlineError

if TYPE_CHECKING:
    import uvicorn

    from storage.embedded.qdrant.protocol.routes import IndexApp

IDLE_S = 24 * 3600
CHECK_INTERVAL_S = 1.0
STOP_PATIENCE_S = 10
KEEP_ALIVE_S = 75  # longer than any client keeps an idle connection, so that none is cut while it is used
BACKLOG = 256
GARBAGE_AFTER_OBJECTS = 100_000
log = logging.getLogger("sightline.qdrant")


def serve_index(home: Path, *, idle_s: float | None = IDLE_S) -> None:
    """Serve the index until a signal, or until it is idle.

    Args:
        home: the data directory; the index is in `home/qdrant`.
        idle_s: seconds without a request after which it ends; None for no limit.

    Raises:
        AlreadyOwned: another process does so already.
        DamagedState: the list of collections cannot be read.
    """
    path = folder_of(home)
    with ownership(home) as folder:
        gc.disable()  # what is imported stays: looking for garbage in it takes a fifth of the time
        # Imported under the lock: of several that start at once, the losers exit before this second of work.
        from storage.embedded.qdrant.protocol.routes import IndexApp

        # A batch of points is thousands of objects and no cycle: garbage collection took a third of it.
        gc.freeze()
        gc.set_threshold(GARBAGE_AFTER_OBJECTS)
        gc.enable()
        private, public = _private_listener(folder, path), _public_listener()
        try:
            with private, public, IndexApp.open(path, new_key()) as app:
                asyncio.run(_serve(home, app, [private, public], idle_s))
        finally:
            withdraw(home)
        log.info("the index in %s is closed", path)


def _private_listener(folder: int, path: Path) -> socket.socket:
    """Listen on a socket in the open, private folder."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        os.unlink(SOCKET, dir_fd=folder)  # of an owner that was killed
    listener.bind(socket_path(folder, path))
    listener.listen(BACKLOG)
    return listener


def _public_listener() -> socket.socket:
    """Listen on loopback, for clients that need a URL."""
    # asyncio sends small responses at once only where the protocol is named; else each waits 40 ms for an ack
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((HOST, 0))
    listener.listen(BACKLOG)
    return listener


async def _serve(home: Path, app: "IndexApp", listeners: list[socket.socket], idle_s: float | None) -> None:
    import uvicorn

    from storage.embedded.qdrant.process.connections import LoopbackProtocol

    config = uvicorn.Config(
        app.asgi,
        http=LoopbackProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_PATIENCE_S,
    )
    server = uvicorn.Server(config)
    _end_on_signals(server)
    port = listeners[-1].getsockname()[1]
    access = announce(home, port, app.key)
    log.info("the index in %s is served at %s by process %d", folder_of(home), access.url, access.pid)
    maintenance = asyncio.create_task(_maintain(home, app, server, idle_s))
    try:
        # not `serve`, which would raise the signal again before the collections are closed
        await server._serve(listeners)
    finally:
        maintenance.cancel()
        with suppress(asyncio.CancelledError):
            await maintenance


def _end_on_signals(server: "uvicorn.Server") -> None:
    def end() -> None:
        server.should_exit = True

    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, end)


async def _maintain(home: Path, app: "IndexApp", server: "uvicorn.Server", idle_s: float | None) -> None:
    """Sync writes, build graphs, and end an idle or unreachable process."""
    builder = asyncio.create_task(app.graphs.build_when_due())
    try:
        while not server.should_exit:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now = time.monotonic()
            app.store.flush_due()
            if not is_announced(home):
                log.warning("%s or the socket no longer leads to this process: it ends", access_file(home))
                server.should_exit = True
            if idle_s is not None and now - app.activity.last_request_s > idle_s:
                log.info("no request for %.0f s: this process ends", idle_s)
                server.should_exit = True
            if builder.done():
                builder.result()  # never ends by itself: raises the defect that ended it
    finally:
        builder.cancel()
        with suppress(asyncio.CancelledError):
            await builder


def main() -> None:
    """Serve the index of the data directory on the command line."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        serve_index(Path(sys.argv[1]))
    except AlreadyOwned as error:
        log.info("%s", error)
        sys.exit(ALREADY_OWNED)
    except SightlineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
