"""Servers that outlive the test's process, and are stopped after the test."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

from sqlalchemy import URL

from storage.embedded.postgres.server import stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.embedded.qdrant.process.discovery import Access

PATIENCE_S = 30
ONCE_A_YEAR = "30 4 1 1 *"
"""A schedule by which nothing runs while tests do."""

TEMPORARY = {Path("/dev/shm"), Path(gettempdir())}
HomeAt = Callable[[Path], Path]


def environment_of(home: Path, database: URL, access: Access, model: Path) -> dict[str, str]:
    """Return the variables that make a command use these stores."""
    return {
        "SIGHTLINE_HOME": str(home),
        "SIGHTLINE_DATABASE_URL": database.render_as_string(hide_password=False),
        "SIGHTLINE_QDRANT__URL": access.url,
        "SIGHTLINE_QDRANT__API_KEY": access.key,
        "SIGHTLINE_MODEL": str(model),
    }


def environment_with_flows(home: Path, model: Path) -> dict[str, str]:
    """Return the variables with which a command serves or starts flows."""
    return {
        "SIGHTLINE_HOME": str(home),
        "SIGHTLINE_MODEL": str(model),
        "SIGHTLINE_DECODE_WORKERS": "0",
        "SIGHTLINE_SCHEDULES__INGEST": ONCE_A_YEAR,
        "SIGHTLINE_SCHEDULES__EVALUATE": ONCE_A_YEAR,
        "SIGHTLINE_SCHEDULES__RECONCILE": ONCE_A_YEAR,
        "SIGHTLINE_SCHEDULES__PURGE": ONCE_A_YEAR,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def homes() -> Iterator[HomeAt]:
    """Yield a function that makes homes; their servers are stopped afterwards."""
    with ExitStack() as stops:

        def home_at(path: Path) -> Path:
            stops.callback(stop_postgres, path)
            stops.callback(stop_index, path)
            return let_in(path)

        yield home_at


def let_in(folder: Path) -> Path:
    """Let the account of root's Postgres pass to a temporary folder."""
    if os.geteuid() == 0 and not TEMPORARY.isdisjoint(folder.parents):
        for one in takewhile(lambda path: path not in TEMPORARY, (folder, *folder.parents)):
            if one.is_dir():
                one.chmod(one.stat().st_mode | 0o011)
    return folder


def is_gone(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
