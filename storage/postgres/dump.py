"""Dump the Postgres tables by COPY, and restore them.

Each table is a compressed CSV file, which every server version reads.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import uuid4

import psycopg
import pyarrow as pa
from alembic.util.exc import CommandError
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import Connection, Engine, Table, func, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from storage.errors import Conflict, SightlineError
from storage.postgres import migrate
from storage.postgres.pg_dump_archive import BadArchive, archived_table
from storage.postgres.schema import Base, SeenRow

SUFFIX = ".copy.zst"
VERSIONS = "alembic_version"
BLOCK_BYTES = 1 << 20
DOES_NOT_FIT = (
    *(DataError, IntegrityError, ProgrammingError),
    *(psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError),
    *(CommandError, BadArchive, pa.ArrowException, UnicodeDecodeError),
)
"""Errors of a restore that the rows cause; an unreachable server raises others."""


class DumpFailed(SightlineError):
    """Signal rows that do not fit this Postgres; none was kept."""


class NotEmpty(Conflict):
    """The stores to restore into hold something."""

    refusal = True


@dataclass(frozen=True, slots=True)
class Dump:
    """The format and contents of a dump."""

    method: str
    """`copy`: a CSV file for each table; `pg_dump` in backups of earlier releases: one archive."""

    revision: str
    """The last migration that the tables have had."""

    server: int
    """The server's major version."""

    files: tuple[str, ...]
    rows: dict[str, int] = field(default_factory=dict)
    """By table; empty in backups of earlier releases."""


def tables() -> list[Table]:
    """Return the dumped tables, each after those that it refers to.

    `seen` is left out: its rows end with their run.
    """
    return [table for table in Base.metadata.sorted_tables if table.name != SeenRow.__tablename__]


def dump(engine: Engine, folder: Path) -> Dump:
    """Write one file per table into `folder`, in one database snapshot."""
    files, rows = [], {}
    frozen = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with frozen.connect() as connection, cursor(connection) as copying:
        revision, major = migrate.revision_of(connection) or "", server_major(connection)
        for table in tables():
            path = folder / f"{table.name}{SUFFIX}"
            names = [column.name for column in table.columns]
            with (
                pa.output_stream(str(path)) as file,
                copying.copy(_copy(table.name, names, "TO STDOUT (FORMAT csv, HEADER)")) as parts,
            ):
                for part in parts:
                    file.write(part)
            files.append(path.name)
            rows[table.name] = copying.rowcount
    return Dump("copy", revision, major, tuple(files), rows)


def restore(engine: Engine, folder: Path, made: Dump, *, rehearse: bool = False) -> None:
    """Restore a dump into an empty database, and migrate it.

    All or nothing. Nothing but rows comes from the dump: the tables are made by our migrations, and a
    superuser hands the rows to a role that may do nothing but insert them.

    Args:
        rehearse: do all of it and take it back, to know that it can be done.

    Raises:
        NotEmpty: there are rows of ours in it.
        DumpFailed: the rows do not fit the tables, or are fewer or more than the dump says.
    """
    require_empty(engine)
    with engine.connect() as connection, connection.begin() as transaction:
        try:
            _fill(connection, folder, made)
        except DOES_NOT_FIT as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DumpFailed(
                f"the rows of this backup do not go into this Postgres ({why}); none was kept; use another "
                "backup"
            ) from error
        if rehearse:
            transaction.rollback()


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
    """Return the name of a table with rows, or None."""
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


def renew_sequences(connection: Connection) -> None:
    """Have new rows take ids above those that were copied."""
    for table in tables():
        if (column := table.autoincrement_column) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(select(func.setval(sequence, select(func.max(column)).scalar_subquery())))


def cursor(connection: Connection) -> psycopg.Cursor[Any]:
    """Return a psycopg cursor in the transaction of `connection`, for COPY."""
    raw: psycopg.Connection[Any] = cast(Any, connection.connection.driver_connection)
    return raw.cursor()


def _fill(connection: Connection, folder: Path, made: Dump) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        table.drop(connection, checkfirst=True)
    connection.execute(text(f"drop table if exists {VERSIONS}"))
    migrate.upgrade(connection, made.revision)
    with _inserting_only(connection):
        rows = (
            _copy_archive(connection, folder, made)
            if made.method == "pg_dump"
            else _copy_files(connection, folder, made)
        )
    if made.rows and rows != made.rows:
        wrong = sorted(
            name for name in rows.keys() | made.rows.keys() if rows.get(name) != made.rows.get(name)
        )
        raise BadArchive(f"{wrong[0]} has {rows.get(wrong[0], 0):,} rows, not {made.rows.get(wrong[0], 0):,}")
    migrate.upgrade(connection)
    renew_sequences(connection)


def _copy_files(connection: Connection, folder: Path, made: Dump) -> dict[str, int]:
    """Insert the rows of each file; return the count by table."""
    by_table = {name.split(".")[0]: name for name in made.files}
    rows = {}
    for table in tables():
        if table.name not in by_table:
            continue  # it is younger than the dump
        path = folder / by_table[table.name]
        try:
            with pa.input_stream(str(path)) as file:
                head = _first_line(file)
                columns = head.decode().strip().split(",")  # as they were when it was made
                options: LiteralString = "FROM STDIN (FORMAT csv, HEADER)"
                rows[table.name] = _insert(connection, table.name, columns, options, _blocks(head, file))
        except OSError as error:
            raise BadArchive(f"{path.name} cannot be decompressed ({error})") from error
    return rows


def _copy_archive(connection: Connection, folder: Path, made: Dump) -> dict[str, int]:
    """Insert the rows of a pg_dump archive; return the count by table."""
    [name] = made.files
    rows = {}
    for table in tables():
        with archived_table(folder / name, table.name) as data:
            if data is not None:
                rows[table.name] = _insert(connection, table.name, data.columns, "FROM STDIN", data.lines)
    return rows


def _insert(
    connection: Connection, table: str, columns: Sequence[str], options: LiteralString, parts: Iterable[bytes]
) -> int:
    with cursor(connection) as inserting:
        with inserting.copy(_copy(table, columns, options)) as rows:
            for part in parts:
                rows.write(part)
        return inserting.rowcount


@contextmanager
def _inserting_only(connection: Connection) -> Iterator[None]:
    """Replace a superuser by a role that may only insert rows."""
    if connection.scalar(text("select current_setting('is_superuser')")) != "on":
        yield
        return
    role = Identifier(f"sightline_restore_{uuid4().hex}")
    schema = Identifier(str(connection.scalar(select(func.current_schema()))))
    with cursor(connection) as direct:
        direct.execute(SQL("CREATE ROLE {} NOLOGIN").format(role))
        direct.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
        direct.execute(SQL("GRANT INSERT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, role))
        direct.execute(SQL("SET LOCAL ROLE {}").format(role))
        yield
        direct.execute("RESET ROLE")
        direct.execute(SQL("DROP OWNED BY {}").format(role))
        direct.execute(SQL("DROP ROLE {}").format(role))


def _first_line(file: pa.NativeFile) -> bytes:
    head = b""
    while not head.endswith(b"\n") and (byte := file.read(1)):
        head += byte
    return head


def _blocks(head: bytes, file: pa.NativeFile) -> Iterator[bytes]:
    yield head
    while part := file.read(BLOCK_BYTES):
        yield part


def _copy(table: str, columns: Sequence[str], options: LiteralString) -> Composed:
    names = SQL(", ").join(map(Identifier, columns))
    return SQL("COPY {} ({}) " + options).format(Identifier(table), names)
