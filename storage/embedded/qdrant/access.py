"""How the owner of a home's index is found: a lock that it holds, and a file that says where it listens.

The lock goes with the process, however that ends, and the file is believed only while the lock is held by
the process that the file names. So nobody sends the key to a stranger who was given the port meanwhile.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from storage.embedded.qdrant.state import write_atomically

HOST = "127.0.0.1"
OWNED_ELSEWHERE = 3
"""Exit status of an owner that found another one."""

KEY_BYTES = 32
POLL_S = 0.02


class OwnedElsewhere(RuntimeError):
    """Another process owns this index already."""


class Access(BaseModel, frozen=True):
    """What a client needs, and what `sightline status` shows."""

    url: str
    key: str
    pid: int
    since: datetime


def folder_of(home: Path) -> Path:
    """Return where the index of `home` keeps its files."""
    return home.resolve() / "qdrant"


def access_file(home: Path) -> Path:
    """Return the file that holds the address and the key, readable by its owner alone."""
    return home.resolve() / "qdrant.json"


def find(home: Path) -> Access | None:
    """Return how to reach the owner of `home`'s index, or None while there is none that listens."""
    pid = _holder(folder_of(home) / "lock")
    known = _read(access_file(home))
    return known if known is not None and pid == known.pid else None


def is_owned(home: Path) -> bool:
    """Whether `home`'s index has an owner, be it one that listens, or that just starts or ends."""
    return _holder(folder_of(home) / "lock") is not None


def announce(home: Path, port: int, key: str) -> Access:
    """Tell the others where this process, which holds the lock, listens."""
    access = Access(url=f"http://{HOST}:{port}", key=key, pid=os.getpid(), since=datetime.now(UTC))
    write_atomically(access_file(home), access.model_dump_json(indent=1).encode())
    return access


def last_port_and_key(home: Path) -> tuple[int, str]:
    """Return what the last owner used, so that clients that know it go on working; else 0 and a new key."""
    known = _read(access_file(home))
    if known is None:
        return 0, secrets.token_urlsafe(KEY_BYTES)
    return int(known.url.rpartition(":")[2]), known.key


def is_announced(home: Path) -> bool:
    """Whether the file still names this process; not once the home folder is gone."""
    known = _read(access_file(home))
    return known is not None and known.pid == os.getpid()


@contextmanager
def ownership(home: Path) -> Iterator[None]:
    """Be the one process that may open the index of `home`.

    Raises:
        OwnedElsewhere: another one is.
    """
    folder = folder_of(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        while not _locks(file.fileno(), fcntl.LOCK_EX):
            if not _locks(file.fileno(), fcntl.LOCK_SH):
                raise OwnedElsewhere(f"another process owns the index in {folder}")
            fcntl.flock(file, fcntl.LOCK_UN)  # someone was just looking whether it is held
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(path: Path) -> int | None:
    with suppress(FileNotFoundError), path.open() as file:
        if not _locks(file.fileno(), fcntl.LOCK_SH):
            return int(file.read() or 0)
    return None


def _locks(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Access | None:
    with suppress(FileNotFoundError, ValidationError):
        return Access.model_validate_json(path.read_bytes())
    return None
