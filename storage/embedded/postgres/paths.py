"""Name the files of the embedded Postgres, and ping its socket."""

import os
import pwd
import re
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg import pq
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from storage.data_directory import ROOT
from storage.embedded.postgres.account import SERVER_USERS, Account, PostgresUnavailable
from storage.files import OTHERS, NotPrivate, open_file, require_owner

PORT = 5432  # only part of the socket's name; always given, because PGPORT would change the default
SOCKET = f".s.PGSQL.{PORT}"
MAX_SOCKET_BYTES = 103  # on macOS; Linux takes 107
SOCKETS = re.compile(r"/tmp/sightline-\w+")
LAST_LINES = 8


@dataclass(frozen=True, slots=True)
class PostgresPaths:
    """Name the files of the Postgres in `home`, an absolute path."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "postgres"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def needs_link(self) -> bool:
        """Return whether clients need another folder for the socket.

        A socket's path is limited in length, and some characters have a meaning in a client's host.
        """
        is_short = len(os.fsencode(self.folder / SOCKET)) <= MAX_SOCKET_BYTES
        return not is_short or re.fullmatch(r"[\w/. +~-]+", str(self.folder)) is None

    @property
    def link(self) -> Path:
        """Return the link to a socket folder elsewhere."""
        return self.folder / "sockets"

    @property
    def sockets(self) -> Path:
        """Return the socket folder; `folder` until the link is made."""
        if self.needs_link:
            with suppress(FileNotFoundError):
                target = os.readlink(self.link)
                return Path(target) if SOCKETS.fullmatch(target) else self.folder
        return self.folder

    @property
    def url(self) -> str:
        query = {"host": str(self.sockets), "port": str(PORT)}
        url = URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)
        return url.render_as_string()

    @property
    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            file = open_file(self.log, os.O_RDONLY, owners=trusted_uids(self.home))
        except FileNotFoundError:
            return "(it has no log)"
        with os.fdopen(file, errors="replace") as log:
            return "\n".join(log.read().splitlines()[-LAST_LINES:])


def trusted_uids(home: Path) -> set[int]:
    """Return the user ids that may own files in a data directory.

    These are this user, and for root the owner of `home` and the accounts that run Postgres for root.
    """
    if os.geteuid() != ROOT:
        return {os.geteuid()}
    uids = {ROOT, home.stat().st_uid}
    for name in SERVER_USERS:
        with suppress(KeyError):
            uids.add(pwd.getpwnam(name).pw_uid)
    return uids


def ping(paths: PostgresPaths) -> pq.Ping:
    """Ping the server; REJECT means that it is starting or stopping.

    Raises:
        PostgresUnavailable: another user could have made the folder in `paths`.
    """
    if not paths.folder.exists():
        return pq.Ping.NO_RESPONSE
    _require_private(paths.folder, owners=trusted_uids(paths.home))
    if paths.needs_link and not _has_private_link(paths):
        return pq.Ping.NO_RESPONSE
    host = str(paths.sockets)
    conninfo = make_conninfo(host=host, port=PORT, user="postgres", dbname="postgres", connect_timeout=10)
    return pq.Ping(pq.PGconn.ping(conninfo.encode()))


def make_socket_folder(paths: PostgresPaths, account: Account) -> None:
    """Make the socket folder outside `paths.folder` if one is needed.

    It is below /tmp and not `tempfile.gettempdir()`, for a short name. Another user could be first to make
    a folder whose name can be guessed, and so prevent a start: the name is random, and `paths.link` holds it.
    """
    if not paths.needs_link:
        return
    if not _has_private_link(paths):
        try:
            paths.sockets.mkdir(mode=0o700)  # the name that clients of the last server know
        except FileExistsError:
            folder = Path(tempfile.mkdtemp(prefix="sightline-", dir="/tmp"))
            paths.link.unlink(missing_ok=True)
            paths.link.symlink_to(folder)
    os.chown(paths.sockets, account.uid, account.gid)


def _has_private_link(paths: PostgresPaths) -> bool:
    """Return whether the link leads to a private folder."""
    if paths.sockets == paths.folder:
        return False
    try:
        _require_private(paths.sockets, owners=trusted_uids(paths.home))
    except (FileNotFoundError, PostgresUnavailable):
        return False  # /tmp was emptied, and another user took the name since
    return True


def remove_socket_folder(paths: PostgresPaths) -> None:
    """Remove the folder of `make_socket_folder`; its name is used again."""
    if paths.sockets != paths.folder:
        with suppress(OSError):
            paths.sockets.rmdir()


def make_server_folder(folder: Path, account: Account) -> None:
    """Make a private folder, or check an existing one; set its owner.

    Raises:
        PostgresUnavailable: it exists and is not private.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _require_private(folder, owners={os.geteuid(), account.uid})
    if folder.stat().st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)


def _require_private(folder: Path, owners: Collection[int]) -> None:
    """Reject a folder that other users could have made or can enter."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PostgresUnavailable(
            f"{folder} must be a folder, and is {stat.filemode(found.st_mode)}; move it away"
        )
    try:
        require_owner(folder, found, owners=owners, closed=OTHERS)
    except NotPrivate as error:
        raise PostgresUnavailable(str(error)) from error
