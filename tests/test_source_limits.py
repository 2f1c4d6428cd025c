"""A manifest of a few hundred bytes takes neither the memory nor the time of the process that reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.records import Record, Rejected
from storage.source import BadSource, read_source
from storage.source.parquet_limits import MEMORY_BYTES
from tests import bombs
from tests.watching import MIB, watched

OWN_MIB = 200
"""What the process that decodes has without any file: Python and Arrow."""


def test_a_cell_of_millions_of_values_ends_the_source_with_its_row_and_takes_no_memory_here(tmp_path: Path):
    file = bombs.nested_parquet(tmp_path / "nested.parquet")
    assert file.stat().st_size < 2_000

    with watched() as most, pytest.raises(BadSource) as caught:
        list(read_source(file))

    assert "decoding it takes over 512 MiB of memory, after row 0" in str(caught.value)
    assert most["own"] < 50
    assert most["worker"] < MEMORY_BYTES / MIB + OWN_MIB


def test_long_cells_that_fill_a_batch_are_rejected_one_by_one(tmp_path: Path):
    file = bombs.long_parquet(tmp_path / "long.parquet")
    assert file.stat().st_size < 4_000

    with watched() as most:
        rows = list(read_source(file))

    assert [row.reason for row in rows if isinstance(row, Rejected)] == ["text_too_long"] * 256
    assert most["own"] < 50
    assert most["worker"] < MEMORY_BYTES / MIB + OWN_MIB


@pytest.mark.parametrize("make", [bombs.quoted_csv, bombs.nested_jsonl])
def test_a_row_of_text_takes_a_small_multiple_of_its_bytes(make: Callable[[Path], Path], tmp_path: Path):
    file = make(tmp_path)

    with watched() as most:
        rows = list(read_source(file))

    assert not any(isinstance(row, Record) for row in rows)
    assert most["own"] < 300
