"""A database of Prefect that has its tables: each new server spends seconds on making them."""

import fcntl
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from flows.orchestration.server import embedded_server
from storage.data_directory import make_private_folder
from tests.support.processes import a_free_port


def made_once(folder: Path) -> Path:
    """Return the database of a folder, which whoever comes first makes; others wait."""
    folder.mkdir(exist_ok=True)
    database = folder / "tables.db"
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            with embedded_server(folder, a_free_port()):
                pass
            with closing(sqlite3.connect(folder / "prefect" / "prefect.db")) as made:
                made.execute("vacuum into ?", (str(database),))
    return database


def give(home: Path, database: Path) -> None:
    """Give a data directory a copy of the database."""
    make_private_folder(home / "prefect")
    shutil.copyfile(database, home / "prefect" / "prefect.db")
