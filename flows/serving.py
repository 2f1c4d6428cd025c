"""The schedules at work: a Prefect server, of our own if need be, and the process that starts the flows."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
from prefect import get_client
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from flows.ending import end, until_asked
from flows.schedules import close_left, deployments
from flows.served import Served, planned
from flows.settings import Settings, own_prefect_server, use_prefect_server

HOST = "127.0.0.1"
START_S = 120
"""A new server migrates its database first."""

STOP_S = 20
PAUSE_S = 0.2


class PortTaken(RuntimeError):
    """Something else listens where our Prefect server would."""


class PrefectServerEnded(RuntimeError):
    """Our Prefect server did not start, or has ended although nobody asked it to."""


Tell = Callable[[Served], None]


def serve(settings: Settings, port: int, tell: Tell) -> None:
    """Run the flows on their schedules until SIGTERM or SIGINT; then end what runs, and the server.

    Args:
        port: of our own server, which is started where Prefect has been told of no other.
        tell: called once everything runs.

    Raises:
        PortTaken: it is in use.
        PrefectServerEnded: our server did not start, or has ended.
    """
    with until_asked():
        if PREFECT_API_URL.value() is not None:
            _serve(settings, tell, server=None)
            return
        with own_server(settings.home, port) as server:
            use_prefect_server(f"http://{HOST}:{port}/api")
            refresh_global_settings_context()
            _serve(settings, tell, server)


def address_file(home: Path) -> Path:
    """Return where the address of the home's own Prefect server stands while it runs."""
    return home / "prefect" / "address"


def find_server(home: Path) -> str | None:
    """Return the API of the Prefect server that runs this home's schedules; None if none answers."""
    file = address_file(home)
    given = PREFECT_API_URL.value()
    url = given or (file.read_text().strip() if file.exists() else None)
    if url is None:
        return None
    with suppress(httpx.TransportError):
        if httpx.get(f"{url}/health", trust_env=given is not None).is_success:
            return url
    return None


@contextmanager
def own_server(home: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a Prefect server on loopback whose data is in `home`; it listens when this yields."""
    _refuse_taken(port)
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [*command, "--log-level", "WARNING", "--analytics-off"],
            env=own_prefect_server(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us: the flows tell it how they ended
        )
    try:
        _wait_until_healthy(server, port, folder / "server.log")
        address_file(home).write_text(f"http://{HOST}:{port}/api\n")
        yield server
    finally:
        address_file(home).unlink(missing_ok=True)
        end(server, within_s=STOP_S)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortTaken(
                f"port {port} is taken ({error.strerror}); choose another with --port, or use the Prefect "
                f"server that listens there: PREFECT_API_URL=http://{HOST}:{port}/api"
            ) from error


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"http://{HOST}:{port}/api/health", trust_env=False).is_success:
                return
        time.sleep(PAUSE_S)
    raise PrefectServerEnded(f"the Prefect server did not start; see its log: {log}")


def _serve(settings: Settings, tell: Tell, server: "subprocess.Popen[bytes] | None") -> None:
    runner = Runner(name="sightline", pause_on_shutdown=False)
    with get_client(sync_client=True) as client:
        if server is not None:
            close_left(client)
        found = deployments(settings, client)
    for one in found:
        runner.add_deployment(one)
    paused = {one.flow_name for one in found if one.paused}
    tell(Served(str(PREFECT_UI_URL.value()), planned(settings, paused, datetime.now(UTC))))
    try:
        asyncio.run(_run(runner, server))
    finally:
        # what is left to be told, while there is a server: as this process ends they would wait for one
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=STOP_S)


async def _run(runner: Runner, server: "subprocess.Popen[bytes] | None") -> None:
    """Run `runner` until a signal; the flows that run then are ended, and Prefect knows it."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(runner.start())
    while not runner.started and not running.done():
        await asyncio.sleep(PAUSE_S)
    asked = asyncio.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, asked.set)
    while not asked.is_set() and not running.done():
        if server is not None and server.poll() is not None:
            running.cancel()
            raise PrefectServerEnded(
                "the Prefect server has ended; see server.log in the home's folder prefect"
            )
        await asyncio.sleep(PAUSE_S)
    if not running.done():
        await runner.astop()
    await running
