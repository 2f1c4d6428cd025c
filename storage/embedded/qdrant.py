"""Qdrant's own engine inside this process, over `home/qdrant`: one process at a time."""

import fcntl
import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from qdrant_client import QdrantClient

MAX_COMMAND_CHARS = 120
EXPECTED_WARNINGS = (
    "Payload indexes have no effect in the local Qdrant",
    "Local mode is not recommended for collections with more than",
)


class IndexBusy(RuntimeError):
    """Another process has the local index open, or this one has already; it works again once that ends."""


@contextmanager
def local_qdrant(home: Path) -> Iterator[QdrantClient]:
    """Open the index in `home/qdrant`, made on first use; close it on the way out.

    The client writes only in the thread that opened it.

    Raises:
        IndexBusy: it is open already; the message names by whom, and the way out.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _held(home):
        _expect_warnings()
        client = QdrantClient(path=str(home / "qdrant"))
        try:
            yield client
        finally:
            client.close()


@contextmanager
def _held(home: Path) -> Iterator[None]:
    # The lock goes with the process, however that ends; what the file says only serves the message.
    with (home / "qdrant.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise IndexBusy(
                f"the index in {home / 'qdrant'} is in use by {_holder(file.read())}; wait for that to end, "
                "or set SIGHTLINE_QDRANT__URL to a Qdrant server, which many can use at once"
            ) from error
        try:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "command": _command(), "since": _now()}))
            file.flush()
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # also for children that this process forked meanwhile


def _holder(note: str) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['pid']} (`{holder['command']}`, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process, which has only just opened it"


def _command() -> str:
    argv = sys.argv or ["python"]
    return shlex.join([Path(argv[0]).name, *argv[1:]])[:MAX_COMMAND_CHARS]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _expect_warnings() -> None:
    """Silence, for the rest of the process, what is known and meant about the local engine.

    Not undone on the way out: filters belong to the whole process, and putting back an old list would
    undo what other threads have set meanwhile. Only these two messages are concerned, and setting the
    same filter again replaces it.
    """
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
