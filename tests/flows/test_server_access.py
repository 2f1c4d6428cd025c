"""The Prefect servers that are ours: closed to other users, other sites and other names."""

import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import refresh_global_settings_context
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import Pending, Running
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.config.prefect_env import use_prefect_server
from flows.orchestration.deployments import close_dead
from flows.orchestration.flows import ingest
from flows.orchestration.prefect_client import open_prefect
from flows.orchestration.server import EmbeddedServer, embedded_server
from flows.orchestration.server_access import (
    AlreadyServed,
    address_file,
    find_server,
    join_server,
    lock_for_server,
    password_file,
    password_of,
)
from storage.data_directory import SecretUnusable
from storage.postgres import runs
from storage.postgres.locks import flow_lock
from tests.support import forks, prefect_database
from tests.support.builders import a_folder, png
from tests.support.other_user import as_another_user, has_another_user, open_folder, readable_by_another_user
from tests.support.processes import a_free_port, homes
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).parents[2]
EVIL = "http://evil.example"
ELSEWHERE = "http://127.0.0.1:4200/api"
OTHER_ADDRESSES = ("PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL")
"""Settings that a user may have made for another project's server."""

PATCHED = DeploymentUpdate(path="/tmp", entrypoint="evil:run")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Path]:
    """A data directory that other users find, in a folder that they may enter."""
    with homes() as home_at:
        yield home_at(folder / "home")


@pytest.fixture(scope="module")
def server(home: Path, prefect_tables: Path) -> Iterator[EmbeddedServer]:
    prefect_database.give(home, prefect_tables)
    with pytest.MonkeyPatch.context() as configured:
        for name in OTHER_ADDRESSES:
            configured.setenv(name, ELSEWHERE)
        with embedded_server(home, a_free_port()) as server:
            yield server


@pytest.fixture(scope="module")
def deployment(server: EmbeddedServer) -> UUID:
    with SyncPrefectClient(server.url, auth_string=server.password) as client:
        return client.create_deployment(
            client.create_flow_from_name("ingest"), "scheduled", tags=["sightline"]
        )


def origin_of(server: EmbeddedServer) -> str:
    return server.url.removesuffix("/api")


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(password.encode()).decode()}"}


def test_its_pages_and_the_links_to_them_are_at_its_own_port(
    server: EmbeddedServer, home: Path, monkeypatch: pytest.MonkeyPatch
):
    pages = httpx.get(f"{origin_of(server)}/ui-settings", headers=basic(server.password)).json()
    assert pages["api_url"] == server.url

    with temporary_settings({PREFECT_UI_URL: "http://127.0.0.1:4200"}), open_prefect(home) as prefect:
        assert prefect.page_of(UUID(int=1)).startswith(f"{origin_of(server)}/runs/")

    for name in ("PREFECT_API_URL", "PREFECT_UI_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:4200")
    use_prefect_server(server.url)
    assert os.environ["PREFECT_UI_URL"] == origin_of(server)


@pytest.mark.parametrize("password", [None, "", ":", "sightline:", "sightline:wrong"])
def test_without_the_password_prefects_own_client_reads_and_changes_nothing(
    server: EmbeddedServer, deployment: UUID, password: str | None
):
    with SyncPrefectClient(server.url, auth_string=password) as client:
        attempts = (
            client.read_deployments,
            client.read_flows,
            client.read_flow_runs,
            client.read_logs,
            lambda: client.create_flow_run_from_deployment(deployment),
            lambda: client.update_deployment(deployment, PATCHED),
            lambda: client.delete_deployment(deployment),
        )
        for attempt in attempts:
            with pytest.raises(PrefectHTTPStatusError, match="401"):
                attempt()

    with SyncPrefectClient(server.url, auth_string=server.password) as client:
        found = client.read_deployment(deployment)
        assert (found.path, found.entrypoint) == (None, None)
        assert client.read_flow_runs() == []


