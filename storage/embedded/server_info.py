"""What is told about one of the servers that run in a home folder."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Server:
    """A server of our own that runs now."""

    name: str
    address: str
    pid: int
    since: datetime
    bytes: int
    """What its files take on the disk."""

    points: int | None = None
    """How many points all its collections hold; None where there are none to hold."""


def disk_bytes(folder: Path) -> int:
    """Return what the files below `folder` take on the disk; one that goes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(place) / name).st_blocks * BLOCK_BYTES
    return total
