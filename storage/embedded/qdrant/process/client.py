"""Connect to the index; start, find and stop its owner."""

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

from storage.data_directory import make_data_directory, require_trusted
from storage.embedded.qdrant.process.discovery import (
    ALREADY_OWNED,
    SOCKET,
    Access,
    access_file,
    find,
    folder_of,
    is_listening,
    is_owned,
    socket_path,
)
from storage.embedded.qdrant.process.unix_http import UnixTransport, has_no_listener
from storage.embedded.server_info import Server, disk_bytes
from storage.errors import StoreUnavailable
from storage.files import NotPrivate, make_folder, open_file, open_folder, private_folder

OWNER = "storage.embedded.qdrant.process.owner"
EARLIER_OWNER = "storage.embedded.qdrant.owner"
"""Module of the owners of earlier releases, of which the first had no socket."""

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
POLL_S = 0.02
LAST_LINES = 8
MAX_CONNECTIONS = 100


class IndexUnavailable(StoreUnavailable):
    """Report that the embedded index cannot be started, reached or stopped."""


@contextmanager
def index_client(home: Path, *, timeout_s: int) -> Iterator[QdrantClient]:
    """Open a client of the index, and start its owner if needed.

    Should the owner have ended, the next request starts another; a request that was under way fails.

    Raises:
        IndexUnavailable: it cannot be started.
    """
    transport = _RestartingTransport(home)
    client = _client_of(transport.access, transport, timeout=timeout_s)
    try:
        yield client
    finally:
        client.close()


def _client_of(access: Access, transport: httpx.BaseTransport, **options: Any) -> QdrantClient:
    # A check of the version takes a thread and a request, and both sides are of this installation.
    return QdrantClient(access.url, check_compatibility=False, transport=transport, **options)


class _OwnerTransport(httpx.BaseTransport):
    """Send requests to one owner by its private socket.

    The folder stays open, and connections lead through it: none leads to a socket of another user.
    """

    def __init__(self, home: Path, access: Access) -> None:
        path = folder_of(home)
        self.access = access
        self._folder = open_folder(path)
        self._http = UnixTransport(socket_path(self._folder, path), max_connections=MAX_CONNECTIONS)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # As `api_key`, the client would warn that http is no secret, which here it is.
        request.headers["api-key"] = self.access.key
        return self._http.handle_request(request)

    def close(self) -> None:
        self._http.close()
        os.close(self._folder)


