"""Attacks on the embedded servers by another user or with a stolen key."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse
from sqlalchemy import NullPool, create_engine, text
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

from storage.embedded import bounded_http
from storage.embedded.postgres.account import PostgresUnavailable
from storage.embedded.postgres.paths import PostgresPaths
from storage.embedded.postgres.server import postgres_url, stop_postgres
from storage.embedded.qdrant.engine import snapshots
from storage.embedded.qdrant.process import client as qdrant_client
from storage.embedded.qdrant.process.client import IndexUnavailable, find_index, index_client, start, stop
from storage.embedded.qdrant.process.connections import MOST_AT_ONCE, LoopbackProtocol
from storage.embedded.qdrant.process.discovery import Access, access_file, find
from storage.embedded.qdrant.protocol.routes import IndexApp
from tests.support.processes import PATIENCE_S, HomeAt, is_gone, wait_until
from tests.support.watching import MIB

pytestmark = pytest.mark.services

NAME = "pictures"
Usage = namedtuple("Usage", ["total", "used", "free"])
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def kill(home: Path) -> Access:
    access = find(home)
    os.kill(access.pid, signal.SIGKILL)
    wait_until(lambda: find(home) is None)
    return access


def port_of(access: Access) -> int:
    return int(access.url.rpartition(":")[2])


class Listener:
    """Accepts connections at an address, and keeps the received bytes."""

    def __init__(self, server: socket.socket) -> None:
        self.heard = b""
        self.connections = 0
        self._server = server
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.settimeout(1)
                self.heard += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


@contextmanager
def listening(port: int = 0) -> Iterator[tuple[Listener, int]]:
    with socket.create_server(("127.0.0.1", port)) as server:
        yield Listener(server), server.getsockname()[1]


@contextmanager
def a_program(**options: object) -> Iterator[int]:
    """Yield the pid of an unrelated program."""
    with subprocess.Popen(["sleep", "60"], **options) as program:
        try:
            yield program.pid
        finally:
            program.kill()


# --- who is taken for the owner of the index


def test_a_stranger_who_takes_the_port_is_sent_nothing(home: Path):
    with index_client(home, timeout_s=5) as client, listening(port_of(kill(home))) as (stranger, _):
        assert find_index(home) is None
        start(home)

        assert client.get_collections().collections == []
        assert find_index(home).points == 0
        assert (stranger.connections, stranger.heard) == (0, b"")


# --- connections at the loopback port, for which no key is needed


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def is_ended(connection: socket.socket, within_s: float) -> bool:
    """Whether the server closes the connection in time."""
    connection.settimeout(within_s)
    with suppress(ConnectionError):
        try:
            while connection.recv(65_536):
                pass
        except TimeoutError:
            return False
    return True


def test_a_flood_of_connections_leaves_ours_alone(embedded: QdrantClient, index_home: Path):
    port = port_of(find(index_home))
    with ExitStack() as stack:
        flood = [stack.enter_context(connect(port)) for _ in range(MOST_AT_ONCE + 60)]

        assert embedded.get_collections().collections == []
        kept = [one for one in flood if not is_ended(one, within_s=0.01)]
        assert 0 < len(kept) <= MOST_AT_ONCE
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz").is_success)


def test_a_head_without_end_is_rejected(embedded: QdrantClient, index_home: Path):
    sent = 0
    with connect(port_of(find(index_home))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ")
        with suppress(ConnectionError):
            while sent < 50 * MIB:
                sent += connection.send(b"x" * 65_536)

    assert sent < 16 * MIB  # most of that was in the buffers of the system
    assert embedded.get_collections().collections == []


@pytest.fixture
def bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """A server like the owner's with short time limits; its socket and port."""
    monkeypatch.setattr(bounded_http, "HEAD_S", 0.3)
    monkeypatch.setattr(bounded_http, "BODY_S", 0.3)
    with socket.socket(socket.AF_UNIX) as private, socket.create_server(("127.0.0.1", 0)) as public:
        private.bind(str(tmp_path / "socket"))
        private.listen()
        config = uvicorn.Config(echo, http=LoopbackProtocol, lifespan="off", log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([private, public],))
        thread.start()
        wait_until(lambda: server.started)
        yield [private, public]
        server.should_exit = True
        thread.join()


