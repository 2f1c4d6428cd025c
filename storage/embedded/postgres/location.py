"""Where the Postgres of a home folder keeps its things, and whether it answers there."""

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

from storage.embedded.postgres.account import SERVER_USERS, Account, PostgresUnavailable
from storage.files import open_file

PORT = 5432  # only part of the socket's name; always said, because PGPORT would change the default
SOCKET = f".s.PGSQL.{PORT}"
MAX_SOCKET_BYTES = 103  # on macOS; Linux takes 107
SOCKETS = re.compile(r"/tmp/sightline-\w+")
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
    def needs_link(self) -> bool:
        """Return whether a client could not name a socket in `folder`.

        A socket's path is limited in length, and some characters mean something in a client's host.
        """
        is_short = len(os.fsencode(self.folder / SOCKET)) <= MAX_SOCKET_BYTES
        return not is_short or re.fullmatch(r"[\w/. +~-]+", str(self.folder)) is None

    @property
    def link(self) -> Path:
        """Return the link to the socket's folder, where that is elsewhere."""
        return self.folder / "sockets"

    @property
    def sockets(self) -> Path:
        """Return the folder of the socket; `folder` until the link is made."""
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
    def last_words(self) -> str:
        """The end of the server's log."""
        try:
            file = open_file(self.log, os.O_RDONLY, owners=trusted(self.home))
        except FileNotFoundError:
            return "(it has no log)"
        with os.fdopen(file, errors="replace") as log:
            return "\n".join(log.read().splitlines()[-LAST_LINES:])


def trusted(home: Path) -> set[int]:
    """Return the users whose files in `home` are believed.

    These are this user, and for root the owner of `home` and the users that root runs Postgres as.
    """
    if os.geteuid() != 0:
        return {os.geteuid()}
    uids = {0, home.stat().st_uid}
    for name in SERVER_USERS:
        with suppress(KeyError):
            uids.add(pwd.getpwnam(name).pw_uid)
    return uids


def ping(place: Place) -> pq.Ping:
    """Return what a connection would meet; REJECT is a server on its way up or down.

    Raises:
        PostgresUnavailable: another user could have made the folder of `place`.
    """
    if not place.folder.exists():
        return pq.Ping.NO_RESPONSE
    _require_private(place.folder, owners=trusted(place.home))
    if place.needs_link and not _is_ours(place):
        return pq.Ping.NO_RESPONSE
    host = str(place.sockets)
    conninfo = make_conninfo(host=host, port=PORT, user="postgres", dbname="postgres", connect_timeout=10)
    return pq.Ping(pq.PGconn.ping(conninfo.encode()))


def make_sockets(place: Place, account: Account) -> None:
    """Make the folder of the socket, if it needs another than `place.folder`.

    It is below /tmp and not `tempfile.gettempdir()`, for a short name. Another user could be first to make
    a folder whose name can be guessed, and so prevent a start: the name is random, and `place.link` says it.
    """
    if not place.needs_link or _is_ours(place):
        return
    try:
        place.sockets.mkdir(mode=0o700)  # the name that clients of the last server know
        folder = place.sockets
    except FileExistsError:
        folder = Path(tempfile.mkdtemp(prefix="sightline-", dir="/tmp"))
        place.link.unlink(missing_ok=True)
        place.link.symlink_to(folder)
    os.chown(folder, *account.folder_owner)


def _is_ours(place: Place) -> bool:
    """Return whether the link leads to a private folder of ours."""
    if place.sockets == place.folder:
        return False
    try:
        _require_private(place.sockets, owners=trusted(place.home))
    except (FileNotFoundError, PostgresUnavailable):
        return False  # /tmp was emptied, and another user took the name since
    return True


def remove_sockets(place: Place) -> None:
    """Remove the folder that `make_sockets` made; its name is used again."""
    if place.sockets != place.folder:
        with suppress(OSError):
            place.sockets.rmdir()


def make_server_folder(folder: Path, account: Account) -> None:
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
        wanted = " or ".join(str(uid) for uid in sorted(owners))
        raise PostgresUnavailable(
            f"{folder} must be a folder with mode 0700 that belongs to user {wanted}, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}; correct it, or move it away"
        )
