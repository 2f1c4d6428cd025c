"""A database of Prefect that has its tables: each new server spends seconds on making them."""

import asyncio
import fcntl
import shutil
from pathlib import Path

from prefect.server.database import provide_database_interface
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from storage.data_directory import make_private_folder


def made_once(folder: Path) -> Path:
    """Return the database of a folder, which whoever comes first makes; others wait."""
    folder.mkdir(exist_ok=True)
    database = folder / "tables.db"
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            asyncio.run(make_tables(database))
    return database


async def make_tables(database: Path) -> None:
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}"}):
        prefect = provide_database_interface()
        await prefect.create_db()
        await (await prefect.engine()).dispose()


def give(home: Path, database: Path) -> None:
    """Give a data directory a copy of the database."""
    make_private_folder(home / "prefect")
    shutil.copyfile(database, home / "prefect" / "prefect.db")
