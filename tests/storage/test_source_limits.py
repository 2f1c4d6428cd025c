"""Small manifests cannot exhaust the memory or time of their reader."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from sqlalchemy import text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage.records import Record, Rejected
from storage.sources import BadSource, location, read_source
from storage.sources.parquet_limits import MEMORY_BYTES
from storage.sources.parquet_manifest import read_parquet
from storage.sources.row_estimate import RowEstimate
from tests.support import bombs
from tests.support.watching import MIB, children, watched

OWN_MIB = 200
"""What the process that decodes has without any file: Python and Arrow."""


def test_a_cell_of_millions_of_values_ends_the_source_with_its_row_and_takes_no_memory_here(tmp_path: Path):
    file = bombs.nested_parquet(tmp_path / "nested.parquet")
    assert file.stat().st_size < 2_000

    with watched() as most, pytest.raises(BadSource) as caught:
        list(read_source(file))

    assert "decoding the rows after row 0 takes over 512 MiB of memory" in str(caught.value)
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


def test_a_footer_of_many_columns_is_refused_and_takes_no_memory_here(tmp_path: Path):
    file = a_wide_parquet(tmp_path / "wide.parquet", columns=60_000)
    assert file.stat().st_size < 1_000_000

    with watched() as most, pytest.raises(BadSource, match="60,000 columns, and a manifest may have 10,000"):
        next(read_source(file))

    assert most["own"] < 30
    assert most["worker"] < MEMORY_BYTES / MIB + OWN_MIB


def test_a_decoder_ends_with_the_rows_that_were_never_read(tmp_path: Path):
    file = empty_parquet(tmp_path / "empty.parquet", rows=1)
    before = children()

    rows = read_parquet(file, RowEstimate())
    begun = children() - before
    del rows

    assert (len(begun), children() & begun) == (1, set())


def empty_csv(path: Path, rows: int) -> Path:
    path.write_text("key,text\n" + ",x\n" * rows)
    return path


def empty_jsonl(path: Path, rows: int) -> Path:
    path.write_text("{}\n" * rows)
    return path


def empty_parquet(path: Path, rows: int) -> Path:
    """Write rows without a value: any number fits into few bytes."""
    parquet.write_table(pa.table({"key": pa.nulls(rows, pa.string())}), path)
    return path


def a_wide_parquet(path: Path, columns: int) -> Path:
    """Write a footer alone: a schema of many columns, without rows.

    It is in the compact protocol of Thrift.
    """

    def varint(number: int) -> bytes:
        low, rest = number & 127, number >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def column(name: bytes) -> bytes:
        return b"\x15\x02\x25\x02\x18" + varint(len(name)) + name + b"\0"  # an optional INT32

    root = b"\x48\x01r\x15" + varint(2 * columns) + b"\0"
    schema = root + column(b"key") + b"".join(column(b"%d" % number) for number in range(1, columns))
    no_rows = b"\x16\0\x19\x0c\0"
    footer = b"\x15\x02\x19\xfc" + varint(columns + 1) + schema + no_rows
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


@pytest.mark.parametrize("make", [empty_csv, empty_jsonl, empty_parquet])
def test_a_flood_of_rejects_ends_the_source_with_one_reason(
    make: Callable[[Path, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(location, "MANY_REJECTS", 500)
    file = make(tmp_path / f"empty.{make.__name__.removeprefix('empty_')}", 5_000)
    read = []

    with pytest.raises(BadSource, match=r"after 500 rejects or more and 0 records; the first reject: .*key"):
        read.extend(read_source(file))

    # `extend` keeps what came before the error
    assert len(read) == 500


def test_many_rejects_among_as_many_records_are_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(location, "MANY_REJECTS", 100)
    file = tmp_path / "half.csv"
    file.write_text("key,text\n" + "".join(f"{number},a cat\n,x\n" for number in range(1_000)))

    assert len(list(read_source(file))) == 2_000


def test_a_run_ends_at_a_flood_of_rejects_and_puts_no_more_on_record(
    deps: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(location, "MANY_REJECTS", 100)
    file = empty_csv(tmp_path / "flood.csv", 2_000)
    lenient = settings.model_copy(update={"max_reject_share": 1.0})

    with pytest.raises(BadSource, match="after 100 rejects or more"):
        ingest_source(deps, lenient, Request(file))

    with deps.sessions() as session:
        assert session.scalar(text("select count(*) from rejects")) <= 100
        [(outcome, why)] = session.execute(text("select outcome, error from runs"))
    assert (outcome, "after 100 rejects or more" in why) == ("failed", True)


@pytest.mark.parametrize("make", [bombs.quoted_csv, bombs.nested_jsonl])
def test_a_row_of_text_takes_a_small_multiple_of_its_bytes(make: Callable[[Path], Path], tmp_path: Path):
    # the CSV guards how rows inside a row are looked for; without that it never took much
    file = make(tmp_path)

    with watched() as most:
        rows = list(read_source(file))

    assert not any(isinstance(row, Record) for row in rows)
    assert most["own"] < 300
