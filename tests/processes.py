"""Servers that outlive the test's process: made for one test, waited for, and gone afterwards."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import URL

from storage.embedded.postgres import stop_postgres
from storage.embedded.qdrant.access import Access
from storage.embedded.qdrant.client import stop as stop_index

PATIENCE_S = 30

HomeAt = Callable[[Path], Path]


def environment_of(home: Path, database: URL, access: Access, model: Path) -> dict[str, str]:
    """Return the variables with which a command uses these stores and this model."""
    return {
        "SIGHTLINE_HOME": str(home),
        "SIGHTLINE_DATABASE_URL": database.render_as_string(hide_password=False),
        "SIGHTLINE_QDRANT__URL": access.url,
        "SIGHTLINE_QDRANT__API_KEY": access.key,
        "SIGHTLINE_MODEL": str(model),
    }


@contextmanager
def homes() -> Iterator[HomeAt]:
    """Yield what makes a folder a home, whose servers are stopped afterwards."""
    with ExitStack() as stops:

        def home_at(path: Path) -> Path:
            stops.callback(stop_postgres, path)
            stops.callback(stop_index, path)
            return path

        yield home_at


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
