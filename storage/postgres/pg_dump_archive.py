"""Read rows from a pg_dump archive, as format 1 backups hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile

from storage.embedded.postgres.server import find_binaries
from storage.errors import InvalidInput

HEADER = re.compile(rb"COPY (?:\S+\.)?(\w+) \(([\w, \"]+)\) FROM stdin;\n")
END = b"\\.\n"


class BadArchive(InvalidInput):
    """The archive cannot be read as one that pg_dump wrote."""


@dataclass(frozen=True, slots=True)
class TableData:
    """Rows of one table in COPY's text format."""

    columns: tuple[str, ...]
    lines: Iterator[bytes]


@contextmanager
def archived_table(archive: Path, table: str) -> Iterator[TableData | None]:
    """Yield the rows of one table in an archive, None without any.

    No statement of the archive is run: pg_restore prints it as a script, without a connection,
    and the rows are taken from that.

    Raises:
        BadArchive: pg_restore cannot read it.
        PostgresUnavailable: there are no Postgres programs on this machine.
    """
    argv = [str(find_binaries() / "pg_restore"), "--data-only", f"--table={table}", "--file=-", str(archive)]
    with TemporaryFile() as said:
        with Popen(argv, stdin=DEVNULL, stdout=PIPE, stderr=said) as process:
            script = iter(process.stdout or ())
            yield _table_of(script, table)
            for _ in script:  # to its end, so that pg_restore says whether it could read all
                continue
        if process.returncode:
            said.seek(0)
            why = " ".join(said.read().decode(errors="replace").split())
            raise BadArchive(f"{archive.name} is no archive that pg_restore reads ({why})")


def _table_of(script: Iterator[bytes], table: str) -> TableData | None:
    for line in script:
        if (found := HEADER.fullmatch(line)) and found[1].decode() == table:
            columns = tuple(name.strip(' "') for name in found[2].decode().split(","))
            return TableData(columns, _until_end(script))
    return None


def _until_end(script: Iterator[bytes]) -> Iterator[bytes]:
    for line in script:
        if line == END:
            return
        yield line
