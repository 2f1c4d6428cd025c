"""Run the embedded servers in the foreground, for a service manager."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flows.config.settings import Settings
from flows.tracking.signals import until_stopped
from storage.embedded.postgres.server import postgres_log, postgres_runs, postgres_url, stop_postgres
from storage.embedded.qdrant.process.discovery import find
from storage.embedded.qdrant.process.owner import serve_index
from storage.errors import Conflict, SightlineError

WATCH_S = 1.0
log = logging.getLogger("sightline.servers")


class ServersRun(Conflict):
    """Report servers that run already, or none to run."""


class PostgresEnded(SightlineError):
    """Report an unexpected end of Postgres."""


def serve(settings: Settings) -> None:
    """Run the embedded servers until SIGTERM or SIGINT; then stop them.

    Raises:
        ServersRun: the index is served already, or URLs are set for both.
        PostgresEnded: Postgres is gone; the index has been stopped as well.
    """
    has_postgres, has_index = settings.database_url is None, settings.qdrant.url is None
    if not has_postgres and not has_index:
        raise ServersRun("SIGHTLINE_DATABASE_URL and SIGHTLINE_QDRANT__URL are set: nothing of ours to start")
    served = find(settings.home) if has_index else None
    if served is not None:
        raise ServersRun(f"the index runs already, as process {served.pid}; run: sightline stop")
    ended = threading.Event()
    with until_stopped(), _postgres(settings.home, ended) if has_postgres else nullcontext():
        if has_index:
            serve_index(settings.home, idle_s=None)  # takes the signals over, and returns after one
        else:
            signal.pause()
    if ended.is_set():
        raise PostgresEnded(f"Postgres has ended; its log: {postgres_log(settings.home)}")


@contextmanager
def _postgres(home: Path, ended: threading.Event) -> Iterator[None]:
    """Run Postgres; its unexpected end terminates this process."""
    url = postgres_url(home)
    log.info("Postgres listens at %s", url)
    closing = threading.Event()
    watcher = threading.Thread(target=_watch, args=(home, closing, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        closing.set()
        watcher.join()
        stop_postgres(home)
        log.info("Postgres has stopped")


def _watch(home: Path, closing: threading.Event, ended: threading.Event) -> None:
    path = postgres_log(home)
    with path.open(errors="replace") as file:
        file.seek(0, os.SEEK_END)
        while not closing.wait(WATCH_S):
            for line in file:
                log.info("Postgres: %s", line.rstrip())
            if not postgres_runs(home):
                ended.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return
