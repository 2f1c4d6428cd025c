"""Open private files, write files atomically, and lock them.

Private files say which process is ended and where data are sent. Each is opened without following a link,
and then the opened file is checked, not its name, so that another user cannot swap it in between.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp

from storage.errors import SightlineError

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Answers of network file systems that sync files and no folders."""

PART = ".part"
"""Suffix of a temporary file; one that a killed process left can be removed while none writes."""

LOCK_POLL_S = 0.02
OTHERS = 0o077
OTHERS_WRITE = 0o022


class NotPrivate(SightlineError, PermissionError):
    """Reject a file or folder of another user, or a link."""


def atomic_write(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file atomically and durably, for its owner alone.

    The content goes to a temporary file beside `path`, which is synced and then renamed; at last the folder
    is synced. A reader finds the old content or the new one, also after a crash.

    Args:
        replace: False keeps a file that exists.

    Raises:
        OSError: nothing was written; a file that exists is unchanged, and the temporary file is removed.
    """
    file, name = mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        if replace:
            os.replace(name, path)
        else:
            with suppress(FileExistsError):
                os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    sync(path.parent)


def durable_rename(source: Path, target: Path) -> None:
    """Sync a file or a folder with its files, and rename it.

    A file of that name is replaced, as is an empty folder.
    """
    for path in (*source.rglob("*"), source):
        sync(path)
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in CANNOT_SYNC or not path.is_dir():
            raise
    finally:
        os.close(file)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the temporary files that killed processes left in a folder."""
    return list(folder.glob(f".*{PART}"))


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
    """Open a private folder and return its file descriptor; see `private_folder`."""
    folder = _open(path, os.O_RDONLY | os.O_DIRECTORY, None)
    try:
        found = os.fstat(folder)
        if found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE and found.st_mode & OTHERS:
            os.fchmod(folder, 0o700)  # a copy of a data directory has the modes that the umask left
            found = os.fstat(folder)
        require_owner(path, found, owners={os.geteuid()}, closed=OTHERS)
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
    """Read a file that no other user can have written.

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
    """Open a file that no other user can have written.

    Returns its descriptor.

    Args:
        path: its name; where `folder` is given, the last part of it counts.
        flags: as of `os.open`; a file that is made is for its owner alone.
        folder: the file descriptor of a folder.
        owners: the user ids that may own it; by default this user's.
        closed: the bits of its mode that must not be set.

    Raises:
        NotPrivate: it is a link, no plain file, another user's, or others may write it.
        FileNotFoundError: there is none.
    """
    file = _open(path, flags, folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise NotPrivate(f"{path} must be a plain file, and is {stat.filemode(found.st_mode)}")
        require_owner(path, found, owners={os.geteuid()} if owners is None else owners, closed=closed)
    except BaseException:
        os.close(file)
        raise
    return file


def require_owner(path: Path, found: os.stat_result, *, owners: Collection[int], closed: int) -> None:
    """Reject a file or folder by its owner and its mode.

    Args:
        path: its name, for the message.
        found: its status.
        owners: the user ids that may own it.
        closed: the bits of its mode that must not be set.

    Raises:
        NotPrivate: another user owns it, or one of these bits is set.
    """
    if found.st_uid not in owners or found.st_mode & closed:
        wanted = " or ".join(str(uid) for uid in sorted(owners))
        raise NotPrivate(
            f"{path} must belong to user {wanted} and be closed to others, and is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}; move it away"
        )


def _open(path: Path, flags: int, folder: int | None) -> int:
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


def take_lock(file: int) -> bool:
    """Take the exclusive lock of a file until the process ends.

    Returns:
        False if another process holds it.
    """
    while not _try_lock(file, fcntl.LOCK_EX):
        if is_locked(file):
            return False
        fcntl.flock(file, fcntl.LOCK_UN)  # another process was just checking whether it is held
        time.sleep(LOCK_POLL_S)
    return True


def is_locked(file: int) -> bool:
    """Return whether another process holds the lock of a file.

    Otherwise this one shares it until the file is closed.
    """
    return not _try_lock(file, fcntl.LOCK_SH)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
