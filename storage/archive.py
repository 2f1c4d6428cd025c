"""Rows of an archive that pg_dump wrote: earlier releases kept Postgres in one."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.embedded.postgres import find_binaries

HEADER = re.compile(rb"COPY (?:\S+\.)?(\w+) \(([\w, \"]+)\) FROM stdin;\n")
END = b"\\.\n"


class BadArchive(ValueError):
    """The archive cannot be read as one that pg_dump wrote."""


@dataclass(frozen=True, slots=True)
class TableData:
    """Rows of one table in COPY's text format; read `lines` to their end before the next table."""

    table: str
    columns: tuple[str, ...]
    lines: Iterator[bytes]


@contextmanager
def archived_tables(archive: Path) -> Iterator[Iterator[TableData]]:
    """Yield the data of each table in `archive`; no statement of it is ever run.

    pg_restore prints the archive as a script, without a connection, and the data blocks are taken from that.

    Raises:
        BadArchive: pg_restore does not read it to its end.
        PostgresUnavailable: there are no Postgres programs on this machine.
    """
    argv = [str(find_binaries() / "pg_restore"), "--data-only", "--file=-", str(archive)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("a process was started without pipes")
        try:
            yield _blocks(iter(process.stdout))
            rest = process.communicate()[1]
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = " ".join(rest.decode(errors="replace").split())
        raise BadArchive(f"{archive.name} is no archive that pg_restore reads ({said})")


def _blocks(script: Iterator[bytes]) -> Iterator[TableData]:
    for line in script:
        if found := HEADER.fullmatch(line):
            columns = tuple(name.strip(' "') for name in found[2].decode().split(","))
            rows = _until_end(script)
            yield TableData(found[1].decode(), columns, rows)
            for _ in rows:
                continue


def _until_end(script: Iterator[bytes]) -> Iterator[bytes]:
    for line in script:
        if line == END:
            return
        yield line
