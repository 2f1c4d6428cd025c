"""Which user runs the server, and how a command is run as that user.

Postgres refuses to run as root, so root has it run as `postgres` or `nobody`. That user cannot enter
what only root may enter: root's own home, a folder made by `mktemp -d`, a venv installed with umask 077.
There the server gets the one capability that lets it through, and the folder that holds it stays root's
and closed to all others, so that nobody else can reach a server that has this power.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

PROBE_TIMEOUT_S = 20
SERVER_USERS = ("postgres", "nobody")
"""Who runs Postgres for root, the first that there is."""


class PostgresUnavailable(RuntimeError):
    """The Postgres of a home folder cannot be had; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server's commands; `prefix` is the command that becomes that user, if one is needed."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    @property
    def folder_owner(self) -> tuple[int, int]:
        """The user and group ids that must own the folder around the data, and that of the socket."""
        return (0, 0) if self.prefix else (self.uid, self.gid)

    def run(
        self, argv: Sequence[str], *, cwd: Path, timeout_s: float, pass_fds: Collection[int] = ()
    ) -> tuple[int, str]:
        """Return the exit status of `argv`, and all that it wrote.

        The command has a session of its own, so that Ctrl-C in this one does not reach it, and writes to
        a file: a pipe would be held open by the server that it leaves behind.

        Raises:
            PostgresUnavailable: it could not be run, or took longer than `timeout_s`.
        """
        becomes = not self.prefix and self.uid != os.geteuid()
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    [*self.prefix, *argv],
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=pass_fds,
                    timeout=timeout_s,
                    user=self.uid if becomes else None,
                    group=self.gid if becomes else None,
                    extra_groups=() if becomes else None,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise PostgresUnavailable(
                    f"{argv[0]} has not ended within {timeout_s} s; is the machine or its disk overloaded?"
                ) from error
            except OSError as error:
                raise PostgresUnavailable(
                    f"cannot run {argv[0]} as user {_name(self.uid)} ({error.strerror}); run as an ordinary "
                    "user, or set SIGHTLINE_DATABASE_URL to a Postgres server"
                ) from error
            output.seek(0)
            return done.returncode, output.read().decode(errors="replace")


def choose_account(home: Path, data: Path, binaries: Path) -> Account:
    """Return who can run the Postgres in `binaries` on `data`, which lies below `home` or will.

    Raises:
        PostgresUnavailable: this process is root, and no other user can be given what it needs.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    plain = _unprivileged(data)
    if _refusal(plain, home, binaries) is None:
        return plain

    name = _name(plain.uid)
    closed = _closed_folder(home, binaries)
    remedy = (
        f"use a home and a virtual environment that {name} may enter, run as an ordinary user, "
        "or set SIGHTLINE_DATABASE_URL to a Postgres server"
    )
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise PostgresUnavailable(
            f"Postgres does not run as root, and user {name} may not enter {closed}; install setpriv "
            f"(util-linux), or {remedy}"
        )
    if home.stat().st_uid != 0:
        raise PostgresUnavailable(
            f"Postgres does not run as root, and user {name} may not enter {closed}; root lends it that "
            f"power only for a home of its own, and {home} is another user's: {remedy}"
        )
    # CAP_DAC_READ_SEARCH, the lesser power, is not in Docker's default set and does not let the server
    # run a binary of mode 0700. Without no_setuid_fixup, access(2) ignores the capability, and Postgres
    # asks access(2) whether it may run its own binary.
    capable = Account(
        plain.uid,
        plain.gid,
        (
            setpriv,
            f"--reuid={plain.uid}",
            f"--regid={plain.gid}",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
            "--securebits=+no_setuid_fixup",
            "--",
        ),
    )
    refusal = _refusal(capable, home, binaries)
    if refusal is not None:
        raise PostgresUnavailable(
            f"Postgres does not run as root, user {name} may not enter {closed}, and setpriv did not help "
            f"({refusal}); {remedy}"
        )
    return capable


def _unprivileged(data: Path) -> Account:
    """Return the owner of `data` where there is one, so that a user added later changes nothing."""
    if data.exists() and data.stat().st_uid != 0:
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


def _refusal(account: Account, home: Path, binaries: Path) -> str | None:
    """Return why `account` cannot enter `home` or run Postgres; None when it can."""
    script = 'cd "$1" && exec "$2" --version'
    argv = ["/bin/sh", "-c", script, "sh", str(home), str(binaries / "postgres")]
    status, output = account.run(argv, cwd=Path("/"), timeout_s=PROBE_TIMEOUT_S)
    return None if status == 0 else " ".join(output.split())


def _closed_folder(*paths: Path) -> Path:
    """Return the first folder on the way to `paths` that others may not enter, for a message."""
    on_the_way = [folder for path in paths for folder in (*reversed(path.parents), path)]
    return next((folder for folder in on_the_way if not folder.stat().st_mode & 0o001), paths[0])


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
