"""Read Parquet manifests in a separate process with limited memory.

No byte of the file is parsed in this process, its footer included.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from signal import Signals
from tempfile import TemporaryFile
from typing import IO, Any
from weakref import finalize

from storage.records import Record, Rejected
from storage.sources.manifest_rows import BadSource
from storage.sources.parquet_limits import CPU_S, MEMORY_BYTES, OUT_OF_MEMORY
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate
from storage.sources.validation import printable

MODULE = "storage.sources.parquet_process"
MAX_WORDS = 65_536


def read_parquet(
    path: Path, estimate: RowEstimate, options: ReadOptions = DEFAULTS
) -> Iterator[Record | Rejected]:
    """Read the rows of a Parquet file in batches.

    Args:
        path: in a resolved folder, which is where relative paths start.

    Raises:
        BadSource: not Parquet or without a column `key`, raised at once; or, while iterating: damaged, or
            some of its rows take more memory or time to decode than rows may.
    """
    decoder = _Decoder(path, options)
    count = decoder.receive_count()
    estimate.set_rows(count)
    return _rows(decoder, count)


def _rows(decoder: "_Decoder", expected: int) -> Iterator[Record | Rejected]:
    number = 0
    with closing(decoder):
        while not isinstance(sent := decoder.receive(number), int):
            number += len(sent)
            yield from sent
    if number != expected:
        path = decoder.path
        raise BadSource(f"{path}: {number:,} rows where it says it has {expected:,}; write it again")


class _Decoder:
    """Run the process that decodes one file.

    It ends with this object, or when its results are no longer read.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self._words = TemporaryFile()  # noqa: SIM115 (closed with this object)
        self._connection: Connection[Any, Any]
        self._connection, theirs = Pipe(duplex=False)
        columns = json.dumps(options.columns)
        command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(path), columns]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=_environment(), stderr=self._words
            )
        self.close = finalize(self, _end, self._connection, self._process, self._words)

    def receive_count(self) -> int:
        """Receive the row count of the footer, before any rows.

        Raises:
            BadSource: not Parquet or without a column `key`.
        """
        sent = self._receive("its footer")
        if not isinstance(sent, int):
            raise BadSource(f"{self.path}: decoding it began without its footer")
        return sent

    def receive(self, number: int) -> list[Record | Rejected] | int:
        """Receive the next rows, or the total count at the end.

        Args:
            number: of the rows received so far.

        Raises:
            BadSource: the file cannot be read further.
        """
        return self._receive(f"the rows after row {number:,}")

    def _receive(self, part: str) -> list[Record | Rejected] | int:
        try:
            sent: list[Record | Rejected] | int | str = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended(part) from error
        if isinstance(sent, str):
            raise BadSource(f"{self.path}: {sent}")
        return sent

    def _ended(self, part: str) -> BadSource:
        status = self._process.wait()
        how = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
        why = f"decoding {part} ended by {how}"
        if status == OUT_OF_MEMORY:
            why = f"decoding {part} takes over {MEMORY_BYTES // 2**20} MiB of memory"
        elif status == -Signals.SIGXCPU:
            why = f"decoding {part} takes over {CPU_S} s"
        elif words := self._last_words():
            why = f"{why} ({words})"
        return BadSource(f"{self.path}: {why}; write it again with smaller rows or fewer columns")

    def _last_words(self) -> str:
        """Return the last line that the libraries wrote to standard error."""
        self._words.seek(0)
        lines = self._words.read(MAX_WORDS).decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1], 300) if lines else ""


def _end(connection: "Connection[Any, Any]", process: "subprocess.Popen[bytes]", words: IO[bytes]) -> None:
    """End the process of a decoder."""
    connection.close()
    process.kill()
    process.wait()
    words.close()


def _environment() -> dict[str, str]:
    """Return the environment of this process, with Arrow's system memory pool.

    Its default pool allocates large arenas.
    """
    return os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # noqa: TID251 (it has no other setting)
