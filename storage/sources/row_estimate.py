"""Estimate the row count of a source while it is read."""

import os
from typing import BinaryIO


class RowEstimate:
    """Estimate the rows of one source.

    The footer of a Parquet file states them, a folder counts the images of the folders that it has listed,
    and the lines of a file are as long on average as those that were read. One thread reads the source;
    another may call `total`.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._file: BinaryIO | None = None
        self._bytes = 0

    def set_rows(self, rows: int) -> None:
        """Store the number of rows; 0 while it is unknown."""
        self._rows = rows

    def follow(self, file: BinaryIO) -> None:
        """Estimate rows by the position in `file`, which a reader advances."""
        self._file, self._bytes = file, os.fstat(file.fileno()).st_size

    def total(self, rows: int) -> int:
        """Return the estimate after `rows` rows; 0 while unknown."""
        if self._file is None:
            return self._rows
        try:
            position = self._file.tell()
        except (ValueError, OSError):  # closed after its last row, or just being closed in the other thread
            return rows
        return round(rows * self._bytes / position) if position else 0