async def echo(_scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-Half"


@pytest.mark.parametrize("begun", [b"", HALF, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"])
def test_a_request_that_is_never_finished_ends_its_connection(bounded: list[socket.socket], begun: bytes):
    with connect(bounded[1].getsockname()[1]) as connection:
        connection.sendall(begun)

        assert is_ended(connection, within_s=PATIENCE_S)


def test_requests_in_time_share_a_connection_however_old_it_is(bounded: list[socket.socket]):
    with connect(bounded[1].getsockname()[1]) as connection:
        for _ in range(3):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            assert b"200 OK" in connection.recv(65_536)
            time.sleep(0.2)


def test_our_own_socket_has_no_limit_of_time(bounded: list[socket.socket]):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(bounded[0].getsockname())
        connection.sendall(HALF)

        assert not is_ended(connection, within_s=1)


# --- files that are forged or stale


@contextmanager
def claimed(home: Path, pid: int, *, port: int = 1) -> Iterator[None]:
    """Write an address file and hold a lock as process `pid` would."""
    folder = home / "qdrant"
    folder.mkdir(mode=0o700)
    access = {"url": f"http://127.0.0.1:{port}", "key": "k", "pid": pid, "since": "2026-01-01T00:00:00Z"}
    access_file(home).write_text(json.dumps(access))
    with (folder / "lock").open("w") as file:
        file.write(str(pid))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@as_root
@pytest.mark.parametrize("forged", ["qdrant", "qdrant/lock", "qdrant.json"])
def test_files_of_another_user_end_no_process_and_lead_to_no_port(tmp_path: Path, forged: str):
    with a_program() as pid, listening() as (stranger, port), claimed(tmp_path, pid, port=port):
        os.chown(tmp_path / forged, STRANGER, STRANGER)

        for use in (stop, find_index, start):
            with pytest.raises(IndexUnavailable, match=f"of user {STRANGER}"):
                use(tmp_path)

        assert not is_gone(pid)
        assert stranger.connections == 0


def test_a_pid_that_another_program_has_now_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qdrant_client, "STOP_TIMEOUT_S", 0.2)

    with a_program() as pid, claimed(tmp_path, pid):
        with pytest.raises(IndexUnavailable, match=f"process {pid} does not end"):
            stop(tmp_path)

        assert not is_gone(pid)


def test_an_owner_of_an_earlier_release_which_has_no_socket_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(qdrant_client, "STOP_TIMEOUT_S", 0.2)
    argv = [sys.executable, "-c", "import time; time.sleep(60)", qdrant_client.EARLIER_OWNER, str(tmp_path)]

    with subprocess.Popen(argv) as owner, claimed(tmp_path, owner.pid):
        wait_until(lambda: not is_gone(owner.pid))  # it has its arguments a moment after its start
        with pytest.raises(IndexUnavailable):  # the test holds its lock
            stop(tmp_path)

        assert owner.wait(PATIENCE_S) == -signal.SIGTERM


@pytest.mark.parametrize("link", ["qdrant", "qdrant/lock", "qdrant/log"])
def test_nothing_is_written_through_a_link(tmp_path: Path, link: str):
    victim = tmp_path / "victim"
    if link == "qdrant":
        victim.mkdir(mode=0o700)
    else:
        victim.write_text("kept")
        (tmp_path / "qdrant").mkdir(mode=0o700)
    (tmp_path / link).symlink_to(victim)

    with pytest.raises(IndexUnavailable, match=f"{link} is a link"):
        start(tmp_path)

    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "kept"


# --- what a request with the key can read


def test_a_recovery_reads_the_own_snapshots_and_nothing_else(
    embedded: QdrantClient, index_home: Path, tmp_path: Path
):
    embedded.create_collection(NAME, vectors_config=models.VectorParams(size=2, distance="Dot"))
    made = index_home.resolve() / "qdrant" / "snapshots" / NAME / embedded.create_snapshot(NAME).name
    outside = tmp_path / "outside.snapshot"
    shutil.copy(made, outside)
    link = made.with_name("link.snapshot")
    link.symlink_to(outside)
    around = f"{made.parent}/../../../../{outside.name}"

    with listening() as (stranger, port):
        elsewhere = (f"http://127.0.0.1:{port}/s.snapshot", f"https://127.0.0.1:{port}/s.snapshot")
        for location in (str(outside), outside.as_uri(), str(link), around, "/etc/passwd", *elsewhere):
            with pytest.raises(UnexpectedResponse, match=r"recovers from the snapshots in|cannot read"):
                embedded.recover_snapshot("copy", location)
        assert stranger.connections == 0

    assert not embedded.collection_exists("copy")
    for name in (made.name, link.name):
        assert embedded.delete_snapshot(NAME, name)
    embedded.delete_collection(NAME)


# --- what a request without the key can do


def url_of_the_host_header(request: HTTPConnection) -> URL:
    """The URL of a request as Starlette built it from the Host header."""
    return URL(f"http://{request.headers['host']}{request.scope['path']}")


@pytest.mark.parametrize("host", ["x/healthz?", "x/livez#"])
def test_a_host_header_opens_no_path(
    uploads: tuple[TestClient, Path], monkeypatch: pytest.MonkeyPatch, host: str
):
    monkeypatch.setattr(HTTPConnection, "url", property(url_of_the_host_header))
    stranger = TestClient(uploads[0].app)

    assert stranger.get("/collections", headers={"Host": host}).status_code == 401
    assert stranger.get("/healthz", headers={"Host": "x/collections?"}).status_code == 200


# --- snapshots that unfold


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[tuple[TestClient, Path]]:
    """A client with the key, and the folder of its index."""
    folder = tmp_path / "qdrant"
    folder.mkdir()
    with (
        IndexApp.open(folder, "key") as served,
        TestClient(served.asgi, headers={"api-key": "key"}) as client,
    ):
        yield client, folder


def upload(client: TestClient, content: bytes) -> httpx.Response:
    return client.post("/collections/copy/snapshots/upload", files={"snapshot": content})


def an_archive(*members: tuple[str, int], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A compressed archive of files of zeros, by name and size."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, size in members:
                found = tarfile.TarInfo(name)
                found.size, found.type = size, kind
                tar.addfile(found, io.BytesIO(bytes(size)))
        return buffer.getvalue()


def in_it(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (an_archive(("shard/zeros", 30 * MIB)), "has room for"),
        (an_archive(*[(f"shard/{number}", 8 * MIB) for number in range(4)]), "has room for"),
        (an_archive(("collection.json", 17 * MIB)), "has over 16,777,216 bytes"),
        (an_archive(("x", 5 * MIB), kind=tarfile.XHDTYPE), "attributes of over 1,048,576 bytes"),
        (an_archive(("x", 5 * MIB), kind=tarfile.GNUTYPE_LONGNAME), "attributes of over 1,048,576 bytes"),
        (an_archive(("shard/link", 0), kind=tarfile.SYMTYPE), "neither a file nor a folder"),
    ],
    ids=["one file", "all files", "description", "attributes", "long name", "link"],
)
def test_a_small_snapshot_that_unpacks_to_much_is_refused(
    uploads: tuple[TestClient, Path], monkeypatch: pytest.MonkeyPatch, content: bytes, why: str
):
    client, folder = uploads
    before = in_it(folder)
    free = snapshots.SPARE_BYTES + 20 * MIB
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda _: Usage(2 * free, free, free))
    assert len(content) < MIB

    answer = upload(client, content)

    assert (answer.status_code in (400, 413), why in answer.text) == (True, True)
    assert in_it(folder) == before


def test_a_snapshot_of_very_many_files_is_refused(
    uploads: tuple[TestClient, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshots, "MAX_FILES", 20)
    client, folder = uploads
    before = in_it(folder)

    answer = upload(client, an_archive(*[(f"shard/{number}", 0) for number in range(21)]))

    assert (answer.status_code, "over 20 files" in answer.text) == (413, True)
    assert in_it(folder) == before


def test_an_upload_for_which_there_is_no_room_is_refused_before_it_is_read(
    uploads: tuple[TestClient, Path], monkeypatch: pytest.MonkeyPatch
):
    client, _ = uploads
    free = snapshots.SPARE_BYTES + MIB
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda _: Usage(2 * free, free, free))
    answer = upload(client, bytes(MIB // 2))
    endless = client.post(
        "/collections/copy/snapshots/upload",
        content=iter([b"--x\r\n"]),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )

    assert (answer.status_code, "no room in" in answer.text) == (413, True)
    assert (endless.status_code, "Content-Length" in endless.text) == (400, True)


# --- Postgres


def saved(home: Path) -> int:
    with create_engine(postgres_url(home), poolclass=NullPool).begin() as connection:
        return connection.scalar(text("select 7"))


@as_root
def test_the_socket_of_another_user_is_not_connected_to(tmp_path: Path):
    folder = tmp_path / "postgres"
    folder.mkdir(mode=0o700)
    os.chown(folder, STRANGER, STRANGER)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / ".s.PGSQL.5432"))
        server.listen()
        stranger = Listener(server)

        for use in (postgres_url, stop_postgres):
            with pytest.raises(PostgresUnavailable, match=f"of user {STRANGER}"):
                use(tmp_path)

        assert (stranger.connections, stranger.heard) == (0, b"")


def test_another_user_cannot_be_first_to_make_the_socket_folder_of_a_long_home(
    tmp_path: Path, home_at: HomeAt
):
    home = home_at(tmp_path / ("long/" * 40))
    guessed = Path("/tmp") / f"sightline-{hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]}"
    guessed.mkdir(mode=0o755)
    first = guessed

    try:
        assert saved(home) == 7
        first = PostgresPaths(home.resolve()).sockets
        stop_postgres(home)
        first.mkdir(mode=0o755)  # its name is known by now

        assert saved(home) == 7
        assert PostgresPaths(home.resolve()).sockets != first
    finally:
        for folder in {guessed, first}:
            folder.rmdir()


def test_a_program_that_works_in_the_data_folder_is_not_taken_for_a_server(home: Path):
    saved(home)
    pid_file = home / "postgres/data/postmaster.pid"
    before, owner = pid_file.read_text(), pid_file.stat().st_uid
    stop_postgres(home)

    with a_program(cwd=home / "postgres/data") as pid:
        pid_file.write_text(before.replace(before.split()[0], str(pid), 1))
        pid_file.chmod(0o600)
        os.chown(pid_file, owner, -1)

        assert saved(home) == 7
        assert not is_gone(pid)


@as_root
def test_another_user_cannot_hold_the_lock_of_postgres():
    home = Path(tempfile.mkdtemp(prefix="sightline-"))  # where others may enter; `tmp_path` is root's
    home.chmod(0o755)
    (home / "postgres.lock").touch(mode=0o644)
    (home / "postgres").mkdir(mode=0o700)
    (home / "postgres/data").mkdir()
    with pytest.raises(PostgresUnavailable, match="no Postgres database"):
        postgres_url(home)

    os.seteuid(STRANGER)
    try:
        with pytest.raises(PermissionError):
            (home / "postgres.lock").open()
    finally:
        os.seteuid(0)
        shutil.rmtree(home)


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "postgres.lock").symlink_to(tmp_path / "victim")

    with pytest.raises(PostgresUnavailable, match="is a link"):
        postgres_url(tmp_path)

    assert not (tmp_path / "victim").exists()
