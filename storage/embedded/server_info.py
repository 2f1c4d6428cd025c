"""Describe the servers that run in a data directory."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Server:
    """Represent an embedded server that runs."""

    name: str
    address: str
    pid: int
    since: datetime
    bytes: int
    """Disk space of its files, in bytes."""

    points: int | None = None
    """Number of points in all its collections; None for Postgres."""


def disk_bytes(folder: Path) -> int:
    """Return the disk space of the files below a folder, in bytes.

    A file that is removed meanwhile counts nothing.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(place) / name).st_blocks * BLOCK_BYTES
    return total
