"""The data directory: whose it may be, and which of its files others may read, namely none.

A directory that another user could have filled is not used: a model, a database or a socket in it would run
or steer programs as this user. Root's are taken, since root can do all of that anyway.
"""

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from storage.files import OTHERS, atomic_write

POSTGRES = "postgres"
OURS = (
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
)
"""What this program writes there; anything else may be the user's, and keeps its mode."""

SCRATCH = ".scratch-"
ROOT = 0
PASSAGE = 0o011
"""Lets the account that runs root's Postgres pass through, and list nothing."""


class UntrustedDirectory(RuntimeError):
    """Another user made the data directory, or can write to it."""


class SecretUnusable(RuntimeError):
    """A file with a secret holds none, or others may read it."""


def require_trusted(directory: Path) -> None:
    """Refuse a data directory that another user made or can write to.

    Raises:
        UntrustedDirectory: it is such a directory; the message says what to change.
    """
    try:
        entry, found = directory.lstat(), directory.stat()
    except FileNotFoundError:
        _refuse_foreign_link(directory)
        return
    if stat.S_ISLNK(entry.st_mode):
        _refuse_owner(directory, entry.st_uid, "is a link of")
    _refuse_owner(directory, found.st_uid, "belongs to")
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and _has_other_members(found.st_gid)):
        raise UntrustedDirectory(
            f"others can write to {directory} ({stat.filemode(found.st_mode)}), and what they put there "
            f"could run programs as you; if all of it is yours, run: chmod go-w {directory}; else choose "
            "another SIGHTLINE_HOME"
        )


def make_data_directory(directory: Path) -> None:
    """Make the data directory, or restrict the one that is there.

    Raises:
        UntrustedDirectory: another user made it, or can write to it.
    """
    require_trusted(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700 | _passage())
        directory.chmod(0o700 | _passage())  # whatever the umask is: an account may have to pass
    restrict(directory)


def restrict(directory: Path) -> None:
    """Take all rights of others from the data directory and its files; none are added.

    Raises:
        UntrustedDirectory: another user made it, or can write to it.
    """
    require_trusted(directory)
    if not directory.is_dir():
        return
    _take(directory, OTHERS & ~_passage())
    for entry in _ours(directory):
        if not entry.is_dir(follow_symlinks=False):
            _take(Path(entry.path))
        elif entry.stat(follow_symlinks=False).st_mode & OTHERS:
            _restrict_below(Path(entry.path))


def make_private_folder(folder: Path) -> None:
    """Make a folder in the data directory that its owner alone may enter."""
    make_data_directory(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """Return the secret that a file keeps, made when it is first needed.

    Raises:
        SecretUnusable: the file holds none, or others may read it.
    """
    with suppress(FileNotFoundError):
        return _secret_in(path)
    atomic_write(path, f"{make()}\n".encode(), replace=False)
    return _secret_in(path)  # of another process, if that was first


def _secret_in(path: Path) -> str:
    found, secret = path.stat(), path.read_text().strip()
    if found.st_uid not in (ROOT, os.geteuid()) or found.st_mode & OTHERS or not secret:
        raise SecretUnusable(
            f"{path} must hold a secret, be yours and have mode 0600; remove it, and another is made at the "
            "next start"
        )
    return secret


def _ours(directory: Path) -> "Iterator[os.DirEntry[str]]":
    with suppress(PermissionError), os.scandir(directory) as entries:
        for entry in entries:
            known = entry.name in OURS or entry.name.startswith(SCRATCH)
            if known and not entry.is_symlink():
                yield entry


def _restrict_below(folder: Path) -> None:
    """Restrict what is in a folder, then the folder: a walk that was interrupted is done again."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _take(Path(place) / name)
        _take(Path(place))


def _take(path: Path, rights: int = OTHERS) -> None:
    """Take rights from a file of this user's that may be gone meanwhile; a link is left as it is."""
    with suppress(FileNotFoundError):
        found = path.lstat() if path.is_symlink() else path.stat()
        if found.st_mode & rights and found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode):
            path.chmod(stat.S_IMODE(found.st_mode) & ~rights)


def _passage() -> int:
    return PASSAGE if os.geteuid() == ROOT else 0


def _refuse_foreign_link(directory: Path) -> None:
    with suppress(FileNotFoundError):
        _refuse_owner(directory, directory.lstat().st_uid, "is a link of")


def _refuse_owner(directory: Path, owner: int, how: str) -> None:
    if owner in (ROOT, os.geteuid()):
        return
    raise UntrustedDirectory(
        f"{directory} {how} user {_name(owner)}, and what is in it could run programs as "
        f"{_name(os.geteuid())}; run as user {_name(owner)}, or choose another SIGHTLINE_HOME"
    )


def _has_other_members(gid: int) -> bool:
    """Return whether a group has members beside this user and root."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    with suppress(KeyError):
        for name in grp.getgrgid(gid).gr_mem:
            with suppress(KeyError):
                members.add(pwd.getpwnam(name).pw_uid)
    return bool(members - {ROOT, os.geteuid()})


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
