"""Manifests in Parquet, decoded by a process of its own that may take so much memory and no more."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from signal import Signals
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from storage.records import Record, Rejected
from storage.source.manifest import BadSource, check_columns
from storage.source.parquet_limits import CPU_S, MEMORY_BYTES, OUT_OF_MEMORY

MODULE = "storage.source.parquet_process"


def read_parquet(path: Path) -> Iterator[Record | Rejected]:
    """Read the rows of a Parquet file, some at a time.

    Args:
        path: in a resolved folder, which is where relative paths start.

    Raises:
        BadSource: not Parquet or without a column `key`, raised at once; or, while iterating: damaged, or
            some of its rows take more memory or time to decode than rows may.
    """
    with _opened(path) as file:
        check_columns(path, file.schema_arrow.names)
    return _rows(path)


def count_parquet(path: Path) -> int:
    """Return how many rows the file says it has.

    Raises:
        BadSource: not Parquet.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BadSource(f"{path}: not readable as Parquet ({error}); write it again") from error


def _rows(path: Path) -> Iterator[Record | Rejected]:
    expected, number = count_parquet(path), 0
    with closing(_Decoder(path)) as decoder:
        while not isinstance(sent := decoder.receive(number), int):
            number += len(sent)
            yield from sent
    if number != expected:
        raise BadSource(f"{path}: {number:,} rows where it says it has {expected:,}; write it again")


class _Decoder:
    """The process that decodes one file; it ends when nothing reads what it sends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection[Any, Any]
        self._connection, theirs = Pipe(duplex=False)
        command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(path)]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment())

    def receive(self, number: int) -> list[Record | Rejected] | int:
        """Return the next rows, or at the end how many there were.

        Args:
            number: of the rows received so far.

        Raises:
            BadSource: the file cannot be read further.
        """
        try:
            sent: list[Record | Rejected] | int | str = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended(number) from error
        if isinstance(sent, str):
            raise BadSource(f"{self._path}: {sent}")
        return sent

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _ended(self, number: int) -> BadSource:
        status = self._process.wait()
        how = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
        why = f"decoding it ended by {how}"
        if status == OUT_OF_MEMORY:
            why = f"decoding it takes over {MEMORY_BYTES // 2**20} MiB of memory"
        elif status == -Signals.SIGXCPU:
            why = f"decoding a batch of it takes over {CPU_S} s"
        return BadSource(f"{self._path}: {why}, after row {number:,}; write it again with smaller rows")


def _environment() -> dict[str, str]:
    """Return this process's environment, in which Arrow takes memory as it needs it, not in large arenas."""
    return os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # noqa: TID251 (it has no other setting)
