"""Choose the account that runs Postgres, and run commands as that account.

Postgres does not run as root, so root has it run as `postgres` or `nobody`. That account must be able to
enter the data directory and the folder of the Postgres programs.
"""

import os
import pwd
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.data_directory import ROOT, user_name
from storage.errors import StoreUnavailable

PROBE_TIMEOUT_S = 20
SERVER_USERS = ("postgres", "nobody")
"""Accounts that run Postgres for root; the first that exists is taken."""


class PostgresUnavailable(StoreUnavailable):
    """Report an unavailable embedded Postgres, with cause and remedy."""


@dataclass(frozen=True, slots=True)
class Account:
    """Represent the account that runs the server's commands."""

    uid: int
    gid: int

    def run(
        self, argv: Sequence[str], *, cwd: Path, timeout_s: float, pass_fds: Collection[int] = ()
    ) -> tuple[int, str]:
        """Run a command; return its exit status and its output.

        The command has a session of its own, so that Ctrl-C in this one does not reach it, and writes to
        a file: a pipe would be held open by the server that it leaves behind.

        Raises:
            PostgresUnavailable: it could not be run, or took longer than `timeout_s`.
        """
        is_other = self.uid != os.geteuid()
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    argv,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=pass_fds,
                    timeout=timeout_s,
                    user=self.uid if is_other else None,
                    group=self.gid if is_other else None,
                    extra_groups=() if is_other else None,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise PostgresUnavailable(
                    f"{argv[0]} has not ended within {timeout_s} s; is the machine or its disk overloaded?"
                ) from error
            except OSError as error:
                raise PostgresUnavailable(
                    f"cannot run {argv[0]} as user {user_name(self.uid)} ({error.strerror}); run as an "
                    "ordinary user, or set SIGHTLINE_DATABASE_URL to a Postgres server"
                ) from error
            output.seek(0)
            return done.returncode, output.read().decode(errors="replace")


def choose_account(home: Path, data: Path, binaries: Path) -> Account:
    """Choose the account that runs the Postgres in `binaries` on `data`.

    Args:
        home: the data directory.
        data: the folder of the database below it, which may not exist yet.
        binaries: the folder of the Postgres programs.

    Raises:
        PostgresUnavailable: this process is root, and no other account can enter these folders.
    """
    if os.geteuid() != ROOT:
        return Account(os.geteuid(), os.getegid())
    account = _unprivileged(data)
    script = 'cd "$1" && exec "$2" --version'
    argv = ["/bin/sh", "-c", script, "sh", str(home), str(binaries / "postgres")]
    status, output = account.run(argv, cwd=Path("/"), timeout_s=PROBE_TIMEOUT_S)
    if status != 0:
        name = user_name(account.uid)
        raise PostgresUnavailable(
            f"Postgres does not run as root, and user {name} may not enter {_closed_folder(home, binaries)} "
            f"({' '.join(output.split())}): use a data directory and a virtual environment that {name} may "
            "enter, run as an ordinary user, or set SIGHTLINE_DATABASE_URL to a Postgres server"
        )
    return account


def _unprivileged(data: Path) -> Account:
    """Return the owner of existing data, else the first existing account.

    So an account that is added later changes nothing.
    """
    if data.exists() and data.stat().st_uid != ROOT:
        return Account(data.stat().st_uid, data.stat().st_gid)
    for name in SERVER_USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user.pw_uid, user.pw_gid)
    raise PostgresUnavailable(
        "Postgres does not run as root, and there is no user `postgres` or `nobody` to run it; "
        "add one, run as an ordinary user, or set SIGHTLINE_DATABASE_URL to a Postgres server"
    )


def _closed_folder(*paths: Path) -> Path:
    """Return the first folder on the way that others may not enter."""
    on_the_way = [folder for path in paths for folder in (*reversed(path.parents), path)]
    return next((folder for folder in on_the_way if not folder.stat().st_mode & 0o001), paths[0])
