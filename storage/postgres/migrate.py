"""Migrate a database to the current schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, func, select


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Apply the outstanding migrations up to `revision`.

    Concurrent processes wait for each other; the caller commits.

    Of several processes that start at once one migrates and the others wait; the caller commits.
    """
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("sightline migrations", 0))))
    command.upgrade(_config(connection), revision)


def revision_of(connection: Connection) -> str | None:
    """Return the last applied migration, or None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
