"""Open files and folders that no other user can have written.

Such files say which process is ended and where data are sent. Each is opened without following a link, and
then the opened file is checked, not its name, so that another user cannot swap it in between.
"""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077
OTHERS_WRITE = 0o022


class NotPrivate(PermissionError):
    """Another user's file or folder, or a link, is where ours must be."""


@contextmanager
def private_folder(path: Path) -> Iterator[int]:
    """Open a folder that this user alone may enter.

    Yields:
        Its file descriptor, closed afterwards.

    Raises:
        NotPrivate: it is a link, another user's, or open to others.
        FileNotFoundError: there is none.
    """
    folder = open_folder(path)
    try:
        yield folder
    finally:
        os.close(folder)


def open_folder(path: Path) -> int:
    """Return the file descriptor of a private folder; see `private_folder`."""
    folder = _opened(path, os.O_RDONLY | os.O_DIRECTORY, None)
    try:
        found = os.fstat(folder)
        if found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE and found.st_mode & OTHERS:
            os.fchmod(folder, 0o700)  # a copy of a home has the modes that the umask left
            found = os.fstat(folder)
        _require(path, found, owners={os.geteuid()}, closed=OTHERS)
    except BaseException:
        os.close(folder)
        raise
    return folder


def make_folder(path: Path) -> None:
    """Make a folder that this user alone may enter, unless it exists.

    Raises:
        NotPrivate: it is a link, another user's, or open to others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with private_folder(path):
        pass


def read_bytes(path: Path) -> bytes:
    """Return the content of a file that no other user can have written.

    Raises:
        NotPrivate: it is a link, no plain file, another user's, or others may write it.
        FileNotFoundError: there is none.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def open_file(
    path: Path,
    flags: int,
    *,
    folder: int | None = None,
    owners: Collection[int] | None = None,
    closed: int = OTHERS_WRITE,
) -> int:
    """Return the descriptor of a file that no other user can have written.

    Args:
        path: its name; where `folder` is given, the last part of it counts.
        flags: as of `os.open`; a file that is made is for its owner alone.
        folder: the file descriptor of a folder.
        owners: whose file it may be; by default this user's.
        closed: the bits of its mode that must not be set.

    Raises:
        NotPrivate: it is a link, no plain file, another user's, or others may write it.
        FileNotFoundError: there is none.
    """
    file = _opened(path, flags, folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise NotPrivate(f"{path} must be a plain file, and is {stat.filemode(found.st_mode)}")
        _require(path, found, owners={os.geteuid()} if owners is None else owners, closed=closed)
    except BaseException:
        os.close(file)
        raise
    return file


def _opened(path: Path, flags: int, folder: int | None) -> int:
    name = path if folder is None else path.name
    try:
        # without waiting, because opening a pipe would wait for its other end
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise NotPrivate(f"{path} is a link, which is not followed; move it away") from error
        raise


def _require(path: Path, found: os.stat_result, *, owners: Collection[int], closed: int) -> None:
    if found.st_uid not in owners or found.st_mode & closed:
        wanted = " or ".join(str(uid) for uid in sorted(owners))
        raise NotPrivate(
            f"{path} must belong to user {wanted} and be closed to others, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}; move it away"
        )