def test_without_the_password_nothing_is_told_of_the_directory(server: EmbeddedServer):
    paths = ("admin/settings", "admin/version", "version", "metrics", "docs", "openapi.json", "csrf-token")
    closed = [httpx.get(f"{server.url}/{path}").status_code for path in paths]

    assert closed == [401] * len(paths)
    assert httpx.get(f"{server.url}/health").text == "true"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "", "prefect"]
)
def test_a_foreign_name_gets_nothing_even_with_the_password(server: EmbeddedServer, host: str):
    headers = {"Host": host, **basic(server.password)}
    for url in (f"{server.url}/health", f"{origin_of(server)}/", f"{origin_of(server)}/openapi.json"):
        assert httpx.get(url, headers=headers).status_code == 400
    assert httpx.post(f"{server.url}/flows/filter", headers=headers, json={}).status_code == 400


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1", "http://localhost:1"])
def test_a_page_of_another_origin_gets_nothing(server: EmbeddedServer, origin: str):
    headers = {"Origin": origin, **basic(server.password)}

    plain = httpx.post(f"{server.url}/flows/filter", headers=headers, json={})
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server.url}/flows/filter", headers=asked)
    health = httpx.get(f"{server.url}/health", headers=headers)

    for answer in (plain, preflight, health):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_its_own_pages_reach_it_and_are_not_framed(server: EmbeddedServer):
    page = httpx.get(f"{origin_of(server)}/runs", headers={"Accept": "text/html"}, follow_redirects=True)
    said = httpx.get(f"{origin_of(server)}/ui-settings").json()
    for name in ("127.0.0.1", "localhost"):
        origin = f"http://{name}:{httpx.URL(server.url).port}"
        headers = {"Origin": origin, **basic(server.password)}
        answer = httpx.post(f"{server.url}/flows/filter", headers=headers, json={})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)

    assert page.is_success
    assert "<html" in page.text
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert (said["api_url"], said["auth"]) == (server.url, "BASIC")


def test_events_are_for_those_with_the_password_and_no_other_page(server: EmbeddedServer):
    url = f"{server.url.replace('http', 'ws', 1)}/events/out"
    with pytest.raises(InvalidStatus, match="403"):
        connect(url, origin=EVIL, subprotocols=["prefect"])
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    named = {**upgrade, "Sec-WebSocket-Key": b64encode(bytes(16)).decode(), "Host": "evil.example"}
    assert httpx.get(f"{server.url}/events/out", headers=named).status_code == 400
    with connect(url, subprotocols=["prefect"]) as stranger:
        stranger.send('{"type": "auth", "token": "sightline:wrong"}')
        with pytest.raises(ConnectionClosed):
            stranger.recv()
    with connect(url, subprotocols=["prefect"]) as known:
        known.send(f'{{"type": "auth", "token": "{server.password}"}}')
        assert "auth_success" in known.recv()


def test_the_console_finds_it_and_says_where_the_password_is(
    home: Path, server: EmbeddedServer, deployment: UUID
):
    with open_prefect(home) as prefect:
        assert [one.id for one in prefect.deployed()] == [deployment]
        assert prefect.password_file == password_file(home)
        assert server.password not in prefect.page_of(deployment)


