"""Our Postgres tables as files, by the server's own tools or by COPY, and back."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import Connection, Engine, Table, func, inspect, select, text

from storage import migrate
from storage.embedded.account import PostgresUnavailable
from storage.embedded.postgres import find_binaries
from storage.schema import Base, SeenRow

ARCHIVE = "postgres.dump"
VERSIONS = "alembic_version"
TIMEOUT_S = 6 * 3600
LOCK_TIMEOUT_MS = 60_000
BLOCK_BYTES = 1 << 20


class DumpFailed(RuntimeError):
    """Postgres could not be dumped or restored; the message holds what its tool said."""


class NotEmpty(RuntimeError):
    """The database to restore into holds something."""


@dataclass(frozen=True, slots=True)
class Dump:
    """How a dump was made, which is how it has to be restored."""

    method: str
    """`pg_dump`, or `copy` where there is no such tool that knows the server's version."""

    revision: str
    """The last migration that the tables have had."""

    server: int
    """The server's major version."""

    files: tuple[str, ...]


def tables() -> list[Table]:
    """Return what is dumped, so that each table comes after those it refers to; `seen` ends with its run."""
    return [table for table in Base.metadata.sorted_tables if table.name != SeenRow.__tablename__]


def dump(engine: Engine, folder: Path) -> Dump:
    """Write our tables into `folder`, all as of one moment.

    Raises:
        DumpFailed: the tool failed.
    """
    with engine.connect() as connection:
        revision = migrate.revision_of(connection) or ""
        major = server_major(connection)
    tool = _tool("pg_dump", major)
    if tool is None:
        return Dump("copy", revision, major, _copy_out(engine, folder))
    options = ["--format=custom", "--no-owner", "--no-privileges", f"--file={folder / ARCHIVE}"]
    options += [f"--lock-wait-timeout={LOCK_TIMEOUT_MS}", f"--exclude-table-data={SeenRow.__tablename__}"]
    options += [f"--table={name}" for name in (*Base.metadata.tables, VERSIONS)]
    _run(tool, options, engine)
    return Dump("pg_dump", revision, major, (ARCHIVE,))


def restore(engine: Engine, folder: Path, made: Dump) -> None:
    """Fill the empty database of `engine` with what `dump` wrote, and bring it to the newest schema.

    All or nothing: a restore that fails leaves the database as it was.

    Raises:
        NotEmpty: there are rows of ours in it.
        DumpFailed: the tool refuses the dump, or there is none for it here.
    """
    require_empty(engine)
    if made.method == "copy":
        with engine.begin() as connection:
            _copy_in(connection, folder, made)
        return
    with engine.connect() as connection:
        tool = _tool("pg_restore", server_major(connection))
    if tool is None:
        raise DumpFailed(
            "this backup was made by pg_dump, and there is no pg_restore here that knows the server's "
            "version; install Postgres' client programs"
        )
    options = ["--single-transaction", "--clean", "--if-exists", "--no-owner", "--no-privileges"]
    _run(tool, [*options, str(folder / ARCHIVE)], engine)
    with engine.begin() as connection:
        migrate.upgrade(connection)


def require_empty(engine: Engine) -> None:
    """Make sure that none of our tables has a row.

    Raises:
        NotEmpty: one has.
    """
    if (name := first_filled(engine)) is not None:
        raise NotEmpty(
            f"the database holds {name} already; restore into an empty SIGHTLINE_HOME, or an empty database"
        )


def first_filled(engine: Engine) -> str | None:
    """Return the name of a table of ours that has a row, or None where all are empty or missing."""
    with engine.connect() as connection:
        there = set(inspect(connection).get_table_names())
        filled = (
            table.name
            for table in tables()
            if table.name in there and connection.scalar(select(select(table).exists()))
        )
        return next(filled, None)


def server_major(connection: Connection) -> int:
    """Return the major version of the server, such as 18."""
    return int(connection.scalar(text("show server_version_num")) or 0) // 10_000


def _tool(name: str, server: int) -> Path | None:
    """Return the program `name` of a version that knows the server, if there is one."""
    places = [shutil.which(name)]
    with suppress(PostgresUnavailable):
        places.insert(0, str(find_binaries() / name))
    found = (Path(place) for place in places if place and Path(place).exists())
    return next((tool for tool in found if _major_of(tool) >= server), None)


def _major_of(tool: Path) -> int:
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    version = re.search(r"\d+", said)
    return int(version[0]) if version else 0


def _run(tool: Path, options: Sequence[str], engine: Engine) -> None:
    with _connection_string(engine) as dsn:
        done = subprocess.run(
            [tool, "--no-password", f"--dbname={dsn}", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise DumpFailed(f"{tool.name} failed: {' '.join(done.stderr.split())}")


@contextmanager
def _connection_string(engine: Engine) -> Iterator[str]:
    """Yield how the tools reach the server; the password is in a file, as all may read a command line."""
    _, named = engine.dialect.create_connect_args(engine.url)
    password = str(named.pop("password", ""))
    known: dict[str, Any] = {
        name: value for name, value in named.items() if name != "context"
    }  # SQLAlchemy's
    with tempfile.NamedTemporaryFile("w", prefix="sightline-", suffix=".pgpass") as file:  # mode 0600
        if password:
            escaped = password.replace("\\", "\\\\").replace(":", "\\:")
            file.write(f"*:*:*:*:{escaped}\n")
            file.flush()
            known["passfile"] = file.name
        yield make_conninfo("", **known)


def _copy_out(engine: Engine, folder: Path) -> tuple[str, ...]:
    files = []
    frozen = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with frozen.connect() as connection, cursor(connection) as copying:
        for table in tables():
            path = folder / f"{table.name}.copy"
            names = [column.name for column in table.columns]
            with path.open("wb") as file, copying.copy(_copy(table.name, names, "TO STDOUT")) as rows:
                for part in rows:
                    file.write(part)
            files.append(path.name)
    return tuple(files)


def _copy_in(connection: Connection, folder: Path, made: Dump) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        table.drop(connection, checkfirst=True)
    connection.execute(text(f"drop table if exists {VERSIONS}"))
    migrate.upgrade(connection, made.revision)
    with cursor(connection) as copying:
        for name in made.files:
            path = folder / name
            with path.open("rb") as file:
                columns = file.readline().decode().strip().split(",")  # as they were when it was made
                file.seek(0)
                with copying.copy(_copy(path.stem, columns, "FROM STDIN")) as rows:
                    while part := file.read(BLOCK_BYTES):
                        rows.write(part)
    migrate.upgrade(connection)
    renew_sequences(connection)


def renew_sequences(connection: Connection) -> None:
    """Have new rows take ids above those that were copied."""
    for table in tables():
        if (column := table.autoincrement_column) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(select(func.setval(sequence, select(func.max(column)).scalar_subquery())))


def cursor(connection: Connection) -> psycopg.Cursor[Any]:
    """Return a cursor of psycopg's own in the transaction of `connection`: SQLAlchemy has no COPY."""
    raw: psycopg.Connection[Any] = cast(Any, connection.connection.driver_connection)
    return raw.cursor()


def _copy(table: str, columns: Sequence[str], direction: LiteralString) -> Composed:
    names = SQL(", ").join(map(Identifier, columns))
    return SQL("COPY {} ({}) " + direction + " (FORMAT csv, HEADER)").format(Identifier(table), names)
