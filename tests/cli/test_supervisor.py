"""`sightline up`: everything with one command, and nothing left when it ends."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
import uvicorn
from click.testing import CliRunner
from prefect.client.schemas.schedules import IntervalSchedule
from starlette.applications import Starlette

from flows.cli import main
from flows.cli.supervisor import Line, PartEnded, _answer, _require_running, part
from flows.cli.up_lock import UpRuns, lock_for_up
from flows.config.settings import Settings
from flows.console.auth import generated_password
from flows.console.auth import password_file as console_password_file
from flows.console.server import Server
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.orchestration.prefect_client import PrefectServer, open_prefect
from flows.orchestration.server_access import password_file, password_of
from flows.resources.connections import Stores, open_deps, open_stores
from storage.embedded.postgres.server import postgres_runs, stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.embedded.qdrant.process.discovery import find
from storage.postgres import runs
from tests.support.builders import a_folder, png
from tests.support.processes import HomeAt, environment_with_flows, wait_until
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.system

PATIENCE_S = 150


def free_ports(many: int) -> list[int]:
    probes = [socket.socket() for _ in range(many)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def children_of(pid: int) -> Iterable[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def terminal(into: Path) -> Iterator[int]:
    """A terminal to print on; what is printed there is in a file."""
    ours, theirs = pty.openpty()

    def read() -> None:
        with into.open("wb") as file, suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 4096):
                file.write(part.replace(b"\r\n", b"\n"))
                file.flush()

    into.touch()
    reader = Thread(target=read)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


@pytest.fixture
def with_a_source(tmp_path: Path, home_at: HomeAt) -> Settings:
    """A data directory that knows a source, in which there is something new by now, and no server."""
    home = home_at(tmp_path / "home")
    settings = Settings(home=home, model=str(write_tiny_clip(tmp_path / "tiny")), decode_workers=0)
    with open_deps(settings) as deps:
        ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", {"red.png": png("red")})))
    a_folder(tmp_path / "shop", {"new.png": png("green")})
    stop_index(home)
    stop_postgres(home)
    return settings


def start_soon(prefect: PrefectServer, flow: str) -> None:
    """Have a schedule start a flow soon, and again: a busy server plans late, and leaves out what is past."""
    [deployment] = [one.id for one in prefect.deployed() if one.flow == flow]
    anchor = datetime.now(UTC) + timedelta(seconds=6)
    soon = IntervalSchedule(interval=timedelta(seconds=30), anchor_date=anchor)
    prefect.client.create_deployment_schedules(deployment, [(soon, True)])


def last_ingest(stores: Stores) -> runs.Run:
    """Return the last ingest of a source that is on record."""
    with stores.sessions() as session:
        recent = runs.recent_runs(session, 9)
    return next(run for run in recent if (run.flow, run.source) == ("ingest", "shop"))


def has_ended_after(first: runs.Run, ingest: runs.Run) -> bool:
    return ingest.id != first.id and ingest.outcome != "running"


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended afterwards, whatever became of the test."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_it_runs_everything_starts_what_is_due_says_where_and_ends_all_of_it(
    tmp_path: Path, with_a_source: Settings
):
    home = with_a_source.home
    console, prefect = free_ports(2)
    command = [sys.executable, "-m", "flows.cli", "up", "--log-format", "json"]
    ports = ["--port", str(console), "--prefect-port", str(prefect)]
    out, log = tmp_path / "out", tmp_path / "log"
    environment = os.environ | environment_with_flows(home, Path(with_a_source.model))
    environment |= {
        "COLUMNS": "200",
        "SIGHTLINE_SCHEDULES__INGEST": "0 * * * *",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    with (
        terminal(out) as printed,
        log.open("w") as said,
        ended(subprocess.Popen([*command, *ports], stdout=printed, stderr=said, env=environment)) as up,
    ):
        wait_until(lambda: "token=" in out.read_text() or up.poll() is not None, patience_s=PATIENCE_S)
        assert up.poll() is None, log.read_text()
        parts = list(children_of(up.pid))

        assert httpx.get(f"http://127.0.0.1:{console}/healthz").is_success
        assert httpx.get(f"http://127.0.0.1:{console}/").headers["location"] == "/login"
        with httpx.Client(follow_redirects=True) as user:
            [link] = re.findall(r"http://\S+token=\S+", out.read_text())
            assert user.get(link).url == f"http://127.0.0.1:{console}/"
        assert httpx.get(f"http://127.0.0.1:{prefect}/api/health").is_success
        assert httpx.post(f"http://127.0.0.1:{prefect}/api/flows/filter", json={}).status_code == 401
        with open_prefect(home) as opened:
            assert [one.flow for one in opened.deployed()][:2] == ["ingest", "evaluate"]
            with open_stores(with_a_source) as stores:
                first = last_ingest(stores)
                start_soon(opened, "ingest")
                wait_until(lambda: has_ended_after(first, last_ingest(stores)), patience_s=PATIENCE_S)
                ingest = last_ingest(stores)
        assert (ingest.outcome, ingest.counts["embedded"], ingest.counts["unchanged"]) == ("completed", 1, 1)
        assert find(home) is not None
        up.send_signal(signal.SIGINT)

        assert up.wait(PATIENCE_S) == 0
    shown = out.read_text()
    assert f"http://127.0.0.1:{console}/metrics" in shown
    assert "0 * * * *" in shown
    assert str(password_file(home)) in shown.replace("\n", "")
    assert "Ctrl-C" in shown
    logs = log.read_text() + (home / "prefect" / "server.log").read_text()
    assert password_of(home).partition(":")[2] not in shown + logs
    assert str(console_password_file(home)) in logs
    assert generated_password(home) not in logs
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["part"] for line in lines} == {"postgres", "qdrant", "schedules", "console"}
    assert len(parts) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in parts)
    assert (find(home), postgres_runs(home)) == (None, False)


def test_a_part_that_ends_by_itself_ends_everything_and_is_named():
    said: list[Line] = []
    with part("console", "no-such-command", log=said.append) as console:
        console.process.wait(60)

        with pytest.raises(PartEnded, match="console has ended with code 2"):
            _require_running(console)

    assert any("No such command" in line.message for line in said)


class Stranger(BaseHTTPRequestHandler):
    """Another user's program, which says that it is well whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def taken_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_a_strangers_program_at_the_port_is_not_taken_for_the_console(
    tmp_path: Path, home_at: HomeAt, taken_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIGHTLINE_HOME", str(home_at(tmp_path / "home")))
    said: list[Line] = []

    port = str(taken_port)
    with part("console", "console", "--port", port, log=said.append) as console, pytest.raises(PartEnded):
        _answer(console)

    assert any("address already in use" in line.message for line in said)