def test_the_password_is_in_its_file_alone(home: Path, server: EmbeddedServer):
    secret = server.password.partition(":")[2]
    pid = server.process.pid

    assert len(secret) >= 32
    assert password_file(home).stat().st_mode & 0o777 == 0o600
    assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
    holding = [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holding == [password_file(home)]


@pytest.mark.usefixtures("server")
def test_a_second_server_of_the_same_directory_is_refused(home: Path):
    with pytest.raises(AlreadyServed, match="runs already"), embedded_server(home, a_free_port()):
        pass

    assert find_server(home) is not None


@pytest.mark.full  # tests/storage/test_data_directory.py has the modes
@has_another_user
def test_another_user_reads_nothing_of_what_commands_and_servers_leave(
    folder: Path, home: Path, server: EmbeddedServer
):
    shop = a_folder(folder / "shop", {"a.png": png("red"), "a.txt": "red", "bad.png": b"no picture"})
    environment = {
        **os.environ,
        "SIGHTLINE_HOME": str(home),
        "SIGHTLINE_MODEL": str(write_tiny_clip(folder / "tiny")),
        "SIGHTLINE_DECODE_WORKERS": "0",
        "PREFECT_API_URL": server.url,
        "PREFECT_API_AUTH_STRING": server.password,
    }
    for command in (
        ["ingest", shop],
        ["search", "red", "--gallery", folder / "page.html"],
        ["delete", "a.png", "--source", "shop"],
        ["backup", home / "backups"],
    ):
        done = forks.sightline(*command, environment=environment)
        assert done.returncode == 0, done.stderr

    assert {"pictures", "receipts", "backups", "postgres", "qdrant"} <= {one.name for one in home.iterdir()}
    assert readable_by_another_user(home) == []
    assert as_another_user("/bin/cat", password_file(home)).returncode != 0
    assert as_another_user("/bin/cat", f"/proc/{server.process.pid}/environ").returncode != 0
    assert (folder / "page.html").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@pytest.fixture
def _joined(server: EmbeddedServer, home: Path) -> Iterator[None]:  # noqa: ARG001
    """Have the flows of this process go to the server of the directory, as those of a command do."""
    before = dict(os.environ)
    assert join_server(home)
    yield
    os.environ.clear()
    os.environ.update(before)
    refresh_global_settings_context()


@pytest.mark.usefixtures("_joined")
def test_an_ingest_joins_the_server_of_its_directory_and_leaves_one_task_and_a_page_that_sums_it_up(
    server: EmbeddedServer, home: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    shop = a_folder(tmp_path / "my shop", {f"{n}.png": png("red", (32, 32 + n)) for n in range(5)})
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    monkeypatch.setenv("SIGHTLINE_BATCH_SIZE", "2")

    report = ingest(shop)

    with SyncPrefectClient(server.url, auth_string=server.password) as client:
        [artifact] = client.read_artifacts()
        [run] = [one for one in client.read_flow_runs() if one.deployment_id is None]
        tasks = client.read_task_runs()
    assert report.embedded == 5
    assert artifact.key == "ingest-my-shop"
    assert "| embedded | 5 |" in str(artifact.data)
    assert run.parameters["location"] == str(shop)
    assert len(tasks) == 1  # of three batches


# --- without a server


def test_the_password_is_made_once_and_kept(tmp_path: Path):
    made = password_of(tmp_path)

    assert re.fullmatch(r"sightline:[\w-]{32}", made)
    assert password_of(tmp_path) == made
    assert password_of(tmp_path / "another") != made


@pytest.mark.parametrize(("content", "mode"), [("sightline:secret", 0o644), ("", 0o600), ("secret", 0o600)])
def test_a_password_that_others_may_know_or_that_is_none_is_not_used(tmp_path: Path, content: str, mode: int):
    password_of(tmp_path)
    password_file(tmp_path).write_text(content)
    password_file(tmp_path).chmod(mode)

    with pytest.raises(SecretUnusable, match="remove it"):
        password_of(tmp_path)


def test_an_address_is_believed_only_while_a_server_holds_the_lock(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        password_of(tmp_path)
        address_file(tmp_path).write_text(f"http://127.0.0.1:{port}/api\n")

        assert find_server(tmp_path) is None

        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_the_lock_goes_with_the_process_that_was_given_it(tmp_path: Path):
    with lock_for_server(tmp_path) as lock:
        sleeper = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with pytest.raises(AlreadyServed), lock_for_server(tmp_path):
        pass

    sleeper.kill()
    sleeper.wait()

    with lock_for_server(tmp_path):
        pass


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path):
    (tmp_path / "uvicorn.py").write_text("open('ran', 'w').close()\n")
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(REPOSITORY)}
    script = """if True:
        import subprocess, sys
        from pathlib import Path
        from flows.config.prefect_env import prepare_prefect
        prepare_prefect(Path("home"), log_level="CRITICAL")
        subprocess.run([sys.executable, "-m", "uvicorn", "--help"], capture_output=True)
    """

    subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, check=True)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("outcome", "is_held", "closed"),
    [
        ("running", False, True),
        ("running", True, False),
        ("crashed", False, True),
        ("completed", False, False),
    ],
)
def test_a_run_that_the_record_proves_dead_is_crashed_and_gives_its_slot_back(
    server: EmbeddedServer,
    engine: Engine,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    is_held: bool,
    closed: bool,
):
    monkeypatch.setenv("SIGHTLINE_HOME", str(home))
    monkeypatch.setenv("SIGHTLINE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    reached = {PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: server.password}
    with (
        temporary_settings(reached),  # the event of a crash goes there
        SyncPrefectClient(server.url, auth_string=server.password) as client,
    ):
        deployment = client.create_deployment(
            client.create_flow_from_name("evaluate"), "scheduled", concurrency_limit=1
        )
        first, second = (client.create_flow_run_from_deployment(deployment).id for _ in range(2))
        assert client.set_flow_run_state(first, Pending()).status == SetStateStatus.ACCEPT
        assert client.set_flow_run_state(first, Running()).status == SetStateStatus.ACCEPT
        own = uuid4()
        with Session(engine) as session, session.begin():
            runs.start_run(session, own, "evaluate", prefect_run_id=first)
            if outcome != "running":
                runs.end_run(session, own, outcome, counts={}, seconds={})

        with flow_lock(engine, "evaluate") if is_held else nullcontext():
            close_dead(client, engine)

        state = client.read_flow_run(first).state
        assert state is not None
        assert state.is_crashed() is closed
        taken = client.set_flow_run_state(second, Pending()).status
        assert (taken == SetStateStatus.ACCEPT) is closed
        with Session(engine) as session:
            found = runs.find_run(session, own)
        assert found is not None
        assert (found.outcome == "crashed") is closed
        client.delete_deployment(deployment)
