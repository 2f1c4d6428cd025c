"""Open regular files of a source, none outside its folder."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from storage.errors import SightlineError

LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
"""Errors of systems where `O_NOFOLLOW` meets a link; the last one is that of FreeBSD."""

FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without blocking: a pipe would wait for its other end."""

FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECTORY


class OutsideFolder(SightlineError, OSError):
    """Signal a link that leads out of the folder of the source."""


def open_file(path: str, folder: Path | None = None) -> BinaryIO:
    """Open a regular file.

    Args:
        path: absolute, or relative to `folder`.
        folder: resolved; the file lies below it, even if links are placed on the way meanwhile.

    Raises:
        OutsideFolder: a link leads out of `folder`.
        FileNotFoundError: there is no regular file.
        OSError, ValueError: it cannot be opened.
    """
    number = os.open(path, FILE) if folder is None else _open_below(path, folder)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise FileNotFoundError(errno.ENOENT, "Is a folder or a device")
    except BaseException:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def _open_below(path: str, folder: Path) -> int:
    """Open a file step by step from its folder.

    The path is resolved first, so a link found on the way is rejected.
    """
    real = Path(os.path.realpath(folder / path))
    if not real.is_relative_to(folder):
        raise OutsideFolder(errno.EPERM, f"leads out of {folder}")
    *folders, name = real.relative_to(folder).parts or (".",)
    at = os.open(folder, FOLDER)
    try:
        for step in folders:
            inner = _step(step, FOLDER, at, folder)
            os.close(at)
            at = inner
        return _step(name, FILE, at, folder)
    finally:
        os.close(at)


def _step(name: str, flags: int, at: int, folder: Path) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        is_link = error.errno in LINK_ERRORS and _is_link(name, at)
        if is_link:
            raise OutsideFolder(errno.EPERM, f"a link was put there that may lead out of {folder}") from error
        raise


def _is_link(name: str, at: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
