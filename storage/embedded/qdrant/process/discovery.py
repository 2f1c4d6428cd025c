"""Find the owner of an index by lock and address file.

The lock ends with the process, however that ends, and the file is trusted only while the process that it
names holds the lock. Our own client reaches the owner by a socket in the index's folder, which
no other user may enter: so neither the key nor any data reach another user who took the port meanwhile.
"""

import os
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from storage.data_directory import make_data_directory
from storage.errors import StoreUnavailable
from storage.files import (
    NotPrivate,
    atomic_write,
    is_locked,
    make_folder,
    open_file,
    private_folder,
    read_bytes,
    take_lock,
)

HOST = "127.0.0.1"
ALREADY_OWNED = 3
"""Exit status of an owner that found another one."""

SOCKET = "socket"
LOCK = "lock"
KEY_BYTES = 32
MAX_SOCKET_BYTES = 103  # on macOS; Linux takes 107
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class AlreadyOwned(StoreUnavailable):
    """Report that another process owns this index."""


class Access(BaseModel, frozen=True):
    """Represent the address and the key of an owner."""

    url: str
    key: str
    pid: int
    since: datetime


def folder_of(home: Path) -> Path:
    """Return the folder of the index."""
    return home.resolve() / "qdrant"


def access_file(home: Path) -> Path:
    """Return the private file with the owner's address and key."""
    return home.resolve() / "qdrant.json"


def find(home: Path) -> Access | None:
    """Find the listening owner of an index; None if there is none.

    Raises:
        NotPrivate: another user can have written the lock or the address file.
    """
    pid = _holder(home)
    known = _read(access_file(home)) if pid is not None else None
    return known if known is not None and pid == known.pid else None


def is_owned(home: Path) -> bool:
    """Return whether an index has an owner, even a starting one."""
    return _holder(home) is not None


def socket_path(folder: int, path: Path) -> str:
    """Return the name of the socket in an open folder.

    On Linux it leads through the file descriptor into the folder that was opened, even if another one has its
    name by now, and for names of any length.

    Raises:
        NotPrivate: elsewhere, the path is too long to name a socket.
    """
    if Path("/proc/self/fd").is_dir():
        return f"/proc/self/fd/{folder}/{SOCKET}"
    name = str(path / SOCKET)
    if len(os.fsencode(name)) > MAX_SOCKET_BYTES:
        raise NotPrivate(f"{name} is too long for the name of a socket; choose a shorter SIGHTLINE_HOME")
    return name


def is_listening(home: Path, access: Access) -> bool:
    """Return whether the process of `access` listens at the socket.

    The kernel says which process does; on systems without SO_PEERCRED, any process counts.
    """
    path = folder_of(home)
    with private_folder(path) as folder, socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(socket_path(folder, path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        if not hasattr(socket, "SO_PEERCRED"):
            return True
        found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        return bool(CREDENTIALS.unpack(found)[0] == access.pid)


def new_key() -> str:
    """Return a random key for one owner process."""
    return secrets.token_urlsafe(KEY_BYTES)


def announce(home: Path, port: int, key: str) -> Access:
    """Write the address of this process, which holds the lock."""
    access = Access(url=f"http://{HOST}:{port}", key=key, pid=os.getpid(), since=datetime.now(UTC))
    atomic_write(access_file(home), access.model_dump_json(indent=1).encode())
    return access


def is_announced(home: Path) -> bool:
    """Return whether the file names this process and the socket exists."""
    try:
        known = _read(access_file(home))
        has_socket = (folder_of(home) / SOCKET).is_socket()
    except NotPrivate:
        return False
    return known is not None and known.pid == os.getpid() and has_socket


def withdraw(home: Path) -> None:
    """Remove the file that names this process.

    No program then sends its key to the port, which another user may have taken.
    """
    known = _read(access_file(home))
    if known is not None and known.pid == os.getpid():
        access_file(home).unlink(missing_ok=True)


@contextmanager
def ownership(home: Path) -> Iterator[int]:
    """Hold the lock of the index of a data directory.

    Yields:
        The file descriptor of the index's folder.

    Raises:
        AlreadyOwned: another process holds it.
        NotPrivate: another user can have written the folder or the lock.
    """
    path = folder_of(home)
    make_data_directory(home)
    make_folder(path)
    with (
        private_folder(path) as folder,
        os.fdopen(open_file(path / LOCK, os.O_RDWR | os.O_CREAT, folder=folder), "r+") as file,
    ):
        if not take_lock(file.fileno()):
            raise AlreadyOwned(f"another process owns the index in {path}")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield folder


def _holder(home: Path) -> int | None:
    path = folder_of(home)
    with (
        suppress(FileNotFoundError),
        private_folder(path) as folder,
        os.fdopen(open_file(path / LOCK, os.O_RDONLY, folder=folder)) as file,
    ):
        if is_locked(file.fileno()):
            return int(file.read() or 0)
    return None


def _read(path: Path) -> Access | None:
    with suppress(FileNotFoundError, ValidationError):
        return Access.model_validate_json(read_bytes(path))
    return None
