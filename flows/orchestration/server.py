"""Serve the flows, with an embedded Prefect server if needed."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from prefect import get_client
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_AUTH_STRING, PREFECT_UI_URL

from flows.config.prefect_env import server_environment, use_prefect_password, use_prefect_server
from flows.config.settings import Settings
from flows.orchestration.deployments import close_dead, close_left, deployments
from flows.orchestration.schedule import ServedFlows, plan_flows
from flows.orchestration.server_access import (
    address_file,
    folder_of,
    keep_password,
    lock_for_server,
    password_file,
    password_of,
)
from flows.resources.connections import open_catalog
from flows.tracking.file_modes import PRIVATE
from flows.tracking.signals import end_process, until_stopped
from storage.errors import Conflict, SightlineError
from storage.files import atomic_write

HOST = "127.0.0.1"
START_S = 120
"""A new server migrates its database first."""

STOP_S = 20
PAUSE_S = 0.2
BACKLOG = 2048


class PortTaken(Conflict):
    """Report that the port of the embedded Prefect server is in use."""


class PrefectServerEnded(SightlineError):
    """Report that the embedded Prefect server did not start, or ended."""


Report = Callable[[ServedFlows], None]


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """Represent an embedded Prefect server."""

    process: "subprocess.Popen[bytes]"
    url: str
    """Address of its API."""

    password: str
    password_file: Path


def serve(settings: Settings, port: int, report: Report) -> None:
    """Serve the flows until SIGTERM or SIGINT; then end active runs.

    Args:
        port: of the embedded server, which is started unless Prefect is configured for another.
        report: called once everything runs.

    Raises:
        PortTaken: it is in use.
        AlreadyServed: the embedded server runs already.
        PrefectServerEnded: it did not start, or has ended.
    """
    with until_stopped():
        if PREFECT_API_URL.value() is not None:
            _serve(settings, report, server=None)
            return
        with embedded_server(settings.home, port) as server:
            use_prefect_server(server.url)
            use_prefect_password(server.password)
            refresh_global_settings_context()
            _serve(settings, report, server)


@contextmanager
def embedded_server(home: Path, port: int) -> Iterator[EmbeddedServer]:
    """Run the Prefect server of a data directory on loopback.

    It listens when this yields. The socket is made here and handed on, so that nothing else can answer in
    place of the server while it starts, and its lock goes with its process, however that ends.
    """
    with closing(_listener(port)) as listener, lock_for_server(home) as lock:
        password = PREFECT_SERVER_API_AUTH_STRING.value() or password_of(home)
        keep_password(home, password)
        log = folder_of(home) / "server.log"
        command = [sys.executable, "-P", "-m", "flows.orchestration.server_process", str(listener.fileno())]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                env=server_environment(home, port, password),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us: the flows report their end to it
                pass_fds=[listener.fileno(), lock],
                umask=PRIVATE,
            )
    server = EmbeddedServer(process, f"http://{HOST}:{port}/api", password, password_file(home).absolute())
    try:
        _wait_until_healthy(server, log)
        atomic_write(address_file(home), f"{server.url}\n".encode())
        yield server
    finally:
        address_file(home).unlink(missing_ok=True)
        end_process(process, within_s=STOP_S)


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"port {port} is taken ({error.strerror}); choose another with --port, or use the Prefect "
            f"server that listens there: PREFECT_API_URL=http://{HOST}:{port}/api"
        ) from error
    return listener


def _wait_until_healthy(server: EmbeddedServer, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health", trust_env=False).is_success:
                return
        time.sleep(PAUSE_S)
    raise PrefectServerEnded(f"the Prefect server did not start; see its log: {log}")


def _serve(settings: Settings, report: Report, server: EmbeddedServer | None) -> None:
    runner = Runner(name="sightline", pause_on_shutdown=False)
    with get_client(sync_client=True) as client:
        if server is not None:
            close_left(client)
        else:
            with open_catalog(settings, wait_s=settings.retry_for_s) as engine:
                close_dead(client, engine)
        found = deployments(settings, client)
    for one in found:
        runner.add_deployment(one)
    paused = {one.flow_name for one in found if one.paused}
    password = None if server is None else str(server.password_file)
    report(
        ServedFlows(str(PREFECT_UI_URL.value()), plan_flows(settings, paused, datetime.now(UTC)), password)
    )
    try:
        asyncio.run(_run(runner, server))
    finally:
        # send what is queued while there is a server: at exit these workers would wait for one
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=STOP_S)


async def _run(runner: Runner, server: EmbeddedServer | None) -> None:
    """Run the flows until a signal; then cancel active runs."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(runner.start())
    while not runner.started and not running.done():
        await asyncio.sleep(PAUSE_S)
    stop = asyncio.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, stop.set)
    while not stop.is_set() and not running.done():
        if server is not None and server.process.poll() is not None:
            running.cancel()
            raise PrefectServerEnded(
                "the Prefect server has ended; see server.log in the folder prefect of the data directory"
            )
        await asyncio.sleep(PAUSE_S)
    if not running.done():
        await runner.astop()
    await running
