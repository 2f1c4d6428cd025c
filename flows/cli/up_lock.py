"""Lock a data directory while `sightline up` runs, and find that process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.data_directory import make_data_directory
from storage.errors import Conflict
from storage.files import is_locked, open_file, take_lock


class UpRuns(Conflict):
    """Report that `sightline up` runs on the data directory."""

    def __init__(self, home: Path, pid: int) -> None:
        super().__init__(
            f"`sightline up` runs on {home} as process {pid}, and keeps its servers running; end it with "
            f"Ctrl-C in its terminal, with its service manager, or with: kill {pid}"
        )


@contextmanager
def lock_for_up(home: Path) -> Iterator[None]:
    """Hold the lock of `up`; the end of the process releases it.

    Raises:
        UpRuns: another process holds it.
    """
    make_data_directory(home)
    file = open_file(_path(home), os.O_RDWR | os.O_CREAT)
    try:
        if not take_lock(file):
            raise UpRuns(home, _pid(file))
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def require_not_up(home: Path) -> None:
    """Require that no `up` runs on a data directory.

    Raises:
        UpRuns: one does.
    """
    with suppress(FileNotFoundError):
        file = open_file(_path(home), os.O_RDWR)
        try:
            if is_locked(file):
                raise UpRuns(home, _pid(file))
        finally:
            os.close(file)


def _path(home: Path) -> Path:
    return home / "up.lock"


def _pid(file: int) -> int:
    """Return the process in the lock file, or 0 without one."""
    return int(os.pread(file, 20, 0) or 0)