def test_a_console_whose_port_is_taken_says_so_in_one_line_and_opens_no_store(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIGHTLINE_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "flows.cli", "console", "--port", str(taken_port)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"Error: the console cannot listen at port {taken_port} of 127.0.0.1: address already in use; "
        "choose another port with --port, or another address with --host\n"
    )
    assert not (tmp_path / "home").exists()


def test_the_console_says_where_it_is_only_once_it_listens(taken_port: int):
    def listen_at(port: int) -> list[str]:
        said: list[str] = []
        config = uvicorn.Config(Starlette(), port=port, lifespan="off", log_level="critical")
        server = Server(config, lambda: said.append("here"))
        server.should_exit = True  # once it has started
        with suppress(SystemExit):
            server.run()
        return said

    assert listen_at(taken_port) == []
    assert listen_at(free_ports(1)[0]) == ["here"]


def test_a_line_has_the_level_that_it_names():
    now = datetime.now(UTC)

    assert Line(now, "schedules", "12:00:01.000 | ERROR   | Flow run 'a' - it failed").level == "ERROR"
    assert Line(now, "console", "The console is at …").level == "INFO"


def test_at_an_open_address_it_does_not_start_without_a_password(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))

    done = CliRunner().invoke(main, ["up", "--host", "0.0.0.0"])

    assert done.exit_code == 1
    assert "SIGHTLINE_CONSOLE__PASSWORD" in done.output
    assert not home.exists()


def test_while_it_runs_stop_stops_nothing_and_names_its_process(
    tmp_path: Path, home_at: HomeAt, monkeypatch: pytest.MonkeyPatch
):
    home = home_at(tmp_path / "home")
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))

    with lock_for_up(home):
        stopped = CliRunner().invoke(main, ["stop"])
        with pytest.raises(UpRuns), lock_for_up(home):
            pass

    assert stopped.exit_code == 1
    assert stopped.output == (
        f"Error: `sightline up` runs on {home} as process {os.getpid()}, and keeps its servers running; end "
        f"it with Ctrl-C in its terminal, with its service manager, or with: kill {os.getpid()}\n"
    )
    assert CliRunner().invoke(main, ["stop"]).exit_code == 0
