"""The client of a home's index, and starting, finding and stopping the process behind it."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from storage.embedded.qdrant.access import OWNED_ELSEWHERE, Access, access_file, find, folder_of, is_owned
from storage.embedded.server import Server, disk_bytes

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
POLL_S = 0.02
LAST_LINES = 8
MAX_CONNECTIONS = 100


class IndexUnavailable(RuntimeError):
    """The embedded index cannot be started, reached or stopped; the message says what to change."""


@contextmanager
def index_client(home: Path, *, timeout_s: int) -> Iterator[QdrantClient]:
    """Open a client of the index in `home/qdrant`, whose owner is started if need be.

    Should the owner have ended, the next request starts another; a request that was under way fails.

    Raises:
        IndexUnavailable: it cannot be started.
    """
    access = start(home)
    client = _client_of(access, timeout=timeout_s, transport=_Restarting(home, access))
    try:
        yield client
    finally:
        client.close()


def _client_of(access: Access, **options: Any) -> QdrantClient:
    # The key as a header: as `api_key` the client would warn that http is no secret, which on loopback it is.
    # Asking for the version takes a thread and a request, and both are of this installation.
    headers = {"api-key": access.key}
    return QdrantClient(access.url, headers=headers, check_compatibility=False, **options)


class _Restarting(httpx.BaseTransport):
    """HTTP to the owner; when nobody listens there, a new one is started and asked instead."""

    def __init__(self, home: Path, access: Access) -> None:
        self._home = home
        self._access = access
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        self._http = httpx.HTTPTransport(limits=limits)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, once more if no connection could be made: it was not seen by anyone then."""
        access = self._access
        try:
            return self._http.handle_request(_addressed(request, access))
        except httpx.ConnectError as error:
            if f"[Errno {errno.ECONNREFUSED}]" not in str(error):
                raise  # no port or file descriptor left here: that is no word on the owner
            self._access = access = _start_another(self._home, access)
            return self._http.handle_request(_addressed(request, access))

    def close(self) -> None:
        self._http.close()


def _addressed(request: httpx.Request, access: Access) -> httpx.Request:
    request.url = request.url.copy_with(port=httpx.URL(access.url).port)
    request.headers["api-key"] = access.key
    return request


def start(home: Path) -> Access:
    """Return how to reach the owner of the index in `home`, started if there is none.

    It outlives this process, and all that use `home` share it.

    Raises:
        IndexUnavailable: it does not start, or not in time, or belongs to another user.
    """
    with _permission_explained(home):
        found = find(home)
        return found if found is not None else _start(home)


def stop(home: Path) -> bool:
    """Stop the owner of the index in `home`, and wait for its end; False when there was none.

    Raises:
        IndexUnavailable: it did not end in time.
    """
    with _permission_explained(home):
        access = find(home)
        if access is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(access.pid, signal.SIGTERM)
        _wait_for_end(home, access)
    return True


def find_index(home: Path) -> Server | None:
    """Return what there is to tell about the owner of the index in `home`, or None while there is none."""
    with _permission_explained(home):
        access = find(home)
    if access is None:
        return None
    try:
        points = _points(access)
    except ResponseHandlingException:
        return None  # it has ended since
    return Server("Qdrant", access.url, access.pid, access.since, disk_bytes(folder_of(home)), points)


def _points(access: Access) -> int:
    client = _client_of(access)
    try:
        return sum(_count(client, one.name) for one in client.get_collections().collections)
    finally:
        client.close()


def _count(client: QdrantClient, collection: str) -> int:
    try:
        return client.count(collection).count
    except UnexpectedResponse as error:
        if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR):
            return 0  # deleted since, or its files cannot be read: requests for it say so
        raise


def _start(home: Path) -> Access:
    _refuse_local_mode(home)
    folder = folder_of(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = _spawn(home)
    deadline = time.monotonic() + START_TIMEOUT_S
    # Of several that start at once one wins. The others leave, and each starter sees its own off, so that
    # none of them comes to life after a `stop`.
    while (found := find(home)) is None or (found.pid != process.pid and process.poll() is None):
        if process.poll() == OWNED_ELSEWHERE and not is_owned(home):
            process = _spawn(home)  # that one was just ending
        elif process.poll() not in (None, OWNED_ELSEWHERE):
            raise IndexUnavailable(
                f"the index in {folder} does not start; its log ends:\n{_last_words(folder)}"
            )
        if time.monotonic() > deadline:
            raise IndexUnavailable(
                f"the index in {folder} does not answer after {START_TIMEOUT_S} s; its log ends:\n"
                f"{_last_words(folder)}"
            )
        time.sleep(POLL_S)
    return found


def _spawn(home: Path) -> subprocess.Popen[bytes]:
    folder = folder_of(home)
    argv = [sys.executable, "-P", "-m", "storage.embedded.qdrant.owner", str(home.resolve())]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    return process


def _start_another(home: Path, gone: Access) -> Access:
    """Start the owner that follows `gone`, which listens no more but may still be closing its files."""
    _wait_for_end(home, gone)
    return start(home)


def _wait_for_end(home: Path, access: Access) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (found := find(home)) is not None and found.pid == access.pid:
        if time.monotonic() > deadline:
            raise IndexUnavailable(
                f"process {access.pid} does not end: see {folder_of(home) / 'log'}; kill -9 ends it"
            )
        time.sleep(POLL_S)


def _last_words(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-LAST_LINES:])


def _refuse_local_mode(home: Path) -> None:
    if (folder_of(home) / "meta.json").exists():
        raise IndexUnavailable(
            f"{folder_of(home)} was written by qdrant-client's local mode, which this index does not read; "
            "move the folder away, and `sightline ingest` embeds everything again"
        )


@contextmanager
def _permission_explained(home: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise IndexUnavailable(
            f"{access_file(home).parent} is another user's ({error}); run as that user, or choose another "
            "SIGHTLINE_HOME"
        ) from error