class _RestartingTransport(httpx.BaseTransport):
    """Send requests to the owner; start another when none listens."""

    def __init__(self, home: Path) -> None:
        """Start the owner of the index if needed.

        Raises:
            IndexUnavailable: it cannot be started.
        """
        self._home = home
        self._opened: list[_OwnerTransport] = []
        self._renewing = threading.Lock()
        self._to_owner = self._reconnect(None)

    @property
    def access(self) -> Access:
        return self._to_owner.access

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and repeat it if no owner carried it out.

        That is certain where no connection was made, and where an owner rejected the key of the last one.
        """
        to_owner = self._to_owner
        try:
            response = to_owner.handle_request(request)
        except httpx.ConnectError as error:
            if not has_no_listener(error):
                raise  # no file descriptor is left here: the owner may well run
            _wait_for_end(self._home, to_owner.access)
        else:
            if response.status_code != HTTPStatus.UNAUTHORIZED:
                return response
            response.close()
        return self._reconnect(to_owner).handle_request(request)

    def close(self) -> None:
        for transport in self._opened:
            transport.close()

    def _reconnect(self, gone: _OwnerTransport | None) -> _OwnerTransport:
        """Return a transport to the owner that follows `gone`.

        The old transport stays open, because other threads may use it.
        """
        with self._renewing:
            if not self._opened or self._to_owner is gone:
                self._to_owner = _OwnerTransport(self._home, start(self._home))
                self._opened.append(self._to_owner)
            return self._to_owner


def start(home: Path) -> Access:
    """Start the owner of the index if needed; return its address.

    It outlives this process, and all processes share it.

    Raises:
        IndexUnavailable: it does not start, or not in time, or belongs to another user.
        UntrustedDirectory: another user made `home`, or can write to it.
    """
    with _explain_permission_errors(home):
        require_trusted(home)
        found = find(home)
        return found if found is not None else _start(home)


def stop(home: Path) -> bool:
    """Stop the owner of the index; return False if none ran.

    Returns once its process has ended.

    Raises:
        IndexUnavailable: it did not end in time.
    """
    with _explain_permission_errors(home):
        access = find(home)
        if access is None:
            return False
        if is_listening(home, access) or _is_of_earlier_release(home, access):
            with suppress(ProcessLookupError):
                os.kill(access.pid, signal.SIGTERM)
        _wait_for_end(home, access)
    return True


def _is_of_earlier_release(home: Path, access: Access) -> bool:
    """Return whether the owner is of an earlier release, without a socket."""
    if (folder_of(home) / SOCKET).exists():
        return False
    try:
        command = Path(f"/proc/{access.pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False
    return {os.fsencode(EARLIER_OWNER), os.fsencode(home.resolve())} <= set(command)


def find_index(home: Path) -> Server | None:
    """Describe the running owner of the index; None if there is none."""
    with _explain_permission_errors(home):
        access = find(home)
    if access is None:
        return None
    try:
        points = _points(home, access)
    except ResponseHandlingException:
        return None  # it has ended since
    return Server("Qdrant", access.url, access.pid, access.since, disk_bytes(folder_of(home)), points)


def _points(home: Path, access: Access) -> int:
    client = _client_of(access, _OwnerTransport(home, access))
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
    make_data_directory(home)
    make_folder(folder)
    process = _spawn(home)
    deadline = time.monotonic() + START_TIMEOUT_S
    # Of several that start at once one wins. The others exit, and each starter waits for the end of its own,
    # so that none of them starts after a `stop`.
    while (found := find(home)) is None or (found.pid != process.pid and process.poll() is None):
        if process.poll() == ALREADY_OWNED and not is_owned(home):
            process = _spawn(home)  # that one was just ending
        elif process.poll() not in (None, ALREADY_OWNED):
            raise IndexUnavailable(
                f"the index in {folder} does not start; its log ends:\n{_log_tail(folder)}"
            )
        if time.monotonic() > deadline:
            raise IndexUnavailable(
                f"the index in {folder} does not answer after {START_TIMEOUT_S} s; its log ends:\n"
                f"{_log_tail(folder)}"
            )
        time.sleep(POLL_S)
    return found


def _spawn(home: Path) -> subprocess.Popen[bytes]:
    folder = folder_of(home)
    argv = [sys.executable, "-P", "-m", OWNER, str(home.resolve())]
    with private_folder(folder) as opened:
        log = open_file(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, folder=opened)
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    finally:
        os.close(log)
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    return process


def _wait_for_end(home: Path, access: Access) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (found := find(home)) is not None and found.pid == access.pid:
        if time.monotonic() > deadline:
            raise IndexUnavailable(
                f"process {access.pid} does not end, or is of an earlier release: run `sightline stop`; its "
                f"log is {folder_of(home) / 'log'}; kill -9 ends it"
            )
        time.sleep(POLL_S)


def _log_tail(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-LAST_LINES:])


def _refuse_local_mode(home: Path) -> None:
    if (folder_of(home) / "meta.json").exists():
        raise IndexUnavailable(
            f"{folder_of(home)} was written by qdrant-client's local mode, which this index does not read; "
            "move the folder away, and `sightline ingest` embeds everything again"
        )


@contextmanager
def _explain_permission_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except NotPrivate as error:
        raise IndexUnavailable(str(error)) from error
    except PermissionError as error:
        raise IndexUnavailable(
            f"{access_file(home).parent} is another user's ({error}); run as that user, or choose another "
            "SIGHTLINE_HOME"
        ) from error
