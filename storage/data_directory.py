"""Make the data directory, and keep other users out of it.

A directory that another user could have filled is rejected: a model, a database or a socket in it would run
or steer programs as this user. A directory of root is accepted, since root can do all of that anyway.
"""

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from storage.errors import SightlineError
from storage.files import OTHERS, atomic_write

POSTGRES = "postgres"
MANAGED = (
    "backups",
    "console.key",
    "console.password",
    "demo",
    "models",
    "pictures",
    POSTGRES + ".lock",
    "prefect",
    "qdrant",
    "qdrant.json",
    "receipts",
    "restoring.json",
    "training",
    "up.lock",
)
"""Entries that this program writes; others may be the user's, and keep their modes."""

SCRATCH = ".scratch-"
ROOT = 0
PASSAGE = 0o011
"""Mode bits that let the account of root's Postgres pass through, and list nothing."""


class UntrustedDirectory(SightlineError):
    """Report a data directory that another user made or can write to."""


class SecretUnusable(SightlineError):
    """Report a file that holds no secret, or that others may read."""


def require_trusted(directory: Path) -> None:
    """Reject a data directory that another user made or can write to.

    Raises:
        UntrustedDirectory: it is such a directory; the message names the remedy.
    """
    try:
        entry, found = directory.lstat(), directory.stat()
    except FileNotFoundError:
        _reject_foreign_link(directory)
        return
    if stat.S_ISLNK(entry.st_mode):
        _reject_owner(directory, entry.st_uid, "is a link of")
    _reject_owner(directory, found.st_uid, "belongs to")
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and _has_other_members(found.st_gid)):
        raise UntrustedDirectory(
            f"others can write to {directory} ({stat.filemode(found.st_mode)}), and what they put there "
            f"could run programs as you; if all of it is yours, run: chmod go-w {directory}; else choose "
            "another SIGHTLINE_HOME"
        )


def make_data_directory(directory: Path) -> None:
    """Make the data directory, or restrict an existing one.

    Raises:
        UntrustedDirectory: another user made it, or can write to it.
    """
    require_trusted(directory)
    missing = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | _passage())
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700 | _passage())
        directory.chmod(0o700 | _passage())  # independent of the umask, which may close the passage
    restrict(directory)


def restrict(directory: Path) -> None:
    """Revoke all access of others to the data directory; grant none.

    Raises:
        UntrustedDirectory: another user made it, or can write to it.
    """
    require_trusted(directory)
    if not directory.is_dir():
        return
    _revoke(directory, OTHERS & ~_passage())
    for entry in _managed_entries(directory):
        if not entry.is_dir(follow_symlinks=False):
            _revoke(Path(entry.path))
        elif entry.stat(follow_symlinks=False).st_mode & OTHERS:
            _restrict_below(Path(entry.path))


def make_private_folder(folder: Path) -> None:
    """Make a private folder in the data directory."""
    make_data_directory(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def load_or_create_secret(path: Path, create: Callable[[], str]) -> str:
    """Read a secret from a file, or create it.

    Raises:
        SecretUnusable: the file holds none, or others may read it.
    """
    with suppress(FileNotFoundError):
        return _read_secret(path)
    atomic_write(path, f"{create()}\n".encode(), replace=False)
    return _read_secret(path)  # of another process, if that was first


def user_name(uid: int) -> str:
    """Return the name of a user, or the id without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read_secret(path: Path) -> str:
    found, secret = path.stat(), path.read_text().strip()
    if found.st_uid not in (ROOT, os.geteuid()) or found.st_mode & OTHERS or not secret:
        raise SecretUnusable(
            f"{path} must hold a secret, be yours and have mode 0600; remove it, and another is made at the "
            "next start"
        )
    return secret


def _managed_entries(directory: Path) -> "Iterator[os.DirEntry[str]]":
    with suppress(PermissionError), os.scandir(directory) as entries:
        for entry in entries:
            known = entry.name in MANAGED or entry.name.startswith(SCRATCH)
            if known and not entry.is_symlink():
                yield entry


def _restrict_below(folder: Path) -> None:
    """Restrict the content of a folder, then the folder.

    So a walk that was interrupted is repeated.
    """
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _revoke(Path(place) / name)
        _revoke(Path(place))


def _revoke(path: Path, rights: int = OTHERS) -> None:
    """Revoke mode bits of a file of this user; skip links.

    The file may be gone meanwhile.
    """
    with suppress(FileNotFoundError):
        found = path.lstat() if path.is_symlink() else path.stat()
        if found.st_mode & rights and found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode):
            path.chmod(stat.S_IMODE(found.st_mode) & ~rights)


def _passage() -> int:
    return PASSAGE if os.geteuid() == ROOT else 0


def _reject_foreign_link(directory: Path) -> None:
    with suppress(FileNotFoundError):
        _reject_owner(directory, directory.lstat().st_uid, "is a link of")


def _reject_owner(directory: Path, owner: int, how: str) -> None:
    if owner in (ROOT, os.geteuid()):
        return
    raise UntrustedDirectory(
        f"{directory} {how} user {user_name(owner)}, and what is in it could run programs as "
        f"{user_name(os.geteuid())}; run as user {user_name(owner)}, or choose another SIGHTLINE_HOME"
    )


def _has_other_members(gid: int) -> bool:
    """Return whether a group has members beside this user and root."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    with suppress(KeyError):
        for name in grp.getgrgid(gid).gr_mem:
            with suppress(KeyError):
                members.add(pwd.getpwnam(name).pw_uid)
    return bool(members - {ROOT, os.geteuid()})
