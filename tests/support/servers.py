"""Servers that the project does not start itself, as Debian packages them."""

import os
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdrant_client import QdrantClient
from sqlalchemy import URL, make_url

from storage.embedded.postgres.account import choose_account
from storage.embedded.postgres.data_folder import create
from storage.embedded.postgres.paths import (
    PORT,
    PostgresPaths,
    make_server_folder,
    make_socket_folder,
    remove_socket_folder,
)
from storage.embedded.postgres.server import find_binaries
from storage.qdrant.snapshots import server_kind
from tests.support.processes import a_free_port, is_gone, let_in, wait_until
from tests.support.tools import tool

POSTGRES_15 = "/usr/lib/postgresql/15/bin/postgres"
PGBOUNCER = "/usr/sbin/pgbouncer"
START_TIMEOUT_S = 30


@contextmanager
def a_postgres_15(folder: Path) -> Iterator[URL]:
    """Run a Postgres 15 in an empty folder; yield its database URL.

    Args:
        folder: an absolute path.
    """
    binaries = Path(tool(POSTGRES_15)).parent
    place = PostgresPaths(let_in(folder))
    account = choose_account(place.home, place.data, binaries)
    make_server_folder(place.folder, account)
    make_socket_folder(place, account)
    with (folder / "lock").open("w") as lock:
        create(place, account, binaries, lock.fileno())

    def pg_ctl(*arguments: str) -> None:
        argv = [str(binaries / "pg_ctl"), "-D", place.data.name, "-w", "-t", str(START_TIMEOUT_S), *arguments]
        status, output = account.run(argv, cwd=place.folder, timeout_s=2 * START_TIMEOUT_S)
        assert status == 0, f"{output}\n{place.log_tail}"

    options = shlex.join(["-p", str(PORT), "-k", str(place.sockets), "-c", "listen_addresses="])
    pg_ctl("-l", place.log.name, "-o", options, "start")
    try:
        yield make_url(place.url)
    finally:
        pg_ctl("-m", "immediate", "stop")
        remove_socket_folder(place)


@contextmanager
def a_pgbouncer(folder: Path, home: Path, **options: object) -> Iterator[URL]:
    """Run a PgBouncer before the Postgres of a home; yield its URL.

    Args:
        folder: an absolute path.
        options: what its configuration says, such as `pool_mode`.
    """
    program = tool(PGBOUNCER)
    place, port = PostgresPaths(home.resolve()), a_free_port()
    account = choose_account(place.home, place.data, find_binaries())
    own = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"}
    files = {"logfile": folder / "log", "pidfile": folder / "pid"}
    lines = [f"{name} = {value}" for name, value in (own | files | options).items()]
    database = f"* = host={place.sockets} port={PORT} user=postgres"
    configuration = folder / "pgbouncer.ini"
    configuration.write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
    os.chown(let_in(folder), account.uid, account.gid)
    status, output = account.run([program, "-d", str(configuration)], cwd=folder, timeout_s=START_TIMEOUT_S)
    assert status == 0, output
    pidfile = folder / "pid"
    wait_until(lambda: _listens(port) and pidfile.exists() and pidfile.read_text().strip() != "")
    pid = int(pidfile.read_text())
    try:
        yield make_url(place.url).set(host="127.0.0.1", port=port, query={})
    finally:
        os.kill(pid, signal.SIGTERM)  # ends it with its connections
        wait_until(lambda: is_gone(pid))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_server(client: QdrantClient) -> bool:
    """Return whether a Qdrant server answers, and not the embedded index."""
    return server_kind(client) == "qdrant"
