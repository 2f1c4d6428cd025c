"""Where the Postgres of a home folder keeps its things, and whether it answers there."""

import hashlib
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from psycopg import pq
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from storage.embedded.account import Account, PostgresUnavailable

PORT = 5432  # only part of the socket's name; always said, because PGPORT would change the default
SOCKET = f".s.PGSQL.{PORT}"
MAX_SOCKET_BYTES = 103  # on macOS; Linux takes 107
LAST_LINES = 8


@dataclass(frozen=True, slots=True)
class Place:
    """The folders and files of the Postgres of `home`, which is an absolute path."""

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
    def sockets(self) -> Path:
        """The folder of the socket: `folder`, unless a client could not name a socket there.

        A socket's path is limited in length, and some characters mean something in a client's host.
        The other place is below /tmp and not `tempfile.gettempdir()`: processes that share this home
        must find it whatever their TMPDIR.
        """
        is_short = len(os.fsencode(self.folder / SOCKET)) <= MAX_SOCKET_BYTES
        if is_short and re.fullmatch(r"[\w/. +~-]+", str(self.folder)):
            return self.folder
        return Path("/tmp") / f"sightline-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]}"

    @property
    def url(self) -> str:
        query = {"host": str(self.sockets), "port": str(PORT)}
        url = URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)
        return url.render_as_string()

    @property
    def last_words(self) -> str:
        """The end of the server's log."""
        if not self.log.exists():
            return "(it has no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])


def ping(place: Place) -> pq.Ping:
    """Return what a connection would meet; REJECT is a server on its way up or down."""
    if not place.folder.exists():
        return pq.Ping.NO_RESPONSE
    if place.sockets != place.folder and os.path.lexists(place.sockets):
        _require_private(place.sockets, owners={0, place.folder.stat().st_uid})
    host = str(place.sockets)
    conninfo = make_conninfo(host=host, port=PORT, user="postgres", dbname="postgres", connect_timeout=10)
    return pq.Ping(pq.PGconn.ping(conninfo.encode()))


def make_private(folder: Path, account: Account) -> None:
    """Make `folder`, or take it as it is if none but its owner may enter; hand it to `account`.

    Raises:
        PostgresUnavailable: it is there, and is not such a folder.
    """
    uid, gid = account.folder_owner
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _require_private(folder, owners={os.geteuid(), account.uid})
    if folder.stat().st_uid != uid:
        os.chown(folder, uid, gid)


def _require_private(folder: Path, owners: Collection[int]) -> None:
    """Refuse a folder that another user could have made, or could put a socket of their own into."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
        raise PostgresUnavailable(
            f"{folder} must be a folder with mode 0700 that belongs to user {max(owners)}, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}; correct it, or move it away"
        )
