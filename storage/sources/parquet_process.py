"""Decode a Parquet file within limits of memory and time.

A few hundred bytes of Parquet can expand to gigabytes, and the sizes that a file declares can be wrong.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from storage.errors import InvalidInput
from storage.records import Record, Rejected
from storage.sources.columns import Columns
from storage.sources.manifest_rows import BadSource, check_columns
from storage.sources.parquet_limits import CPU_S, MAX_COLUMNS, MEMORY_BYTES, OUT_OF_MEMORY
from storage.sources.parquet_rows import row_of, values_of
from storage.sources.read_options import ReadOptions

BATCH_ROWS = 256
FRAME_CHARS = 2**20
"""Rows are sent when their texts have this many characters."""


def main(connection_fd: int, path: Path, options: ReadOptions) -> None:
    """Send the row count of the file, its rows, and their count.

    An error is sent as its message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    with Connection(connection_fd) as connection:
        try:
            count, columns = _footer(path, options)
            connection.send(count)
            _send_rows(connection, path, columns)
        except MemoryError:  # of Arrow too, whose errors are of several kinds
            os._exit(OUT_OF_MEMORY)  # there may be none left for a traceback
        except BrokenPipeError:
            return  # nothing reads any more
        except _Unfit as error:
            connection.send(str(error))
        except (pa.ArrowException, OSError) as error:
            connection.send(f"not readable as Parquet ({error}); write it again")


class _Unfit(InvalidInput):
    """Signal columns that a manifest must not have."""


def _footer(path: Path, options: ReadOptions) -> tuple[int, Columns]:
    """Return the row count and the content columns.

    Raises:
        _Unfit: no column is `key`, two have one name, or there are too many.
    """
    with ParquetFile(path) as file:
        columns = file.metadata.num_columns
        if columns > MAX_COLUMNS:
            raise _Unfit(f"{columns:,} columns, and a manifest may have {MAX_COLUMNS:,}; leave some out")
        try:
            contents = check_columns(path, file.schema_arrow.names, options)
        except BadSource as error:
            raise _Unfit(str(error).removeprefix(f"{path}: ")) from error
        return int(file.metadata.num_rows), contents


def _send_rows(connection: Connection, path: Path, columns: Columns) -> None:
    number, frame, chars = 0, list[Record | Rejected](), 0
    for row in _rows(path, columns):
        number += 1
        frame.append(row)
        chars += _size(row)
        if len(frame) == BATCH_ROWS or chars >= FRAME_CHARS:
            connection.send(frame)
            frame, chars = [], 0
    connection.send(frame)
    connection.send(number)


def _size(row: Record | Rejected) -> int:
    if isinstance(row, Rejected):
        return len(row.raw)
    return sum(len(text.text) for text in row.texts) + len(row.data or b"")


def _rows(path: Path, columns: Columns) -> Iterator[Record | Rejected]:
    number = 0
    for size in (BATCH_ROWS, 1):  # a batch may take too much memory where each of its rows does not
        try:
            for batch in _batches(path, size, skip=number):
                for row in values_of(batch):
                    number += 1
                    yield row_of(columns.row(row), f"row {number}", path.parent)
            return
        except MemoryError:
            if size == 1:
                raise


def _batches(path: Path, size: int, *, skip: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of `size` rows after skipping a multiple of `size`."""
    with ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=size, use_threads=False):
            _limit_time()
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield batch.slice(skip)
            skip = 0


def _limit_memory() -> None:
    """Limit the memory of this process, in addition to its libraries."""
    if sys.platform != "linux":
        return  # no other system counts what a process allocates against this
    with open("/proc/self/statm", "rb") as file:
        own = int(file.read().split()[5]) * resource.getpagesize()
    _set_soft(resource.RLIMIT_DATA, own + MEMORY_BYTES)


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_soft(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + CPU_S)


def _set_soft(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    _limit_time()
    mapped = tuple((content, column) for content, column in json.loads(sys.argv[3]))
    main(int(sys.argv[1]), Path(sys.argv[2]), ReadOptions(columns=mapped))
